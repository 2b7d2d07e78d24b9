//! The values that fill the template `report.html`.

use serde::Serialize;
use serde_json::Value;

use super::super::config::Phase;
use super::curves::Curves;
use super::format::{self, NONE, capital, count, percent};
use super::heatmap::Heatmap;
use super::history::{History, PhaseHistory, PhaseStart};
use super::run::{RunConfig, Setting};
use super::samples::Card;
use super::tiles::{self, Tile};
use super::{ReportInput, ReportResult};

/// The values of the whole page.
#[derive(Serialize)]
pub struct Page {
    css: &'static str,
    js: &'static str,
    name: String,
    tool: String,
    lead: String,
    density: Option<String>,
    digest: Option<String>,
    /// Key facts: names and values.
    facts: Vec<(&'static str, String)>,
    tiles: Vec<Tile>,
    curves: Option<Curves>,
    phases: Vec<PhaseColumn>,
    state: Option<String>,
    mask: Option<Heatmap>,
    score_name: Option<String>,
    results: Vec<ResultRow>,
    samples: Vec<Card>,
    missing: Vec<&'static str>,
    settings: Vec<Setting>,
}

/// The figures of one phase.
#[derive(Serialize)]
struct PhaseColumn {
    name: Phase,
    steps: String,
    trained: String,
    bytes: String,
    bytes_per_weight: String,
    learning_rate: String,
    tokens: String,
    rate: String,
    time: String,
}

#[derive(Serialize)]
struct ResultRow {
    label: String,
    loss: String,
    perplexity: String,
    score: String,
}

impl Page {
    /// The page of a run.
    pub fn new(input: &ReportInput) -> Self {
        let history = History::new(input.events);
        let config = RunConfig(input.config);
        let scores = input.results.iter().filter_map(|r| r.score.as_ref());
        let score_name = scores.map(|(name, _)| name.clone()).next();
        let phases = history.phases.iter();
        let kept = history.kept();
        let density = kept.map(|(kept, all)| kept as f64 / all.max(1) as f64);
        Self {
            css: include_str!("report.css"),
            js: include_str!("report.js"),
            name: config.name(),
            tool: config.text("/tool").unwrap_or("tombola").to_owned(),
            lead: format!("{}.", capital(&config.mask_rule())),
            density: density.or(config.density()).map(percent),
            digest: history.ticket.as_ref().map(|t| t.digest.to_owned()),
            facts: facts(&history, &config),
            tiles: tiles::all(&history, input.results),
            curves: Curves::new(&history, |phase| config.caption(phase, &history)),
            phases: phases
                .map(|(name, phase)| PhaseColumn::new(*name, phase, &config))
                .collect(),
            state: state(&history),
            mask: history.mask.map(Heatmap::new),
            results: input.results.iter().map(ResultRow::new).collect(),
            score_name,
            samples: input.samples.iter().map(Card::new).collect(),
            missing: missing(&history, &config),
            settings: config.settings(),
        }
    }
}

impl PhaseColumn {
    fn new(name: Phase, phase: &PhaseHistory, config: &RunConfig) -> Self {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
        let (taken, planned) = (phase.steps.len(), phase.planned());
        let trained = phase.start.map(|start| start.trained);
        let per_weight = trained
            .zip(phase.bytes())
            .filter(|(trained, _)| *trained > 0);
        Self {
            name,
            steps: if taken == planned {
                count(taken)
            } else {
                format!("{} of {}", count(taken), count(planned))
            },
            trained: or_none(trained.map(count)),
            bytes: or_none(phase.bytes().map(|bytes| format::bytes(bytes as u64))),
            bytes_per_weight: or_none(
                per_weight
                    .map(|(trained, bytes)| format!("{:.1} B", bytes as f64 / trained as f64)),
            ),
            learning_rate: or_none(config.learning_rate(name)),
            tokens: count(phase.tokens()),
            rate: format::rate(phase.tokens() as f64 / phase.seconds()),
            time: format::duration(phase.seconds()),
        }
    }
}

impl ResultRow {
    fn new(result: &ReportResult) -> Self {
        let score = result.score.as_ref();
        Self {
            label: result.label.clone(),
            loss: format::loss(result.loss),
            perplexity: format::perplexity(result.perplexity),
            score: score.map_or_else(|| NONE.to_owned(), |(_, s)| format!("{} %", percent(*s))),
        }
    }
}

fn facts(history: &History, config: &RunConfig) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let nonzeros = |(kept, all)| format!("{} of {}", count(kept), count(all));
    fact("Base", config.text("/base/name").map(str::to_owned));
    fact("Nonzeros", history.kept().map(nonzeros));
    let file = history.ticket.as_ref();
    fact("File", file.map(|ticket| format::bytes(ticket.bytes)));
    let steps = history.phases.iter().map(|(name, phase)| {
        let (taken, planned) = (phase.steps.len(), phase.planned());
        if taken == planned {
            format!("{} {name}", count(taken))
        } else {
            format!("{} of {} {name}", count(taken), count(planned))
        }
    });
    let steps = steps.collect::<Vec<_>>().join(" + ");
    fact("Steps", (!steps.is_empty()).then_some(steps));
    fact("Data", config.data("/data"));
    let fingerprint = config.text("/base/fingerprint");
    fact("Base fingerprint", fingerprint.map(format::short));
    facts
}

/// Compares the training states of the two phases.
fn state(history: &History) -> Option<String> {
    let phase = |name: Phase| {
        let phase = history.phases.get(&name)?;
        let PhaseStart { trained, bytes, .. } = phase.start?;
        (trained > 0 && bytes > 0).then_some((trained as f64, bytes as f64))
    };
    let (calibrated, calibrate_bytes) = phase(Phase::Calibrate)?;
    let (adapted, adapt_bytes) = phase(Phase::Adapt)?;
    Some(format!(
        "Adapting trains {} % of the weights of the calibrate phase, with {} % of its state.",
        percent(adapted / calibrated),
        percent(adapt_bytes / calibrate_bytes)
    ))
}

/// The parts that the report lacks, and the reasons.
fn missing(history: &History, config: &RunConfig) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if history.ticket.is_none() {
        missing.push("The run is unfinished: it has written no ticket yet.");
    }
    if history.mask.is_some() && !history.phases.contains_key(&Phase::Calibrate) {
        missing.push("There is no calibrate phase: the mask was chosen without one.");
    }
    if config.0.get("valid").is_none_or(Value::is_null) {
        missing.push("No validation rows were given: all losses are losses on the training rows.");
    }
    missing
}
