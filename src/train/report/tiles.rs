//! Headline numbers: tiles with a few bars each.

use serde::Serialize;

use super::super::config::Phase;
use super::ReportResult;
use super::format::{self, capital, counted, percent, rounded};
use super::history::History;

/// A figure of the report with a bar per value.
#[derive(Serialize)]
pub struct Tile {
    title: String,
    bars: Vec<Bar>,
    note: String,
}

#[derive(Serialize)]
struct Bar {
    label: String,
    text: String,
    /// Length in percent of the tile's width.
    length: f64,
    /// Selects the colour: `base`, `calibrate` or `ticket`.
    role: &'static str,
}

/// The headline tiles, without those that lack data.
pub fn all(history: &History, results: &[ReportResult]) -> Vec<Tile> {
    let tiles = [loss(history), score(results), state(history)];
    tiles.into_iter().flatten().collect()
}

fn loss(history: &History) -> Option<Tile> {
    let (before, calibrated) = (history.before, history.calibrated());
    let (last, ticket) = match history.ticket_loss() {
        Some(loss) => ("ticket".to_owned(), Some(loss)),
        None => history
            .last_validation()
            .map_or_else(Default::default, |(step, loss)| {
                (format!("after {}", counted(step, "step")), Some(loss))
            }),
    };
    if before.is_none() && ticket.is_none() {
        return training_loss(history);
    }
    let values = [
        ("before", before, "base"),
        ("calibrated", calibrated, "calibrate"),
        (&last, ticket, "ticket"),
    ];
    let note = match (before, ticket) {
        (Some(before), Some(ticket)) => change(before, ticket),
        _ => String::new(),
    };
    Some(Tile {
        title: "Validation loss".to_owned(),
        bars: bars(values, format::loss),
        note,
    })
}

/// The training loss, for runs without validation rows.
fn training_loss(history: &History) -> Option<Tile> {
    let steps = &history.phases.get(&Phase::Adapt)?.steps;
    let losses: Vec<f64> = steps.values().map(|step| step.loss).collect();
    let first = *losses.first()?;
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let last = tail.iter().sum::<f64>() / tail.len() as f64;
    let values = [
        ("first step", Some(first), "base"),
        ("last tenth", Some(last), "ticket"),
    ];
    Some(Tile {
        title: "Training loss".to_owned(),
        bars: bars(values, format::loss),
        note: change(first, last),
    })
}

/// The relative change of a loss, in words; empty if it is not finite.
fn change(before: f64, after: f64) -> String {
    let change = (after - before) / before;
    if !change.is_finite() {
        return String::new();
    }
    let direction = if change > 0.0 { "higher" } else { "lower" };
    format!("{} % {direction} than before.", percent(change.abs()))
}

fn score(results: &[ReportResult]) -> Option<Tile> {
    let (name, _) = results.iter().find_map(|result| result.score.as_ref())?;
    let last = results.len() - 1;
    let bar = |(index, result): (usize, &ReportResult)| {
        let (_, score) = result.score.as_ref().filter(|(other, _)| other == name)?;
        Some(Bar {
            label: result.label.clone(),
            text: format!("{} %", percent(*score)),
            length: rounded(100.0 * score.clamp(0.0, 1.0)),
            role: match index {
                _ if index == last => "ticket",
                0 => "base",
                _ => "calibrate",
            },
        })
    };
    Some(Tile {
        title: capital(name),
        bars: results.iter().enumerate().filter_map(bar).collect(),
        note: "Greedy answers to the validation rows, through the engine.".to_owned(),
    })
}

fn state(history: &History) -> Option<Tile> {
    let bytes = |phase: Phase| Some(history.phases.get(&phase)?.bytes()? as f64);
    let (calibrate, adapt) = (bytes(Phase::Calibrate), bytes(Phase::Adapt)?);
    let values = [
        ("calibrate", calibrate, "calibrate"),
        ("adapt", Some(adapt), "ticket"),
    ];
    let note = match calibrate.filter(|bytes| *bytes > 0.0) {
        Some(calibrate) => format!("{} % of the calibrate phase. ", percent(adapt / calibrate)),
        None => String::new(),
    };
    Some(Tile {
        title: "Training state".to_owned(),
        bars: bars(values, |bytes| format::bytes(bytes as u64)),
        note: format!("{note}Gradients, optimizer state and f32 masters."),
    })
}

fn bars<const N: usize>(
    values: [(&str, Option<f64>, &'static str); N],
    text: impl Fn(f64) -> String,
) -> Vec<Bar> {
    let longest = values.iter().filter_map(|(_, value, _)| *value);
    let longest = longest.filter(|v| v.is_finite()).fold(0.0, f64::max);
    let bar = |(label, value, role): (&str, Option<f64>, &'static str)| {
        let value = value?;
        let length = rounded((100.0 * value / longest).clamp(0.0, 100.0));
        Some(Bar {
            label: label.to_owned(),
            text: text(value),
            length: if length.is_finite() { length } else { 100.0 },
            role,
        })
    };
    values.into_iter().filter_map(bar).collect()
}
