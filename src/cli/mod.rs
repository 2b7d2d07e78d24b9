//! The command line: one file a subcommand, each of which parses, validates and calls the library.

mod banner;
mod base;
mod bench;
mod eval;
mod evaluation;
mod serve;
mod signals;
mod ticket;
mod ticket_folder;
mod train;

use clap::{Parser, Subcommand};

/// LLM inference with one resident base and hot-swapped LoTA tickets.
///
/// Without a subcommand it serves.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a base and its tickets over HTTP (what no subcommand means).
    Serve(Box<serve::ServeArgs>),
    /// Train a ticket: calibrate, choose its weights, adapt them.
    #[command(args_override_self = true)]
    Train(Box<train::TrainArgs>),
    /// Measure a base and tickets on a data file: loss, perplexity, exact match.
    Eval(Box<eval::EvalArgs>),
    /// Measure a server as its clients see it.
    Bench(bench::BenchArgs),
    /// Inspect, verify and import tickets.
    Ticket(ticket::TicketArgs),
}

/// Parses the process's arguments and runs what they ask for.
///
/// # Errors
/// Whatever the subcommand reports; the message is for a person.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        None => serve::run(cli.serve),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Ticket(args)) => ticket::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_serve_is_an_environment_variable_too() {
        for arg in Cli::command().get_arguments() {
            let id = arg.get_id().as_str();
            if !["help", "version"].contains(&id) {
                let env = arg
                    .get_env()
                    .unwrap_or_else(|| panic!("{id} has no variable"));
                let want = format!("TOMBOLA_{}", id.to_uppercase());
                assert_eq!(env.to_str(), Some(want.as_str()));
            }
        }
    }
}
