//! What steps and tickets cost on this machine, and what that makes of a step: plain data, in seconds.

pub mod measure;

use std::fmt;

use super::policy::Load;

/// A cost that grows with the nonzeros of a ticket, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerTicket {
    /// What any ticket costs: every weight of the base is visited.
    pub fixed: f64,
    pub per_nonzero: f64,
}

impl PerTicket {
    /// The line through what tickets of two sizes cost, `(nonzeros, seconds)`, the smaller first.
    pub fn through(small: (usize, f64), large: (usize, f64)) -> Self {
        let between = large.0.saturating_sub(small.0).max(1) as f64;
        let per_nonzero = ((large.1 - small.1) / between).max(0.0);
        let fixed = (small.1 - per_nonzero * small.0 as f64).max(0.0);
        Self { fixed, per_nonzero }
    }

    /// Of a ticket with so many nonzeros.
    pub fn of(self, nonzeros: usize) -> f64 {
        self.fixed + self.per_nonzero * nonzeros as f64
    }
}

/// What was measured on the resident base.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// A step of the bare base by its rows: ascending, at least one.
    steps: Vec<(usize, f64)>,
    /// What a ticket adds to a step where it is laid over so many rows: ascending, at least one.
    overlays: Vec<(usize, PerTicket)>,
    /// Writing a ticket into the weights.
    pub apply: PerTicket,
    /// Writing the base's own values back.
    pub revert: PerTicket,
    /// Laying a ticket out before it is first overlaid.
    pub layout: PerTicket,
}

impl Costs {
    /// Points may come in any order of their rows. A step of more rows never costs less: where it was
    /// measured so, that was noise.
    ///
    /// # Panics
    /// If there is no point of a step or of an overlay.
    pub fn new(
        mut steps: Vec<(usize, f64)>,
        mut overlays: Vec<(usize, PerTicket)>,
        apply: PerTicket,
        revert: PerTicket,
        layout: PerTicket,
    ) -> Self {
        assert!(
            !steps.is_empty() && !overlays.is_empty(),
            "nothing measured"
        );
        steps.sort_unstable_by_key(|&(rows, _)| rows);
        overlays.sort_unstable_by_key(|&(rows, _)| rows);
        let mut most = 0f64;
        for (_, seconds) in &mut steps {
            most = most.max(*seconds);
            *seconds = most;
        }
        Self {
            steps,
            overlays,
            apply,
            revert,
            layout,
        }
    }

    /// What was measured: a step's seconds by its rows.
    pub fn steps(&self) -> &[(usize, f64)] {
        &self.steps
    }

    /// What was measured: an overlay's costs by its rows.
    pub fn overlays(&self) -> &[(usize, PerTicket)] {
        &self.overlays
    }

    /// A step of the bare base, or of one ticket that is applied.
    pub fn step(&self, rows: usize) -> f64 {
        interpolate(&self.steps, rows)
    }

    /// What a ticket of so many nonzeros adds to a step where it is laid over `rows` of its rows.
    pub fn overlay(&self, nonzeros: usize, rows: usize) -> f64 {
        if nonzeros == 0 {
            return 0.0;
        }
        let of_ticket = |&(rows, cost): &(usize, PerTicket)| (rows, cost.of(nonzeros));
        let points: Vec<_> = self.overlays.iter().map(of_ticket).collect();
        interpolate(&points, rows)
    }

    /// Applying a ticket and reverting it.
    pub fn swap(&self, nonzeros: usize) -> f64 {
        if nonzeros == 0 {
            return 0.0;
        }
        self.apply.of(nonzeros) + self.revert.of(nonzeros)
    }

    /// One step in which all these groups run, each ticket laid over its rows.
    pub fn together(&self, loads: &[Load]) -> f64 {
        let rows = loads.iter().map(|load| load.rows).sum();
        let overlays = loads
            .iter()
            .map(|load| self.overlay(load.nonzeros, load.rows));
        self.step(rows) + overlays.sum::<f64>()
    }

    /// The same by turns: a step a group with its ticket applied, and the part that falls to it of a
    /// swap every `turn_steps` steps. A group alone needs no swaps.
    pub fn in_turns(&self, loads: &[Load], turn_steps: usize) -> f64 {
        let step = |load: &Load| {
            let swap = match loads {
                [_] => 0.0,
                _ => self.swap(load.nonzeros) / turn_steps.max(1) as f64,
            };
            self.step(load.rows) + swap
        };
        loads.iter().map(step).sum()
    }

    /// What a step would cost less if this group ran by itself, its ticket applied, instead of together
    /// with the others: below 0 where it is better off with them. The swap is not in it. `total` is the
    /// rows of all groups.
    pub fn gain(&self, load: &Load, total: usize) -> f64 {
        let others = total.saturating_sub(load.rows);
        let share = self.step(total) - self.step(others);
        share + self.overlay(load.nonzeros, load.rows) - self.step(load.rows)
    }
}

