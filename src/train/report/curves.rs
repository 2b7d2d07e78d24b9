//! The loss over the steps of each phase: points, lines, and what has to be said about them.
//!
//! Places are percent of a panel's width and height, from the upper left corner, so that a panel
//! fills whatever room it has while its text keeps its size. Lines are paths in a box of 1000 by
//! 1000, which is stretched.

use std::fmt::Write;

use serde::Serialize;

use super::super::config::Phase;
use super::super::event::StepReport;
use super::format::{self, counted, rounded};
use super::history::{History, PhaseHistory};
use super::scale::{Scale, Tick, step_ticks};

/// Points of a panel; of a longer phase, means over neighbouring steps are shown.
const MOST: usize = 1500;
/// Percent of a panel's height that two labels keep between them.
const APART: f64 = 8.0;

#[derive(Serialize)]
pub struct Curves {
    panels: Vec<Panel>,
    notes: Vec<String>,
    has_valid: bool,
    has_before: bool,
}

/// The picture of one phase.
#[derive(Serialize)]
struct Panel {
    phase: Phase,
    caption: String,
    /// The panel's width against the others'.
    grow: usize,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    /// Path of the steps' losses, each a stroke without length.
    points: String,
    /// The same, of those beyond the scale.
    beyond: String,
    smooth: String,
    valid_line: String,
    valid: Vec<Mark>,
    /// Losses that are named beside the panel.
    labels: Vec<Label>,
    /// What the script shows.
    data: Data,
}

/// A loss of the validation rows.
#[derive(Serialize)]
struct Mark {
    step: usize,
    x: f64,
    y: f64,
    loss: String,
}

/// A loss with a place for its line and, clear of other labels, for its text.
#[derive(Serialize)]
struct Label {
    role: &'static str,
    loss: String,
    y: f64,
    text_y: f64,
}

#[derive(Serialize)]
struct Data {
    end: usize,
    /// Step, place of the smoothed loss, loss, smoothed loss, learning rate, gradient norm, tokens
    /// per second.
    rows: Vec<(f64, f64, f64, f64, f64, f64, f64)>,
}

/// A phase, as far as it does not depend on the scale.
struct Series<'a> {
    name: Phase,
    phase: &'a PhaseHistory,
    points: Vec<Point>,
    /// Losses of the validation rows by steps taken, the beginning and the end included.
    looks: Vec<(usize, f64)>,
}

/// One or more neighbouring steps.
struct Point {
    step: f64,
    loss: f64,
    smooth: f64,
    learning_rate: f64,
    gradient_norm: f64,
    rate: f64,
}

impl Curves {
    /// Draws the phases, each with its caption. `None` where no step was taken.
    pub fn new(history: &History, caption: impl Fn(Phase) -> String) -> Option<Self> {
        let series = history.phases.iter();
        let series = series.map(|(name, phase)| Series::new(*name, phase, history));
        let series: Vec<Series> = series.filter(|s| !s.points.is_empty()).collect();
        let points = series.iter().flat_map(|s| &s.points);
        let losses = points.clone().map(|point| point.loss).collect();
        let looks = series.iter().flat_map(|s| &s.looks).map(|(_, loss)| *loss);
        let lines: Vec<f64> = points.map(|point| point.smooth).chain(looks).collect();
        let scale = Scale::new(losses, &lines)?;
        let longest = series.iter().map(|s| s.phase.planned()).max()?;
        let panel = |s: &Series| Panel {
            caption: caption(s.name),
            // A short phase stays wide enough for its axis.
            grow: (100 * s.phase.planned() / longest.max(1)).max(45),
            labels: s.labels(&scale),
            ..Panel::new(s, &scale)
        };
        Some(Self {
            panels: series.iter().map(panel).collect(),
            notes: series.iter().flat_map(|s| s.notes(&scale)).collect(),
            has_before: history.before.is_some(),
            has_valid: series.iter().any(|s| !s.looks.is_empty()),
        })
    }
}

impl<'a> Series<'a> {
    fn new(name: Phase, phase: &'a PhaseHistory, history: &History) -> Self {
        let mut looks = phase.valid.clone();
        // Each phase begins at the weights that the run began with.
        looks.extend(history.before.map(|loss| (0, loss)));
        if name == Phase::Adapt {
            looks.extend(history.ticket_loss().map(|loss| (phase.planned(), loss)));
        }
        looks.retain(|_, loss| fits(*loss));
        Self {
            name,
            phase,
            points: points(phase),
            looks: looks.into_iter().collect(),
        }
    }

