//! Axes: their ranges and ticks.

use serde::Serialize;

use super::format::{count, rounded};

/// Range of the vertical axis.
pub struct Scale {
    low: f64,
    high: f64,
    /// Distance between ticks.
    tick: f64,
}

/// A labelled mark on an axis.
#[derive(Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Percent of the axis, from the left or from the top.
    pub at: f64,
    pub text: String,
}

impl Scale {
    /// A range that covers the lines and the points, except for outliers that would flatten the
    /// rest. `None` if there are no points.
    pub fn new(mut points: Vec<f64>, lines: &[f64]) -> Option<Self> {
        points.sort_unstable_by(f64::total_cmp);
        let quartile = |quarters: usize| points.get(points.len() * quarters / 4).copied();
        let (lower, upper) = (quartile(1)?, quartile(3)?);
        // Wider than Tukey's fence for outliers, since losses may fall steeply at the start.
        let fence = 4.0 * (upper - lower).max(0.05 * upper.abs());
        let near = |value: &&f64| (lower - fence..=upper + fence).contains(*value);
        let shown = points.iter().filter(near).chain(lines);
        let low = shown.clone().copied().fold(f64::INFINITY, f64::min);
        let high = shown.copied().fold(f64::NEG_INFINITY, f64::max);
        let room = (0.05 * (high - low)).max(0.01 * high.abs()).max(1e-6);
        // Start at zero if zero is near.
        let low = if low >= 0.0 && low < 0.25 * high {
            0.0
        } else {
            low - room
        };
        let high = high + room;
        let tick = nice((high - low) / 7.0);
        Some(Self { low, high, tick })
    }

    /// Position in percent from the top; values beyond the range are clamped to its edge.
    pub fn place(&self, value: f64) -> f64 {
        let share = (self.high - value) / (self.high - self.low);
        100.0 * share.clamp(0.0, 1.0)
    }

    /// Whether a value lies outside the range.
    pub fn is_beyond(&self, value: f64) -> bool {
        value > self.high || value < self.low
    }

    /// Ticks of the axis, at most 12.
    pub fn ticks(&self) -> Vec<Tick> {
        let whole = |decimals: &i32| {
            let tick = self.tick * 10f64.powi(*decimals);
            tick >= 0.5 && (tick - tick.round()).abs() < 1e-6 * tick
        };
        let decimals = (0..12).find(whole).unwrap_or(12) as usize;
        let first = (self.low / self.tick).ceil();
        let values = (0..12).map(|place| (first + f64::from(place)) * self.tick);
        let tick = |value: f64| Tick {
            at: rounded(self.place(value)),
            // Adding 0.0 turns −0 into 0.
            text: format!("{:.decimals$}", value + 0.0),
        };
        values.take_while(|v| *v <= self.high).map(tick).collect()
    }
}

/// Ticks of an axis of steps from 0 to `end` > 0, including both ends.
pub fn step_ticks(end: usize) -> Vec<Tick> {
    let spacing = nice(end as f64 / 5.0).ceil() as usize;
    let mut steps: Vec<usize> = (0..end).step_by(spacing).collect();
    // Drop a tick whose text would overlap that of the end.
    if let Some(&last) = steps.last()
        && last > 0
        && 2 * (end - last) <= spacing
    {
        steps.pop();
    }
    steps.push(end);
    let tick = |step: usize| Tick {
        at: rounded(100.0 * step as f64 / end as f64),
        text: count(step),
    };
    steps.into_iter().map(tick).collect()
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `value`.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let multiples = [1.0, 2.0, 2.5, 5.0].map(|factor| factor * power);
    let found = multiples.into_iter().find(|&n| n >= value);
    found.unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.text.as_str()).collect()
    }

    #[test]
    fn losses_lie_between_round_ticks() {
        let scale = Scale::new(vec![2.6, 1.9, 1.3], &[2.4]).unwrap();
        let ticks = scale.ticks();
        assert_eq!(
            texts(&ticks),
            ["1.25", "1.50", "1.75", "2.00", "2.25", "2.50"]
        );
        assert!(ticks.is_sorted_by(|a, b| a.at > b.at));
        for loss in [1.3, 2.6] {
            assert!((0.0..=100.0).contains(&scale.place(loss)) && !scale.is_beyond(loss));
        }
        assert!(Scale::new(Vec::new(), &[]).is_none());
    }

    #[test]
    fn a_single_loss_has_an_axis() {
        for loss in [0.0, 1e-9, 0.7, 12.0] {
            let scale = Scale::new(vec![loss], &[]).unwrap();
            let ticks = scale.ticks();
            assert!((2..=12).contains(&ticks.len()), "{loss}: {ticks:?}");
            assert!(!scale.is_beyond(loss));
        }
    }

    #[test]
    fn outliers_are_put_on_the_edge() {
        let mut losses = vec![1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6];
        losses.push(60.0);
        let scale = Scale::new(losses, &[1.2]).unwrap();
        assert!(scale.is_beyond(60.0) && !scale.is_beyond(1.6));
        assert_eq!(scale.place(60.0), 0.0);
        assert!(scale.place(1.6) < 20.0);
    }

    #[test]
    fn an_axis_of_steps_ends_with_the_last_step() {
        for (end, expected) in [
            (1, &["0", "1"][..]),
            (3, &["0", "1", "2", "3"]),
            (30, &["0", "10", "20", "30"]),
            (81, &["0", "20", "40", "60", "81"]),
            (12000, &["0", "2,500", "5,000", "7,500", "10,000", "12,000"]),
        ] {
            let ticks = step_ticks(end);
            assert_eq!(texts(&ticks), expected);
            assert_eq!(ticks.last().unwrap().at, 100.0);
        }
    }
}
