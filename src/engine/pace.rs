//! Pace of the engine: the rows that a step computes in a time that a newcomer can wait for.

use std::time::Duration;

/// Length of a step while several accounts share the engine.
const STEP: Duration = Duration::from_millis(60);

/// Steps of fewer rows say little about the time per row.
const LEAST_ROWS: usize = 16;

/// Weight of the latest step in the average.
const WEIGHT: f64 = 0.2;

/// Average time per row of the steps so far.
#[derive(Debug, Default)]
pub struct Pace {
    seconds_per_row: Option<f64>,
}

impl Pace {
    /// Records a step of `rows` rows.
    pub fn record(&mut self, rows: usize, time: Duration) {
        if rows < LEAST_ROWS {
            return;
        }
        let latest = time.as_secs_f64() / rows as f64;
        let average = self.seconds_per_row.unwrap_or(latest);
        // One slow step, as one that lays out a ticket, says little about the next.
        let latest = latest.min(2.0 * average);
        self.seconds_per_row = Some(average + WEIGHT * (latest - average));
    }

    /// Rows of a step of the length that newcomers can wait for.
    pub fn rows(&self) -> usize {
        match self.seconds_per_row {
            Some(seconds) => ((STEP.as_secs_f64() / seconds) as usize).max(LEAST_ROWS),
            None => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_steps_and_outlasts_a_slow_one() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(), usize::MAX);
        pace.record(1, Duration::from_millis(13));
        assert_eq!(pace.rows(), usize::MAX);
        (0..50).for_each(|_| pace.record(64, Duration::from_millis(64)));
        assert!((59..=60).contains(&pace.rows()), "{}", pace.rows());
        pace.record(64, Duration::from_secs(5));
        assert!(pace.rows() >= 48, "{}", pace.rows());
        (0..50).for_each(|_| pace.record(64, Duration::from_micros(640)));
        assert!(pace.rows() > 5000, "{}", pace.rows());
    }
}
