//! `tombola docs`: the tables of the documentation that the code itself knows.
//!
//! A page includes the flags of a subcommand, or a table of request fields, between a pair of
//! markers, each on its own line:
//!
//! ```text
//! <!-- flags: ticket import -->
//! <!-- end flags -->
//! <!-- fields: refused -->
//! <!-- end fields -->
//! ```

mod fields;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Arg, Args, Command, Subcommand};

use super::base::print;

/// Arguments of `tombola docs`.
#[derive(Debug, Args)]
pub struct DocsArgs {
    #[command(subcommand)]
    command: DocsCommand,
}

#[derive(Debug, Subcommand)]
enum DocsCommand {
    /// Print the flag tables as Markdown, or write them and the tables of request fields into the
    /// pages.
    Flags(FlagsArgs),
}

#[derive(Debug, Args)]
struct FlagsArgs {
    /// Write the tables between the markers of the pages instead of printing them.
    #[arg(long)]
    write: bool,
    /// Folder of the pages.
    #[arg(long, value_name = "DIR", default_value = "docs")]
    folder: PathBuf,
}

const BEGIN: &str = "<!-- flags: ";
const END: &str = "<!-- end flags -->";

/// Prints or writes the tables.
///
/// # Errors
/// A page cannot be read or written, or a marker names no subcommand or lacks its end.
pub fn run(args: &DocsArgs) -> anyhow::Result<()> {
    let DocsCommand::Flags(args) = &args.command;
    let root = super::definition();
    if !args.write {
        let section = |(name, table)| format!("## tombola {name}\n\n{table}\n");
        return print(&tables(&root).into_iter().map(section).collect::<String>());
    }
    for path in pages(&args.folder)? {
        let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let filled = fill(&page, &root).with_context(|| path.display().to_string())?;
        if filled != page {
            fs::write(&path, filled).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Markdown pages of a folder, sorted by name.
fn pages(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// The page with the table of every marker pair filled in.
fn fill(page: &str, root: &Command) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(page.len());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        filled += line;
        filled.push('\n');
        let (table, end) = if let Some(name) = marker(line, BEGIN) {
            let command = find(root, name)
                .with_context(|| format!("`{line}`: there is no subcommand `{name}`"))?;
            (table(command), END)
        } else if let Some(name) = marker(line, fields::BEGIN) {
            let table = fields::table(name)
                .with_context(|| format!("`{line}`: there is no table of fields `{name}`"))?;
            (table, fields::END)
        } else {
            continue;
        };
        if !lines.any(|line| line == end) {
            bail!("`{line}` is not followed by `{end}`");
        }
        filled += &format!("\n{table}\n{end}\n");
    }
    Ok(filled)
}

/// What a line asks for, if the line begins a marker pair of this kind.
fn marker<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    line.strip_prefix(begin)?.strip_suffix(" -->")
}

/// A subcommand by its path, such as `ticket import`.
fn find<'a>(root: &'a Command, path: &str) -> Option<&'a Command> {
    path.split(' ')
        .try_fold(root, |command, name| command.find_subcommand(name))
}

/// Paths and tables of the visible subcommands that have flags, in the order of `--help`.
fn tables(root: &Command) -> Vec<(String, String)> {
    let mut tables = Vec::new();
    collect(root, "", &mut tables);
    tables
}

fn collect(command: &Command, path: &str, tables: &mut Vec<(String, String)>) {
    for child in command.get_subcommands() {
        if child.is_hide_set() || child.get_name() == "help" {
            continue;
        }
        let path = format!("{path} {}", child.get_name());
        let path = path.trim_start();
        if arguments(child).any(|arg| arg.get_long().is_some()) {
            tables.push((path.to_owned(), table(child)));
        }
        collect(child, path, tables);
    }
}

/// Arguments of a command, except `--help` and `--version`.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
}

/// Markdown table of a command's arguments, grouped as `--help` groups them.
fn table(command: &Command) -> String {
    let has_env = arguments(command).any(|arg| arg.get_env().is_some());
    let line = |[flag, default, env, meaning]: [&str; 4]| {
        let env = if has_env {
            format!(" {env} |")
        } else {
            String::new()
        };
        format!("| {flag} | {default} |{env} {meaning} |\n")
    };
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in arguments(command) {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    let mut table = line(["flag", "default", "variable", "meaning"]) + &line(["---"; 4]);
    for heading in headings {
        if let Some(heading) = heading {
            table += &line([&format!("**{heading}**"), "", "", ""]);
        }
        for arg in arguments(command).filter(|arg| arg.get_help_heading() == heading) {
            let (meaning, default) = meaning_and_default(arg);
            let env = arg
                .get_env()
                .map(|env| format!("`{}`", env.to_string_lossy()));
            table += &line([&flag(arg), &default, &env.unwrap_or_default(), &meaning]);
        }
    }
    table
}

/// An argument as it is typed, such as `--model BASE` or `FILE`.
fn flag(arg: &Arg) -> String {
    let value = arg.get_value_names().unwrap_or_default().join(" ");
    let text = match arg.get_long() {
        None => value,
        Some(long) if arg.get_action().takes_values() => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
    };
    format!("`{}`", text.replace('|', "\\|"))
}

/// Help text and default of an argument. A default that only the library knows stands at the end
/// of the help text, as `[default: all cores]`.
fn meaning_and_default(arg: &Arg) -> (String, String) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.replace('|', "\\|");
    let stated = help
        .strip_suffix(']')
        .and_then(|help| help.rsplit_once(" [default: "));
    let (meaning, default) = match stated {
        Some((meaning, default)) => (meaning.to_owned(), default.to_owned()),
        None => (help, default(arg)),
    };
    (meaning + ".", default)
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|v| v.to_string_lossy())
        .collect();
    if arg.is_required_set() {
        "required".to_owned()
    } else if !arg.get_action().takes_values() {
        "off".to_owned()
    } else if values.is_empty() {
        "none".to_owned()
    } else {
        format!("`{}`", values.join(","))
    }
}

#[cfg(test)]
mod tests;
