//! What a run came to: the ticket that was written, read back, applied to a fresh base and measured.

use super::args::TrainArgs;
use crate::cli::base::{OpenBase, print};
use crate::cli::eval::report::Report;
use crate::cli::evaluation::{Candidate, evaluate};
use crate::cli::ticket::summary::grouped;
use crate::data::Dataset;
use crate::eval::EvalOptions;
use crate::train::Trained;

/// Measures the written ticket on the validation rows, prints what it is worth, and writes the run's
/// `report.html`.
pub fn show(
    args: &TrainArgs,
    base: OpenBase,
    valid: Option<&Dataset>,
    trained: &Trained,
) -> anyhow::Result<()> {
    let name = base.name.clone();
    let path = args.ticket_path();
    let evaluated = match valid {
        None => Vec::new(),
        Some(valid) => {
            let options = EvalOptions {
                answers: (!args.run.no_answers).then_some(args.run.rule),
                max_tokens: args.run.max_tokens,
            };
            let ticket = vec![Candidate::read(path.clone())?];
            evaluate(base, &args.compute, ticket, false, valid, &options)?
        }
    };
    let mut out = format!(
        "wrote {}: {} nonzeros, {} bytes\n",
        path.display(),
        grouped(trained.ticket.nonzeros()),
        grouped(trained.ticket.file_bytes() as usize),
    );
    if let Some(valid) = valid {
        let table = Report {
            base: &name,
            dataset: valid,
            evaluated: &evaluated,
        };
        out += &format!("\n{table}\n");
    }
    print(&out)
}