/// The value at `rows`, on lines between the points; before the first that of the first, after the last
/// by the slope there. No rows cost nothing.
fn interpolate(points: &[(usize, f64)], rows: usize) -> f64 {
    let (first, last) = (points[0], points[points.len() - 1]);
    if rows == 0 {
        return 0.0;
    }
    if rows <= first.0 {
        return first.1;
    }
    let after = points.partition_point(|&(at, _)| at < rows);
    let (low, high) = match after {
        // One point alone: as if the cost were all in the rows.
        _ if points.len() == 1 => return last.1 * rows as f64 / last.0.max(1) as f64,
        at if at == points.len() => (points[at - 2], last),
        at => (points[at - 1], points[at]),
    };
    let slope = (high.1 - low.1) / (high.0 - low.0).max(1) as f64;
    // Beyond the last point a falling slope is noise.
    let slope = if rows > last.0 { slope.max(0.0) } else { slope };
    low.1 + slope * (rows - low.0) as f64
}

/// In one line, for a log.
impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a step of")?;
        for (rows, seconds) in &self.steps {
            write!(f, " {rows}: {:.1} ms,", 1e3 * seconds)?;
        }
        let nanos = |cost: PerTicket| 1e9 * cost.per_nonzero;
        let (apply, revert) = (nanos(self.apply), nanos(self.revert));
        write!(
            f,
            " a nonzero applied {apply:.2} ns, reverted {revert:.2} ns, overlaid on"
        )?;
        for (at, (rows, cost)) in self.overlays.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma} {rows}: {:.2} ns", nanos(*cost))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Figures of a small base on two cores, in seconds: a step of 13 ms that 16 rows double, a swap of
    /// about 5 ms at a million nonzeros.
    pub fn small_base() -> Costs {
        let per_ticket = |fixed, per_nonzero| PerTicket { fixed, per_nonzero };
        Costs::new(
            vec![
                (1, 0.013),
                (4, 0.015),
                (16, 0.019),
                (64, 0.060),
                (256, 0.200),
            ],
            vec![
                (1, per_ticket(20e-6, 0.28e-9)),
                (16, per_ticket(50e-6, 0.5e-9)),
                (64, per_ticket(200e-6, 2e-9)),
            ],
            per_ticket(300e-6, 2.3e-9),
            per_ticket(200e-6, 2.0e-9),
            per_ticket(0.0, 12e-9),
        )
    }

    fn load(rows: usize, nonzeros: usize) -> Load {
        Load {
            group: None,
            rows,
            nonzeros,
            laid_out: true,
        }
    }

    #[test]
    fn costs_are_interpolated_between_and_beyond_what_was_measured() {
        let costs = small_base();
        assert_eq!(costs.step(0), 0.0);
        for &(rows, seconds) in costs.steps() {
            assert!((costs.step(rows) - seconds).abs() < 1e-12);
        }
        assert!((costs.step(10) - 0.017).abs() < 1e-9);
        // As from 64 to 256.
        assert!((costs.step(512) - (0.2 + 256.0 * 0.14 / 192.0)).abs() < 1e-9);
        let million = costs.overlay(1_000_000, 512);
        assert!((million - 2.2e-3 * 8.0).abs() < 2e-3, "{million}");
        assert_eq!(costs.overlay(0, 16), 0.0);
        assert_eq!(costs.swap(0), 0.0);
        assert!((costs.swap(1_000_000) - 4.8e-3).abs() < 1e-9);
        let one = Costs {
            steps: vec![(1, 0.5)],
            ..costs
        };
        assert_eq!((one.step(1), one.step(4)), (0.5, 2.0));
    }

    #[test]
    fn noise_makes_no_step_cheaper_than_one_of_fewer_rows() {
        let base = small_base();
        let none = PerTicket::default();
        let points = vec![(16, 0.012), (1, 0.010), (4, 0.013)];
        let costs = Costs::new(points, base.overlays, none, none, none);
        assert_eq!(costs.steps(), [(1, 0.010), (4, 0.013), (16, 0.013)]);
        assert_eq!(costs.step(100), 0.013);
    }

    #[test]
    fn two_sizes_of_tickets_make_a_line() {
        let line = PerTicket::through((100, 3e-3), (1100, 5e-3));
        assert!((line.per_nonzero - 2e-6).abs() < 1e-12);
        assert!((line.fixed - 2.8e-3).abs() < 1e-12);
        assert!((line.of(600) - 4e-3).abs() < 1e-12);
        // The larger was measured faster: all is fixed.
        let flat = PerTicket::through((100, 3e-3), (1100, 2e-3));
        assert_eq!((flat.fixed, flat.per_nonzero), (3e-3, 0.0));
    }

    #[test]
    fn decoding_is_cheaper_together_and_dense_prompts_alone() {
        let costs = small_base();
        let decoding = [load(1, 0), load(1, 1_000_000), load(2, 1_000_000)];
        assert!(costs.together(&decoding) < costs.in_turns(&decoding, 8));
        let prompts = [load(256, 10_000_000), load(256, 10_000_000)];
        assert!(costs.together(&prompts) > costs.in_turns(&prompts, 1));
        assert!(costs.gain(&decoding[1], 4) < 0.0);
        assert!(costs.gain(&prompts[0], 512) > costs.swap(10_000_000));
        // Alone, an overlay is all that can be saved.
        let alone = costs.gain(&decoding[2], 2);
        assert!((alone - costs.overlay(1_000_000, 2)).abs() < 1e-12);
    }
}
