//! Cost model: predicted times of steps and tickets on this machine. Plain data, in seconds.

pub mod measure;

use std::fmt;

use super::plan::Group;

/// Work of a group that is ready for the next step, and the size of its ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The group.
    pub group: Group,
    /// Tokens that it would compute if it ran apart.
    pub rows: usize,
    /// Nonzeros of its ticket; 0 for the base.
    pub nonzeros: usize,
    /// Whether the layout of its ticket, which an overlay needs, is already built.
    pub has_layout: bool,
    /// Whether its turn comes first, because a light account waits for a first token.
    pub urgent: bool,
}

/// A cost that is linear in the nonzeros of a ticket, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerTicket {
    /// Cost independent of the nonzeros: every weight matrix of the base is visited.
    pub fixed: f64,
    /// Cost per nonzero.
    pub per_nonzero: f64,
}

impl PerTicket {
    /// Line through the costs of two tickets, `(nonzeros, seconds)` each, the smaller first.
    pub fn through(small: (usize, f64), large: (usize, f64)) -> Self {
        let between = large.0.saturating_sub(small.0).max(1) as f64;
        let per_nonzero = ((large.1 - small.1) / between).max(0.0);
        let fixed = (small.1 - per_nonzero * small.0 as f64).max(0.0);
        Self { fixed, per_nonzero }
    }

    /// Cost of a ticket with this many nonzeros.
    pub fn of(self, nonzeros: usize) -> f64 {
        self.fixed + self.per_nonzero * nonzeros as f64
    }
}

/// Costs measured on the resident base.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// `(rows, seconds)` of steps of the bare base: ascending, at least one.
    steps: Vec<(usize, f64)>,
    /// Cost that a ticket adds to a step, by the rows that it is overlaid on: ascending, at least
    /// one.
    overlays: Vec<(usize, PerTicket)>,
    /// Applying a ticket.
    pub apply: PerTicket,
    /// Reverting a ticket.
    pub revert: PerTicket,
    /// Building a ticket's layout, before it is first overlaid.
    pub layout: PerTicket,
}

impl Costs {
    /// Costs through measured points, in any order of their rows. Step times are made
    /// monotonic in the rows: a larger step measured as faster is noise, and is raised.
    ///
    /// # Panics
    /// If there is no point of a step or none of an overlay.
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
        let mut max = 0f64;
        for (_, seconds) in &mut steps {
            max = max.max(*seconds);
            *seconds = max;
        }
        Self {
            steps,
            overlays,
            apply,
            revert,
            layout,
        }
    }

    /// Measured points of a step of the bare base: `(rows, seconds)`.
    pub fn steps(&self) -> &[(usize, f64)] {
        &self.steps
    }

    /// Measured points of an overlay: rows, and the costs of a ticket on them.
    pub fn overlays(&self) -> &[(usize, PerTicket)] {
        &self.overlays
    }

    /// Seconds of a step of the bare base, or with one ticket applied.
    pub fn step(&self, rows: usize) -> f64 {
        interpolate(&self.steps, rows)
    }

    /// Seconds that a ticket of this many nonzeros adds to a step if it is overlaid on `rows` rows.
    pub fn overlay(&self, nonzeros: usize, rows: usize) -> f64 {
        if nonzeros == 0 {
            return 0.0;
        }
        let point = |&(rows, cost): &(usize, PerTicket)| (rows, cost.of(nonzeros));
        let points: Vec<_> = self.overlays.iter().map(point).collect();
        interpolate(&points, rows)
    }

    /// Seconds of applying and reverting a ticket of this many nonzeros.
    pub fn swap(&self, nonzeros: usize) -> f64 {
        if nonzeros == 0 {
            return 0.0;
        }
        self.apply.of(nonzeros) + self.revert.of(nonzeros)
    }

    /// Seconds of one step of all these groups, each ticket overlaid on its rows.
    pub fn together(&self, loads: &[Load]) -> f64 {
        let rows = loads.iter().map(|load| load.rows).sum();
        let overlays = loads
            .iter()
            .map(|load| self.overlay(load.nonzeros, load.rows));
        self.step(rows) + overlays.sum::<f64>()
    }

    /// Seconds of the same work in turns: for each group, one step with its ticket applied and the
    /// step's share of a swap every `turn_steps` steps. A single group needs no swaps.
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

    /// Seconds saved if this group runs apart, with its ticket applied, instead of together with
    /// the others; negative if running together is faster. The swap is not counted. `total` is the
    /// number of rows of all groups.
    pub fn apply_savings(&self, load: &Load, total: usize) -> f64 {
        let others = total.saturating_sub(load.rows);
        let share = self.step(total) - self.step(others);
        share + self.overlay(load.nonzeros, load.rows) - self.step(load.rows)
    }
}

