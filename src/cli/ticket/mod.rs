//! `tombola ticket`: look into ticket files, check them against a base, make them from other
//! layouts and from pairs of models.

mod extract;
mod merge;
mod summary;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::HumanCount;
use serde_json::json;

use super::base::{BaseArgs, print};
use crate::ticket::import::import_flat;
use crate::ticket::{DeltaDtype, Digest, Ticket, TicketError, read_bounded};
use summary::Summary;

/// The largest file that the command line reads into memory: 4 billion nonzeros in bf16.
const MAX_FILE_BYTES: u64 = 16 << 30;

/// What made a ticket, as its `training` says.
const TOOL: &str = concat!("tombola ", env!("CARGO_PKG_VERSION"));

/// Arguments of `tombola ticket`.
#[derive(Debug, Args)]
pub struct TicketArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a ticket holds.
    Inspect(InspectArgs),
    /// Check a ticket completely, and that it fits a base.
    Verify(VerifyArgs),
    /// Make a ticket from a flat delta file (per parameter `P.indices` and `P.deltas`).
    Import(ImportArgs),
    /// Make a ticket from two models: where the tuned one moved farthest from its base.
    Extract(extract::ExtractArgs),
    /// Make one ticket of several: the scaled sum of their deltas.
    Merge(merge::MergeArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// The ticket file.
    file: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The ticket file.
    file: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Accept a ticket made for another base if every name and shape fits.
    #[arg(long)]
    allow_foreign_base: bool,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The flat delta file.
    file: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    to: OutputArgs,
    /// Where the deltas come from, in plain words; kept under `training`.
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
}

/// The ticket that a command writes.
#[derive(Debug, Args)]
struct OutputArgs {
    /// The name that requests will use.
    #[arg(long)]
    name: String,
    /// The ticket file to write; replaced if it exists.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How deltas are stored.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// Licence of the ticket, for example `CC-BY-4.0`.
    #[arg(long)]
    license: Option<String>,
}

impl OutputArgs {
    /// Writes the ticket and says what it holds.
    fn write(&self, ticket: &Ticket) -> anyhow::Result<String> {
        ticket.write(&self.out)?;
        let out = self.out.display();
        Ok(format!("wrote {out}\n\n{}", Summary::new(ticket)))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

impl From<Dtype> for DeltaDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F32 => Self::F32,
        }
    }
}

/// Runs `tombola ticket`.
///
/// # Errors
/// The file is not a valid ticket (or flat file), does not fit the base, or cannot be read or
/// written; two models do not compare.
pub fn run(args: TicketArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Inspect(args) => inspect(&args),
        Command::Verify(args) => verify(&args),
        Command::Import(args) => import(args),
        Command::Extract(args) => extract::run(args),
        Command::Merge(args) => merge::run(args),
    }
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let ticket = read(&args.file)?;
    let summary = Summary::new(&ticket);
    if args.json {
        let json = serde_json::to_string_pretty(&summary)?;
        return print(&format!("{json}\n"));
    }
    print(&summary.to_string())
}

fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    // The file first: a broken one is told without loading a base.
    let ticket = read(&args.file)?;
    let base = args.base.manifest()?;
    let ticket = ticket
        .bind(&base, args.allow_foreign_base)
        .map_err(|e| naming(&args.file, e))?;
    let metadata = ticket.metadata();
    let foreign = metadata.base_fingerprint != base.fingerprint;
    let density = ticket.nonzeros() as f64 / base.adaptable_weights() as f64;
    let mut text = format!(
        "ok: `{}` fits {}`{}`\n    {} nonzeros in {} parameters, density {:.3} %\n",
        metadata.name,
        if foreign { "the foreign base " } else { "" },
        base.name,
        HumanCount(ticket.nonzeros() as u64),
        ticket.tensors().len(),
        100.0 * density,
    );
    if (metadata.density - density).abs() > 0.01 * density {
        let stated = 100.0 * metadata.density;
        text += &format!("    note: the file states a density of {stated:.3} %\n");
    }
    print(&text)
}

fn import(args: ImportArgs) -> anyhow::Result<()> {
    let file = read_bounded(&args.file, MAX_FILE_BYTES).map_err(|e| naming(&args.file, e))?;
    let base = args.base.manifest()?;
    let mut training = json!({
        "imported_sha256": Digest::of(&file).to_string(),
        "tool": TOOL,
    });
    if let Some(source) = args.source {
        training["source"] = source.into();
    }
    let (name, dtype) = (&args.to.name, args.to.dtype.into());
    let license = args.to.license.clone();
    let ticket = import_flat(&file, &base, name, dtype, license, Some(training))
        .map_err(|e| naming(&args.file, e))?;
    print(&args.to.write(&ticket)?)
}

/// Reads a ticket file, whatever its size within reason.
pub(super) fn read(path: &Path) -> anyhow::Result<Ticket> {
    Ticket::read(path, MAX_FILE_BYTES).map_err(|e| naming(path, e))
}

/// Puts the file's name before what is wrong with it, where the message lacks it.
pub(super) fn naming(path: &Path, error: TicketError) -> anyhow::Error {
    match error {
        TicketError::Io { .. } | TicketError::NotAFile(_) => error.into(),
        _ => anyhow::Error::new(error).context(path.display().to_string()),
    }
}
