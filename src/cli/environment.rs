//! The environment as input of the command line.
//!
//! clap takes each variable as it is. A deployment sets some that nobody meant: compose files leave
//! empty ones, and Kubernetes sets `TOMBOLA_PORT=tcp://…` for a service called `tombola`. Those are
//! taken out before clap reads them, and so are the variables of a command that does not run.

use std::ffi::{OsStr, OsString};

use clap::builder::{OsStr as ClapStr, Resettable};
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Former names of variables, and their present ones.
const FORMER: [(&str, &str); 1] = [("TOMBOLA_ALLOWED_ORIGIN", "TOMBOLA_CORS_ORIGIN")];

/// What links of Kubernetes and Docker to a service begin with.
const LINK_SCHEMES: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// A parsed command line.
pub struct Parsed {
    pub matches: ArgMatches,
    /// What is to be said of variables that were ignored.
    pub notes: Vec<String>,
    /// Where values of the command that runs come from.
    pub variables: Variables,
}

/// The flags whose values come from variables.
#[derive(Debug, Default)]
pub struct Variables(Vec<(String, String)>);

/// Parses a command line, of which `arguments` are all but the program's name.
///
/// # Errors
/// That of clap, which names the variable if the value came from one.
pub fn parse(command: Command, arguments: &[OsString]) -> Result<Parsed, Error> {
    let mut path = Vec::new();
    for name in arguments.iter().map_while(|argument| argument.to_str()) {
        let found = path
            .last()
            .copied()
            .unwrap_or(&command)
            .find_subcommand(name);
        let Some(found) = found else { break };
        path.push(found);
    }
    let depth = path.len();
    let path: Vec<String> = path.into_iter().map(|c| c.get_name().to_owned()).collect();
    let mut notes = Vec::new();
    let mut command = prepare(command, &path, &mut notes);
    let program = OsString::from(command.get_name());
    let words = std::iter::once(&program).chain(arguments);
    let matches = match command.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        Err(error) => {
            let running = running(&command, &path);
            return Err(name_variable(error, running, arguments));
        }
    };
    let mut of_running = &matches;
    for _ in 0..depth {
        of_running = of_running
            .subcommand()
            .map_or(of_running, |(_, inner)| inner);
    }
    let variables = Variables::of(running(&command, &path), of_running);
    Ok(Parsed {
        matches,
        notes,
        variables,
    })
}

/// The command at the end of `path`.
fn running<'a>(command: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(command, |command, name| {
        command.find_subcommand(name).unwrap_or(command)
    })
}

/// The command, without the variables that do not count. The subcommand at the end of `path` runs.
fn prepare(command: Command, path: &[String], notes: &mut Vec<String>) -> Command {
    let runs = path.is_empty();
    let command = command.mut_args(|arg| {
        let arg = numbers_may_be_negative(arg);
        let Some(name) = arg.get_env().map(OsStr::to_owned) else {
            return arg;
        };
        match variable(&name) {
            Some(_) if !runs => arg.env(Resettable::<ClapStr>::Reset),
            Some(value) if is_link(&value) => {
                notes.push(format!(
                    "{}={} is the link of a Kubernetes or Docker service, not a value of --{}: \
                     ignored",
                    name.display(),
                    value.display(),
                    arg.get_long().unwrap_or_default()
                ));
                arg.env(Resettable::<ClapStr>::Reset)
            }
            Some(_) => arg,
            None => match former(&name) {
                Some(former) if runs && variable(OsStr::new(former)).is_some() => arg.env(former),
                _ => arg.env(Resettable::<ClapStr>::Reset),
            },
        }
    });
    command.mut_subcommands(|child| match path.split_first() {
        Some((name, rest)) if child.get_name() == name => prepare(child, rest, notes),
        _ => child,
    })
}

/// Lets the parser of an argument judge `-1`, which clap would call an unknown flag.
fn numbers_may_be_negative(arg: Arg) -> Arg {
    let takes_values = arg.get_action().takes_values();
    arg.allow_negative_numbers(takes_values)
}

/// Value of a variable; an empty one counts as unset.
fn variable(name: &OsStr) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn former(name: &OsStr) -> Option<&'static str> {
    let found = FORMER.iter().find(|(_, present)| name == *present);
    found.map(|(former, _)| *former)
}

fn is_link(value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    LINK_SCHEMES.iter().any(|scheme| value.starts_with(scheme))
}

/// Names the variable in an error about its value.
fn name_variable(mut error: Error, command: &Command, arguments: &[OsString]) -> Error {
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        return error;
    }
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let of_error = |arg: &&Arg| arg.to_string() == *shown;
    let Some(arg) = command.get_arguments().find(of_error) else {
        return error;
    };
    let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) else {
        return error;
    };
    let names = arg
        .get_all_aliases()
        .unwrap_or_default()
        .into_iter()
        .chain([long]);
    let mut flags = names.map(|name| format!("--{name}"));
    let typed = flags.any(|flag| {
        let begins = |word: &OsString| {
            let word = word.to_string_lossy();
            word.strip_prefix(&flag)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        arguments.iter().any(begins)
    });
    if !typed {
        let source = format!("{} (the variable of {shown})", variable.display());
        error.insert(ContextKind::InvalidArg, ContextValue::String(source));
    }
    error
}

impl Variables {
    fn of(command: &Command, matches: &ArgMatches) -> Self {
        let mut found = Vec::new();
        for arg in command.get_arguments() {
            let from_variable = || {
                let source = matches.value_source(arg.get_id().as_str());
                source == Some(ValueSource::EnvVariable)
            };
            if let (Some(name), Some(long)) = (arg.get_env(), arg.get_long())
                && from_variable()
            {
                found.push((format!("--{long}"), name.display().to_string()));
            }
        }
        Self(found)
    }

    /// Appends to an error the variables that the flags in its message come from.
    pub fn name_in(&self, error: anyhow::Error) -> anyhow::Error {
        let message = format!("{error:#}");
        let word = |c: char| c.is_alphanumeric() || c == '-';
        let named: Vec<String> = self
            .0
            .iter()
            .filter(|(flag, _)| message.split(|c| !word(c)).any(|found| found == flag))
            .map(|(flag, variable)| format!("{flag} comes from {variable}"))
            .collect();
        if named.is_empty() {
            return error;
        }
        anyhow::anyhow!("{message} ({})", named.join(", "))
    }
}