/// Linear interpolation at `rows`. Before the first point, that point's value; beyond the last
/// point, extrapolation with the last slope. Zero rows cost nothing.
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
        // With a single point, the cost is taken as proportional to the rows.
        _ if points.len() == 1 => return last.1 * rows as f64 / last.0.max(1) as f64,
        at if at == points.len() => (points[at - 2], last),
        at => (points[at - 1], points[at]),
    };
    let slope = (high.1 - low.1) / (high.0 - low.0).max(1) as f64;
    // Beyond the last point a falling slope is noise.
    let slope = if rows > last.0 { slope.max(0.0) } else { slope };
    low.1 + slope * (rows - low.0) as f64
}

/// One line for the log.
impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = |at| if at == 0 { ':' } else { ',' };
        let nanos = |cost: PerTicket| 1e9 * cost.per_nonzero;
        write!(f, "step by rows")?;
        for (at, (rows, seconds)) in self.steps.iter().enumerate() {
            write!(f, "{} {rows} → {:.1} ms", separator(at), 1e3 * seconds)?;
        }
        let (apply, revert) = (nanos(self.apply), nanos(self.revert));
        write!(
            f,
            "; per nonzero: apply {apply:.2} ns, revert {revert:.2} ns; overlay by rows"
        )?;
        for (at, (rows, cost)) in self.overlays.iter().enumerate() {
            write!(f, "{} {rows} → {:.2} ns", separator(at), nanos(*cost))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Costs of a small base on two cores: 13 ms for a step of one row, 19 ms for 16 rows, 5 ms for
    /// a swap of a million nonzeros.
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
            has_layout: true,
            urgent: false,
        }
    }

    #[test]
    fn costs_are_interpolated_between_and_extrapolated_beyond_the_points() {
        let costs = small_base();
        assert_eq!(costs.step(0), 0.0);
        for &(rows, seconds) in costs.steps() {
            assert!((costs.step(rows) - seconds).abs() < 1e-12);
        }
        assert!((costs.step(10) - 0.017).abs() < 1e-9);
        // By the slope from 64 to 256 rows.
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
    fn no_step_is_cheaper_than_one_of_fewer_rows() {
        let base = small_base();
        let none = PerTicket::default();
        let points = vec![(16, 0.012), (1, 0.010), (4, 0.013)];
        let costs = Costs::new(points, base.overlays, none, none, none);
        assert_eq!(costs.steps(), [(1, 0.010), (4, 0.013), (16, 0.013)]);
        assert_eq!(costs.step(100), 0.013);
    }

    #[test]
    fn a_line_goes_through_the_costs_of_two_tickets() {
        let line = PerTicket::through((100, 3e-3), (1100, 5e-3));
        assert!((line.per_nonzero - 2e-6).abs() < 1e-12);
        assert!((line.fixed - 2.8e-3).abs() < 1e-12);
        assert!((line.of(600) - 4e-3).abs() < 1e-12);
        // The larger ticket was measured as faster: the cost is all fixed.
        let flat = PerTicket::through((100, 3e-3), (1100, 2e-3));
        assert_eq!((flat.fixed, flat.per_nonzero), (3e-3, 0.0));
    }

    #[test]
    fn decoding_is_cheaper_together_and_dense_prompts_apart() {
        let costs = small_base();
        let decoding = [load(1, 0), load(1, 1_000_000), load(2, 1_000_000)];
        assert!(costs.together(&decoding) < costs.in_turns(&decoding, 8));
        let prompts = [load(256, 10_000_000), load(256, 10_000_000)];
        assert!(costs.together(&prompts) > costs.in_turns(&prompts, 1));
        assert!(costs.apply_savings(&decoding[1], 4) < 0.0);
        assert!(costs.apply_savings(&prompts[0], 512) > costs.swap(10_000_000));
        // Alone, a group can save no more than its overlay.
        let alone = costs.apply_savings(&decoding[2], 2);
        assert!((alone - costs.overlay(1_000_000, 2)).abs() < 1e-12);
    }
}
