//! Outcome of a training run: reads the written ticket back, applies it to a fresh base, measures
//! and reports it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::HumanCount;

use super::args::TrainArgs;
use crate::cli::banner::example;
use crate::cli::base::{OpenBase, QuantizedArgs, print};
use crate::cli::evaluation::{Candidate, Evaluated, Report, evaluate};
use crate::cli::ticket;
use crate::cli::ticket_folder::ticket_file;
use crate::data::{Dataset, Example};
use crate::eval::EvalOptions;
use crate::text::Text;
use crate::ticket::DeltaDtype;
use crate::ticket::merge::merge;
use crate::train::Trained;
use crate::train::report::{ReportInput, ReportResult, Sample, read_events, render};

/// Where `tombola serve` listens by default.
const DEFAULT_URL: &str = "http://127.0.0.1:8000";
/// Number of answers in the report.
const SAMPLES: usize = 8;

/// Evaluates the written ticket on the validation rows, prints the results, and writes
/// `report.html` into the folder of the run.
///
/// # Errors
/// The base or the ticket cannot be read back, the evaluation ends early, or the report cannot be
/// written.
pub fn report(
    args: &TrainArgs,
    base: OpenBase,
    valid: Option<&Dataset>,
    trained: &Trained,
) -> anyhow::Result<()> {
    let (name, text) = (base.name.clone(), Arc::clone(&base.text));
    let path = args.ticket_path();
    let evaluated = match valid {
        None => Vec::new(),
        Some(valid) => {
            let options = EvalOptions {
                answers: (!args.run.no_answers).then_some(args.run.rule),
                max_tokens: args.run.max_tokens,
            };
            let tickets = candidates(args)?;
            let dense = QuantizedArgs::default();
            evaluate(base, &args.compute, dense, tickets, false, valid, &options)?
        }
    };
    let samples = valid.map(|valid| samples(valid, &evaluated, &text));
    let report = write_report(args, &evaluated, &samples.unwrap_or_default())?;
    let mut out = format!(
        "wrote {}: {} nonzeros, {} bytes\n",
        path.display(),
        HumanCount(trained.ticket.nonzeros() as u64),
        HumanCount(trained.ticket.file_bytes()),
    );
    if let Some(valid) = valid {
        let table = Report {
            base: &name,
            dataset: valid,
            evaluated: &evaluated,
        };
        out += &format!("\n{table}\n");
    }
    out += &format!("report: {}\n", report.display());
    out += &usage(args, text.has_chat_template());
    print(&out)
}

/// How to use the new ticket: a server of its folder, and a request for it.
fn usage(args: &TrainArgs, chat: bool) -> String {
    let folder = args.out.display();
    format!(
        "a running `tombola serve` on {folder} serves it within seconds; try it:\n  {}\n",
        example(DEFAULT_URL, &args.name, chat, false)
    )
}

/// The tickets to evaluate in addition to the base: the written one or, if it was trained on top of
/// another ticket, the other one and the two merged.
fn candidates(args: &TrainArgs) -> anyhow::Result<Vec<Candidate>> {
    let path = args.ticket_path();
    let Some(below) = &args.method.on_top_of else {
        return Ok(vec![Candidate::read(path)?]);
    };
    let manifest = args.base.manifest()?;
    let below = ticket_file(below, &args.out)?;
    let bind = |path| {
        let bound = ticket::read(path)?
            .bind(&manifest, false)
            .map_err(|error| ticket::name_file(path, error))?;
        anyhow::Ok((bound, 1.0))
    };
    let bound = [bind(&below)?, bind(&path)?];
    let both = merge(&bound, &manifest, &args.name, DeltaDtype::F32, None)?;
    let below = Candidate::read(below)?;
    let name = format!("{} + {}", below.name(), args.name);
    Ok(vec![below, Candidate::merged(name, path, both)])
}

/// The first rows that have a prompt and an answer, with the answers of base and ticket.
fn samples(valid: &Dataset, evaluated: &[Evaluated], text: &Text) -> Vec<Sample> {
    let [base, .., ticket] = evaluated else {
        return Vec::new();
    };
    let answered = valid.examples.iter().filter_map(|example: &Example| {
        let prompt = text.decode(example.prompt()?, true).ok()?;
        Some((prompt, example.answer.clone()?))
    });
    let answers = base.result.texts.iter().zip(&ticket.result.texts);
    let rows = answered.zip(answers).take(SAMPLES);
    rows.map(|((prompt, expected), (base, ticket))| Sample {
        prompt,
        expected,
        base: base.clone(),
        ticket: ticket.clone(),
    })
    .collect()
}

fn write_report(
    args: &TrainArgs,
    evaluated: &[Evaluated],
    samples: &[Sample],
) -> anyhow::Result<PathBuf> {
    let folder = args.run_dir();
    let path = folder.join("config.json");
    let config = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let config = serde_json::from_str(&config).with_context(|| path.display().to_string())?;
    let events = read_events(&folder.join("metrics.jsonl"))?;
    let result = |evaluated: &Evaluated| {
        let answers = evaluated.result.answers;
        let score = answers.and_then(|answers| Some((answers.rule, answers.mean()?)));
        ReportResult {
            label: evaluated.ticket.clone().unwrap_or("base".to_owned()),
            loss: evaluated.result.loss,
            perplexity: evaluated.result.perplexity(),
            score: score.map(|(rule, mean)| (rule.measure().to_owned(), mean)),
        }
    };
    let results: Vec<ReportResult> = evaluated.iter().map(result).collect();
    let page = render(&ReportInput {
        config: &config,
        events: &events,
        results: &results,
        samples,
    });
    let path = folder.join("report.html");
    fs::write(&path, page).with_context(|| path.display().to_string())?;
    Ok(path)
}
