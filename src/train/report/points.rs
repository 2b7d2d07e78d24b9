//! The points of a loss curve: means over neighbouring steps, and their smoothed losses.

use super::super::event::StepReport;
use super::format::rounded;
use super::history::PhaseHistory;
use super::scale::Scale;

/// Points of a panel. The points of a longer phase are means over neighbouring steps.
pub const MAX_POINTS: usize = 1500;

/// Means over one or more neighbouring steps.
pub struct Point {
    pub step: f64,
    pub loss: f64,
    pub smooth: f64,
    learning_rate: f64,
    gradient_norm: f64,
    tokens_per_second: f64,
}

/// Whether a loss can be drawn: one beyond a billion nats would overflow the scale.
pub fn is_drawable(loss: f64) -> bool {
    loss.abs() < 1e9
}

/// The points of a phase.
pub fn points(phase: &PhaseHistory) -> Vec<Point> {
    let steps = phase.steps.values();
    let steps: Vec<&StepReport> = steps.filter(|step| is_drawable(step.loss)).collect();
    let steps_per_point = steps.len().div_ceil(MAX_POINTS).max(1);
    let mut points: Vec<Point> = steps.chunks(steps_per_point).map(Point::new).collect();
    let losses: Vec<f64> = points.iter().map(|point| point.loss).collect();
    for (point, smooth) in points.iter_mut().zip(smoothed(&losses)) {
        point.smooth = smooth;
    }
    points
}

/// Means under a Gaussian window, which does not lag as a running mean does. The window is narrow
/// at the beginning, where losses fall fast.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let widest = (values.len() as f64 / 25.0).max(1.5);
    let smooth = |index: usize| {
        let width = (index as f64 / 3.0).clamp(1.5, widest);
        let reach = (3.0 * width) as usize;
        let from = index.saturating_sub(reach);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (other, value) in values.iter().enumerate().take(index + reach + 1).skip(from) {
            let distance = other.abs_diff(index) as f64 / width;
            let weight = (-0.5 * distance * distance).exp();
            sum += weight * value;
            weights += weight;
        }
        sum / weights
    };
    (0..values.len()).map(smooth).collect()
}

impl Point {
    fn new(steps: &[&StepReport]) -> Self {
        let sum = |value: fn(&StepReport) -> f64| -> f64 { steps.iter().map(|s| value(s)).sum() };
        let number = steps.len() as f64;
        Self {
            step: sum(|step| step.step as f64) / number,
            loss: sum(|step| step.loss) / number,
            smooth: 0.0,
            learning_rate: sum(|step| f64::from(step.learning_rate)) / number,
            gradient_norm: sum(|step| step.gradient_norm) / number,
            tokens_per_second: sum(|step| step.tokens as f64) / sum(|step| step.seconds),
        }
    }

    /// The row of this point in the panel's data; see [`Row`].
    pub fn row(&self, scale: &Scale) -> Row {
        // Six digits: more would only make the page larger.
        let digits = |value: f64| format!("{value:.5e}").parse().unwrap_or(value);
        (
            rounded(self.step),
            rounded(scale.place(self.smooth)),
            digits(self.loss),
            digits(self.smooth),
            digits(self.learning_rate),
            digits(self.gradient_norm),
            digits(self.tokens_per_second),
        )
    }
}

/// Step, vertical position of the smoothed loss in percent, loss, smoothed loss, learning rate,
/// gradient norm and tokens per second.
pub type Row = (f64, f64, f64, f64, f64, f64, f64);
