//! The `report.html` of a run: loss curves, density of the mask, answers before and after.
//!
//! The page is one self-contained file, which loads nothing. This module computes its contents;
//! `report.html`, `report.css` and `report.js` lay them out. The template escapes all text.

mod curves;
mod diff;
mod format;
mod heatmap;
mod history;
mod page;
mod points;
mod run;
mod samples;
mod scale;
#[cfg(test)]
mod tests;
mod tiles;

use std::fs;
use std::path::Path;

use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use super::error::TrainError;
use super::event::Event;
use page::Page;

/// Contents of the report.
pub struct ReportInput<'a> {
    /// Contents of the run's `config.json`.
    pub config: &'a Value,
    /// Events of the run's `metrics.jsonl`, in order.
    pub events: &'a [Event],
    /// Evaluations on the validation rows through the engine, the base first and the ticket last;
    /// empty if there are none.
    pub results: &'a [ReportResult],
    /// Some validation rows with the answers of base and ticket.
    pub samples: &'a [Sample],
}

/// The evaluation of one model on the validation rows.
pub struct ReportResult {
    /// `base`, or the name of the ticket.
    pub label: String,
    /// Mean loss per learned token, in nats.
    pub loss: f64,
    pub perplexity: f64,
    /// Name of a score, such as `exact match`, and its value in [0, 1].
    pub score: Option<(String, f64)>,
}

/// A validation row and the greedy answers to it.
pub struct Sample {
    /// The prompt as text, without special tokens.
    pub prompt: String,
    /// The row's answer.
    pub expected: String,
    pub base: String,
    pub ticket: String,
}

const TEMPLATE: &str = "report.html";

/// Renders the page, deterministically. Any input yields a page, which names missing parts.
pub fn render(input: &ReportInput) -> String {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // The `.html` of the name turns on HTML escaping.
    let added = environment.add_template(TEMPLATE, include_str!("report.html"));
    let page = added.and_then(|()| environment.get_template(TEMPLATE)?.render(Page::new(input)));
    page.expect("the template renders every page")
}

/// Reads a run's `metrics.jsonl`.
///
/// # Errors
/// The file cannot be read, or a line of it is not an event.
pub fn read_events(path: &Path) -> Result<Vec<Event>, TrainError> {
    let text = fs::read_to_string(path).map_err(TrainError::io("read", path))?;
    let event = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| TrainError::Folder {
            path: path.to_owned(),
            reason: format!("line {} is not an event of a run: {error}", index + 1),
        })
    };
    text.lines().enumerate().map(event).collect()
}
