//! `tombola eval`: how good a base is on a data file, bare and under tickets.

pub(super) mod report;

use std::path::PathBuf;

use clap::Args;

use super::base::{BaseArgs, ComputeArgs, QuantizedArgs, at_least_one, print};
use super::evaluation::{Candidate, evaluate};
use super::ticket_folder::FolderArgs;
use crate::data::{self, DataOptions, Dataset};
use crate::eval::{EvalOptions, MatchRule};
use report::Report;

/// Arguments of `tombola eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    quantized: QuantizedArgs,
    /// A ticket to evaluate beside the base: its file, or the name of one in the ticket folder. May
    /// be given several times.
    #[arg(long = "ticket", value_name = "FILE|NAME")]
    ticket: Vec<String>,
    #[command(flatten)]
    folder: FolderArgs,
    /// The rows: a JSON object a line, with `messages`, `prompt` and `completion`, or `text`.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Take the first rows only.
    #[arg(long, value_name = "ROWS", value_parser = at_least_one)]
    limit: Option<usize>,
    /// How greedy answers are compared with the rows': text, sql, number, choice or rouge-l.
    #[arg(long = "match", value_name = "RULE", default_value_t)]
    rule: MatchRule,
    /// Tokens that an answer may have.
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = at_least_one)]
    max_tokens: usize,
    /// Tokens of a row; longer rows are cut.
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = at_least_one)]
    max_length: usize,
    /// Compute the loss alone.
    #[arg(long, conflicts_with = "rule")]
    no_answers: bool,
    /// Take tickets made for another base whose names and shapes fit.
    #[arg(long)]
    allow_foreign_base: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Evaluates the base and each ticket, and prints what they gave.
///
/// # Errors
/// The base, a ticket or the data cannot be used; or the evaluation ends early.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    // The base is opened, but the rest is looked at before it is loaded: that takes long.
    let tickets = args.ticket.iter();
    let tickets = tickets.map(|ticket| Candidate::read(args.folder.find(ticket)?));
    let tickets = tickets.collect::<anyhow::Result<Vec<_>>>()?;
    let base = args.base.open()?;
    let data_options = DataOptions {
        max_length: args.max_length.min(base.trained_positions()),
        limit: args.limit,
        end_token: base.end_token()?,
    };
    let dataset = data::read(&args.data, &base.text, &data_options)?;
    tell_cut(&dataset, data_options.max_length);
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

/// Says on standard error which rows are not whole.
pub(super) fn tell_cut(dataset: &Dataset, max_length: usize) {
    let Dataset { cut, left_out, .. } = dataset;
    if *cut > 0 {
        eprintln!(
            "tombola: rows cut to {max_length} tokens (--max-length): {cut}; left out of these, as \
             nothing of their answers is left: {left_out}"
        );
    }
}
