//! Loss curves: one panel per phase with points, lines and notes.
//!
//! Coordinates are percent of a panel's width and height, from the upper left corner, so that a
//! panel scales with the page while its text keeps its size. Lines are paths in a box of 1000 by
//! 1000 that is stretched to the panel.

use std::fmt::Write;

use serde::Serialize;

use super::super::config::Phase;
use super::format::{self, counted, rounded};
use super::history::{History, PhaseHistory};
use super::points::{MAX_POINTS, Point, Row, is_drawable, points};
use super::scale::{Scale, Tick, step_ticks};

/// Minimum distance of two labels, in percent of a panel's height.
const MIN_LABEL_DISTANCE: f64 = 8.0;

/// The loss curves of a run.
#[derive(Serialize)]
pub struct Curves {
    panels: Vec<Panel>,
    notes: Vec<String>,
    has_valid: bool,
    has_before: bool,
}

/// The plot of one phase.
#[derive(Serialize)]
struct Panel {
    phase: Phase,
    caption: String,
    /// Width relative to the other panels.
    grow: usize,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    /// Path of the steps' losses, one dot each.
    points: String,
    /// Path of the losses beyond the scale.
    beyond: String,
    smooth: String,
    valid_line: String,
    valid: Vec<Mark>,
    /// Losses labelled next to the panel.
    labels: Vec<Label>,
    /// Data for the script that shows the values of a step.
    data: Data,
}

/// A validation loss.
#[derive(Serialize)]
struct Mark {
    step: usize,
    x: f64,
    y: f64,
    loss: String,
}

/// A loss with the positions of its line and its text, which does not overlap other labels.
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
    rows: Vec<Row>,
}

/// The data of one phase, independent of the scale.
struct Series<'a> {
    name: Phase,
    phase: &'a PhaseHistory,
    points: Vec<Point>,
    /// Validation losses by number of steps, including the beginning and the end.
    validations: Vec<(usize, f64)>,
}

impl Curves {
    /// Draws the phases, each with its caption. `None` if no steps were taken.
    pub fn new(history: &History, caption: impl Fn(Phase) -> String) -> Option<Self> {
        let series = history.phases.iter();
        let series = series.map(|(name, phase)| Series::new(*name, phase, history));
        let series: Vec<Series> = series.filter(|s| !s.points.is_empty()).collect();
        let points = series.iter().flat_map(|s| &s.points);
        let losses = points.clone().map(|point| point.loss).collect();
        let validations = series
            .iter()
            .flat_map(|s| &s.validations)
            .map(|(_, loss)| *loss);
        let lines: Vec<f64> = points
            .map(|point| point.smooth)
            .chain(validations)
            .collect();
        let scale = Scale::new(losses, &lines)?;
        let longest = series.iter().map(|s| s.phase.planned()).max()?;
        let panel = |s: &Series| Panel {
            caption: caption(s.name),
            // Even a short phase is wide enough for its axis.
            grow: (100 * s.phase.planned() / longest.max(1)).max(45),
            labels: s.labels(&scale),
            ..Panel::new(s, &scale)
        };
        Some(Self {
            panels: series.iter().map(panel).collect(),
            notes: series.iter().flat_map(|s| s.notes(&scale)).collect(),
            has_before: history.before.is_some(),
            has_valid: series.iter().any(|s| !s.validations.is_empty()),
        })
    }
}

impl<'a> Series<'a> {
    fn new(name: Phase, phase: &'a PhaseHistory, history: &History) -> Self {
        let mut validations = phase.valid.clone();
        // Each phase begins with the weights at the start of the run.
        validations.extend(history.before.map(|loss| (0, loss)));
        if name == Phase::Adapt {
            validations.extend(history.ticket_loss().map(|loss| (phase.planned(), loss)));
        }
        validations.retain(|_, loss| is_drawable(*loss));
        Self {
            name,
            phase,
            points: points(phase),
            validations: validations.into_iter().collect(),
        }
    }

    /// Labels of the first and the last validation loss.
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
        let at = |step: usize| self.validations.iter().find(|(at, _)| *at == step);
        let mut labels = Vec::new();
        labels.extend(at(0).map(|(_, loss)| label("before", *loss)));
        labels.extend(at(self.phase.planned()).map(|(_, loss)| label("after", *loss)));
        if let [before, after] = &mut labels[..] {
            let distance = after.y - before.y;
            let push = (MIN_LABEL_DISTANCE - distance.abs()).max(0.0) / 2.0;
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
        let steps_per_point = taken.div_ceil(MAX_POINTS);
        if steps_per_point > 1 {
            notes.push(format!(
                "Each point of the {name} phase is the mean of {steps_per_point} steps."
            ));
        }
        let beyond = self.points.iter().filter(|p| scale.is_beyond(p.loss));
        match beyond.count() {
            0 => {}
            beyond => notes.push(format!(
                "Beyond the scale and drawn at its edge: {} of the {name} phase.",
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
            // Some browsers do not draw a stroke of zero length.
            let _ = write!(path, "M{x:.1} {y:.1}h.01");
        }
        let smooth = series.points.iter();
        let validations = series.validations.iter();
        Self {
            phase: series.name,
            caption: String::new(),
            grow: 100,
            x_ticks: step_ticks(end),
            y_ticks: scale.ticks(),
            points,
            beyond,
            smooth: line(smooth.map(|p| (x(p.step), scale.place(p.smooth)))),
            valid_line: line(
                validations
                    .clone()
                    .map(|(s, l)| (x(*s as f64), scale.place(*l))),
            ),
            valid: validations
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

/// A path through points in percent.
fn line(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", 10.0 * x, 10.0 * y);
    }
    // A single point is drawn as a dot.
    if !path.is_empty() && !path.contains('L') {
        path += "h.01";
    }
    path
}
