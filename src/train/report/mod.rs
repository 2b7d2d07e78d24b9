//! A run's `report.html`: loss curves, the mask's density, answers before and after.
//!
//! One file that needs no other and no network. What is shown is computed here; how it looks is in
//! `report.html`, `report.css` and `report.js`. The template escapes whatever it is given.

mod curves;
mod format;
mod heatmap;
mod history;
mod page;
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

/// What the report shows besides the run's own events.
pub struct ReportInput<'a> {
    /// `config.json` of the run.
    pub config: &'a Value,
    /// `metrics.jsonl`, in order.
    pub events: &'a [Event],
    /// What was measured on the validation rows through the engine, the base first and the ticket
    /// last; empty where nothing was.
    pub results: &'a [ReportResult],
    /// Some validation rows and their answers.
    pub samples: &'a [Sample],
}

/// What one model gave on the validation rows.
pub struct ReportResult {
    /// `base`, or the ticket's name.
    pub label: String,
    /// Mean loss of a learned token, in nats.
    pub loss: f64,
    pub perplexity: f64,
    /// A score in [0, 1] and its name, such as `exact match`.
    pub score: Option<(String, f64)>,
}

/// A validation row and what was answered to it.
pub struct Sample {
    /// As a person reads it.
    pub prompt: String,
    pub wanted: String,
    pub base: String,
    pub ticket: String,
}

const TEMPLATE: &str = "report.html";

/// The page, whole. The same input gives the same text; any input gives a page that says what it
/// lacks.
pub fn render(input: &ReportInput) -> String {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // Escapes for HTML, by the name's ending.
    let added = environment.add_template(TEMPLATE, include_str!("report.html"));
    let page = added.and_then(|()| environment.get_template(TEMPLATE)?.render(Page::new(input)));
    page.expect("the template and the page are written for each other")
}

/// Reads a run's `metrics.jsonl`.
///
/// # Errors
/// The file cannot be read, or a line of it is no event.
pub fn read_events(path: &Path) -> Result<Vec<Event>, TrainError> {
    let text = fs::read_to_string(path).map_err(TrainError::io("read", path))?;
    let event = |(place, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| TrainError::Folder {
            path: path.to_owned(),
            reason: format!("line {} is no event of a run: {error}", place + 1),
        })
    };
    text.lines().enumerate().map(event).collect()
}