    /// Names the loss at the beginning and that at the end.
    fn labels(&self, scale: &Scale) -> Vec<Label> {
        let label = |role, loss: f64| {
            let y = rounded(scale.place(loss));
            let loss = format::loss(loss);
            Label {
                role,
                loss,
                y,
                text_y: y,
            }
        };
        let at = |step: usize| self.looks.iter().find(|look| look.0 == step);
        let mut labels = Vec::new();
        labels.extend(at(0).map(|look| label("before", look.1)));
        labels.extend(at(self.phase.planned()).map(|look| label("after", look.1)));
        if let [before, after] = &mut labels[..] {
            let distance = after.y - before.y;
            let push = (APART - distance.abs()).max(0.0) / 2.0;
            let push = if distance < 0.0 { -push } else { push };
            before.text_y = rounded(before.y - push);
            after.text_y = rounded(after.y + push);
        }
        labels
    }

    fn notes(&self, scale: &Scale) -> Vec<String> {
        let Self { name, phase, .. } = self;
        let mut notes = Vec::new();
        let (taken, planned) = (phase.steps.len(), phase.planned());
        if taken < planned {
            let planned = counted(planned, "step");
            notes.push(format!("The {name} phase has taken {taken} of {planned}."));
        }
        let each = taken.div_ceil(MOST);
        if each > 1 {
            notes.push(format!(
                "Each point of the {name} phase is the mean of {each} steps."
            ));
        }
        let beyond = self.points.iter().filter(|p| scale.is_beyond(p.loss));
        match beyond.count() {
            0 => {}
            beyond => notes.push(format!(
                "Beyond the scale, and drawn at its edge: {} of the {name} phase.",
                counted(beyond, "point")
            )),
        }
        notes
    }
}

impl Panel {
    fn new(series: &Series, scale: &Scale) -> Self {
        let end = series.phase.planned().max(1);
        let x = |step: f64| 100.0 * step / end as f64;
        let (mut points, mut beyond) = (String::new(), String::new());
        for point in &series.points {
            let path = if scale.is_beyond(point.loss) {
                &mut beyond
            } else {
                &mut points
            };
            let (x, y) = (10.0 * x(point.step), 10.0 * scale.place(point.loss));
            // Some browsers leave out a stroke of no length at all.
            let _ = write!(path, "M{x:.1} {y:.1}h.01");
        }
        let smooth = series.points.iter();
        let looks = series.looks.iter();
        Self {
            phase: series.name,
            caption: String::new(),
            grow: 100,
            x_ticks: step_ticks(end),
            y_ticks: scale.ticks(),
            points,
            beyond,
            smooth: line(smooth.map(|p| (x(p.step), scale.place(p.smooth)))),
            valid_line: line(looks.clone().map(|(s, l)| (x(*s as f64), scale.place(*l)))),
            valid: looks
                .map(|(step, loss)| Mark {
                    step: *step,
                    x: rounded(x(*step as f64)),
                    y: rounded(scale.place(*loss)),
                    loss: format::loss(*loss),
                })
                .collect(),
            labels: Vec::new(),
            data: Data {
                end,
                rows: series.points.iter().map(|p| p.row(scale)).collect(),
            },
        }
    }
}

/// Whether a loss can be drawn: beyond a billion nats it would only spoil the arithmetic.
fn fits(loss: f64) -> bool {
    loss.abs() < 1e9
}

fn points(phase: &PhaseHistory) -> Vec<Point> {
    let steps = phase.steps.values();
    let steps: Vec<&StepReport> = steps.filter(|step| fits(step.loss)).collect();
    let each = steps.len().div_ceil(MOST).max(1);
    let mut points: Vec<Point> = steps.chunks(each).map(Point::new).collect();
    let losses: Vec<f64> = points.iter().map(|point| point.loss).collect();
    for (point, smooth) in points.iter_mut().zip(smoothed(&losses)) {
        point.smooth = smooth;
    }
    points
}

/// Means under a Gaussian window, which does not lag behind as a running mean does; it opens from
/// the beginning on, where losses fall fast.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let widest = (values.len() as f64 / 25.0).max(1.5);
    let smooth = |place: usize| {
        let width = (place as f64 / 3.0).clamp(1.5, widest);
        let reach = (3.0 * width) as usize;
        let from = place.saturating_sub(reach);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (other, value) in values.iter().enumerate().take(place + reach + 1).skip(from) {
            let distance = other.abs_diff(place) as f64 / width;
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
            rate: sum(|step| step.tokens as f64) / sum(|step| step.seconds),
        }
    }

    fn row(&self, scale: &Scale) -> (f64, f64, f64, f64, f64, f64, f64) {
        // Six figures: more would only make the page larger.
        let figures = |value: f64| format!("{value:.5e}").parse().unwrap_or(value);
        (
            rounded(self.step),
            rounded(scale.place(self.smooth)),
            figures(self.loss),
            figures(self.smooth),
            figures(self.learning_rate),
            figures(self.gradient_norm),
            figures(self.rate),
        )
    }
}

/// A path through places in percent.
fn line(places: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in places {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", 10.0 * x, 10.0 * y);
    }
    // A dot, where there is only one.
    if !path.is_empty() && !path.contains('L') {
        path += "h.01";
    }
    path
}
