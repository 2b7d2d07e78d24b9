//! `tombola eval`: loss and greedy answers of a base on a data file, bare and with tickets.

use std::path::PathBuf;

use clap::Args;

use super::base::{BaseArgs, ComputeArgs, QuantizedArgs, at_least_one, print};
use super::evaluation::{Candidate, Report, evaluate, report_cut_rows};
use super::ticket_folder::FolderArgs;
use crate::data::{self, DataOptions};
use crate::eval::{EvalOptions, MatchRule};

/// Arguments of `tombola eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    quantized: QuantizedArgs,
    /// Ticket to evaluate in addition to the base: its file, or its name in the ticket folder;
    /// repeatable.
    #[arg(long = "ticket", value_name = "FILE|NAME", help_heading = TICKETS)]
    ticket: Vec<String>,
    #[command(flatten)]
    folder: FolderArgs,
    /// Accept tickets made for another base if every name and shape fits.
    #[arg(long, help_heading = TICKETS)]
    allow_foreign_base: bool,
    /// Rows to evaluate: one JSON object per line, with `messages`, `prompt` and `completion`, or
    /// `text`.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    data: PathBuf,
    /// Number of rows to use, from the start of the file [default: all].
    #[arg(long, value_name = "ROWS", value_parser = at_least_one, help_heading = DATA)]
    limit: Option<usize>,
    /// Longest row, in tokens; longer rows are cut.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "1024",
        value_parser = at_least_one,
        help_heading = DATA,
    )]
    max_length: usize,
    /// Rule that compares greedy answers with those of the rows: text, sql, number, choice or
    /// rouge-l.
    #[arg(long = "match", value_name = "RULE", default_value_t, help_heading = ANSWERS)]
    rule: MatchRule,
    /// Longest answer, in tokens.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "256",
        value_parser = at_least_one,
        help_heading = ANSWERS,
    )]
    max_tokens: usize,
    /// Compute the loss only, without generating answers.
    #[arg(long, conflicts_with = "rule", help_heading = ANSWERS)]
    no_answers: bool,
    /// Print JSON instead of a table.
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola eval --data dev.jsonl --ticket sql --match sql
  tombola eval --data dev.jsonl --ticket a.safetensors --ticket b.safetensors --json
  tombola eval --data text.jsonl --no-answers --limit 200    Loss of the bare base";

// Headings of `--help`, and of the flag tables in docs/.
const TICKETS: &str = "Tickets";
const DATA: &str = "Data";
const ANSWERS: &str = "Answers";
const OUTPUT: &str = "Output";

/// Evaluates the base and each ticket, and prints the results.
///
/// # Errors
/// The base, a ticket or the data cannot be used, or the evaluation ends early.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    // Tickets and data are read before the base is loaded, which takes long.
    let tickets = args
        .ticket
        .iter()
        .map(|ticket| Candidate::read(args.folder.find(ticket)?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let base = args.base.open()?;
    let data_options = DataOptions {
        max_length: args.max_length.min(base.trained_positions()),
        limit: args.limit,
        end_token: base.end_token()?,
    };
    let dataset = data::read(&args.data, &base.text, &data_options)?;
    report_cut_rows(&dataset, data_options.max_length);
    let options = EvalOptions {
        answers: (!args.no_answers).then_some(args.rule),
        max_tokens: args.max_tokens,
    };
    let base_name = base.name.clone();
    let evaluated = evaluate(
        base,
        &args.compute,
        args.quantized,
        tickets,
        args.allow_foreign_base,
        &dataset,
        &options,
    )?;
    let report = Report {
        base: &base_name,
        dataset: &dataset,
        evaluated: &evaluated,
    };
    if args.json {
        return print(&format!("{:#}\n", report.json()));
    }
    print(&report.to_string())
}
