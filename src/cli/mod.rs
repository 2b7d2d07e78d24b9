//! The command line: one file or folder per subcommand, which parses, validates and calls the
//! library.

mod banner;
mod base;
mod bench;
mod completions;
mod docs;
mod environment;
mod eval;
mod evaluation;
mod hints;
mod key;
mod man;
mod note;
mod serve;
mod signals;
mod ticket;
mod ticket_folder;
mod train;
mod version;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use environment::Variables;
use note::note;

/// Inference server with one resident base and LoTA tickets, hot-swapped per request
#[derive(Debug, Parser)]
#[command(
    name = "tombola",
    version = version::VERSION,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

const EXAMPLES: &str = "\
Examples:
  tombola                                      Serve the built-in base, tickets in adapters/
  tombola train --data rows.jsonl --name sql   Train the ticket `sql`
  tombola eval --data rows.jsonl --ticket sql  Compare the base with the ticket
  tombola bench costs                          Measure steps, swaps and overlays

Without a subcommand, tombola serves: `tombola --port 8080` means `tombola serve --port 8080`.
`tombola SUBCOMMAND --help` shows the flags and examples of a subcommand.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a base and its tickets over HTTP (the default without a subcommand).
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeCommand>),
    /// Train a ticket: calibrate, choose the weights to train, adapt them.
    #[command(args_override_self = true, after_help = train::EXAMPLES)]
    Train(Box<train::TrainArgs>),
    /// Evaluate a base and tickets on a data file: loss, perplexity, greedy answers.
    #[command(after_help = eval::EXAMPLES)]
    Eval(Box<eval::EvalArgs>),
    /// Measure a running server, the costs of steps and tickets, or a device.
    Bench(bench::BenchArgs),
    /// Inspect, verify, import, extract and merge tickets.
    Ticket(ticket::TicketArgs),
    /// Make, list and revoke API keys, and limit tenants.
    Key(key::KeyArgs),
    /// Print a shell completion script.
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
    /// Write the man pages into a folder.
    #[command(after_help = man::EXAMPLES)]
    Man(man::ManArgs),
    /// Generate parts of the documentation.
    #[command(hide = true)]
    Docs(docs::DocsArgs),
}

/// Parses the arguments of the process and runs the subcommand.
///
/// # Errors
/// The error of the subcommand, with the flag that fixes it.
pub fn run() -> anyhow::Result<()> {
    let (cli, variables) = parse();
    let result = match cli.command {
        None => serve::run(cli.serve),
        Some(Command::Serve(args)) => serve::run(args.serve()),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Ticket(args)) => ticket::run(args),
        Some(Command::Key(args)) => key::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Man(args)) => man::run(&args),
        Some(Command::Docs(args)) => docs::run(&args),
    };
    let result = result.map_err(hints::add);
    result.map_err(|error| variables.name_in(error))
}

/// Parses the arguments of the process, or ends it with what clap has to say.
fn parse() -> (Cli, Variables) {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let parsed =
        environment::parse(Cli::command(), &arguments).unwrap_or_else(|error| error.exit());
    for line in &parsed.notes {
        note(line);
    }
    if let Some(("serve", matches)) = parsed.matches.subcommand()
        && serve::names_two_bases(matches)
    {
        let problem = "the base is given twice, as MODEL and as --model; leave one of them out";
        Cli::command()
            .error(ErrorKind::ArgumentConflict, problem)
            .exit()
    }
    let cli = Cli::from_arg_matches(&parsed.matches).unwrap_or_else(|error| error.exit());
    (cli, parsed.variables)
}

/// Definition of the whole command line, built: value names and inherited settings are filled in.
fn definition() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
        // `debug_assert` checks nothing in a release build.
        no_id_twice(&definition());
    }

    fn no_id_twice(command: &clap::Command) {
        let mut ids = BTreeSet::new();
        for arg in command.get_arguments() {
            let (id, name) = (arg.get_id().as_str(), command.get_name());
            assert!(ids.insert(id), "{name} has two arguments {id}");
        }
        command.get_subcommands().for_each(no_id_twice);
    }

    #[test]
    fn every_example_is_a_command_line() {
        let mut examples = 0;
        parse_examples(&definition(), &mut examples);
        assert!(examples > 20, "{examples}");
    }

    /// Parses the lines of `after_help` that begin with `  tombola`, up to a redirection or to a
    /// remark after two spaces.
    fn parse_examples(command: &clap::Command, examples: &mut usize) {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default().replace("\\\n      ", "");
        for line in help.lines() {
            let Some(line) = line.strip_prefix("  tombola") else {
                continue;
            };
            let end = ["  ", " > "].iter().filter_map(|end| line.find(end)).min();
            let words = line[..end.unwrap_or(line.len())].split_whitespace();
            if let Err(error) = Cli::try_parse_from(std::iter::once("tombola").chain(words)) {
                panic!("{line}: {error}");
            }
            *examples += 1;
        }
        for child in command.get_subcommands() {
            parse_examples(child, examples);
        }
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
