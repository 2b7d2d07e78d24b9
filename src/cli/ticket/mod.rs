//! `tombola ticket`: inspects and verifies ticket files, and makes tickets from flat delta files,
//! from pairs of models and from other tickets.

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
use summary::{Summary, count_parameters, percent};

/// Size limit of a file that the command line reads into memory, in bytes: about 4 billion nonzeros
/// in bf16.
const MAX_FILE_BYTES: u64 = 16 << 30;

/// Name and version of the program, for the `training` metadata of a ticket.
const TOOL: &str = concat!("tombola ", env!("CARGO_PKG_VERSION"));

/// Arguments of `tombola ticket`.
#[derive(Debug, Args)]
pub struct TicketArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the contents of a ticket: metadata, nonzeros per projection and per layer.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Validate a ticket completely, and check that it fits a base.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Convert a flat delta file (`P.indices` and `P.deltas` per parameter `P`) into a ticket.
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Make a ticket of the largest differences between a base and a model tuned from it.
    #[command(after_help = extract::EXAMPLES)]
    Extract(extract::ExtractArgs),
    /// Merge tickets into one, which holds the scaled sum of their deltas.
    #[command(after_help = merge::EXAMPLES)]
    Merge(merge::MergeArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Ticket file.
    file: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  tombola ticket inspect adapters/sql.safetensors
  tombola ticket inspect adapters/sql.safetensors --json";

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Ticket file.
    file: PathBuf,
    /// Accept a ticket made for another base if every name and shape fits.
    #[arg(long)]
    allow_foreign_base: bool,
    #[command(flatten)]
    base: BaseArgs,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  tombola ticket verify adapters/sql.safetensors
  tombola ticket verify mine.safetensors --model Qwen/Qwen2.5-0.5B-Instruct";

#[derive(Debug, Args)]
struct ImportArgs {
    /// Flat delta file, in safetensors layout.
    file: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    /// Origin of the deltas in plain words, kept in the ticket's `training` metadata.
    #[arg(long, value_name = "TEXT", help_heading = OUTPUT)]
    source: Option<String>,
}

const IMPORT_EXAMPLES: &str = "\
Examples:
  tombola ticket import deltas.safetensors --name mine --out adapters/mine.safetensors";

/// Name, file and licence of the ticket that a command writes.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT)]
struct OutputArgs {
    /// Name of the ticket, which requests use.
    #[arg(long)]
    name: String,
    /// Ticket file to write; replaced if it exists.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Licence of the ticket, for example `CC-BY-4.0`.
    #[arg(long)]
    license: Option<String>,
}

/// Data type of the deltas that a command writes.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = OUTPUT)]
struct DtypeArgs {
    /// Data type of the stored deltas: bf16 or f32.
    #[arg(long, value_enum, default_value = "bf16", hide_possible_values = true)]
    dtype: Dtype,
}

// Heading of `--help`, and of the flag tables in docs/.
const OUTPUT: &str = "Output";

impl OutputArgs {
    /// Writes the ticket, and returns a summary to print.
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
/// The file is not a valid ticket (or flat delta file), does not fit the base, or cannot be read or
/// written; or two models differ in architecture.
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
    // The ticket is read first, so that a broken one fails before the base is fetched.
    let ticket = read(&args.file)?;
    let base = args.base.manifest()?;
    let ticket = ticket
        .bind(&base, args.allow_foreign_base)
        .map_err(|error| name_file(&args.file, error))?;
    let metadata = ticket.metadata();
    let foreign = metadata.base_fingerprint != base.fingerprint;
    let density = ticket.nonzeros() as f64 / base.adaptable_weights() as f64;
    let mut text = format!(
        "ok: `{}` fits {}`{}`\n    {} nonzeros in {}, density {}\n",
        metadata.name,
        if foreign { "the foreign base " } else { "" },
        base.name,
        HumanCount(ticket.nonzeros() as u64),
        count_parameters(ticket.tensors().len()),
        percent(density),
    );
    if (metadata.density - density).abs() > 0.01 * density {
        let stated = percent(metadata.density);
        text += &format!("    note: the file states a density of {stated}\n");
    }
    print(&text)
}

fn import(args: ImportArgs) -> anyhow::Result<()> {
    let file =
        read_bounded(&args.file, MAX_FILE_BYTES).map_err(|error| name_file(&args.file, error))?;
    let base = args.base.manifest()?;
    let mut training = json!({
        "imported_sha256": Digest::of(&file).to_string(),
        "tool": TOOL,
    });
    if let Some(source) = args.source {
        training["source"] = source.into();
    }
    let (name, dtype) = (&args.output.name, args.dtype.dtype.into());
    let license = args.output.license.clone();
    let ticket = import_flat(&file, &base, name, dtype, license, Some(training))
        .map_err(|error| name_file(&args.file, error))?;
    print(&args.output.write(&ticket)?)
}

/// Reads a ticket file of up to [`MAX_FILE_BYTES`].
pub(super) fn read(path: &Path) -> anyhow::Result<Ticket> {
    Ticket::read(path, MAX_FILE_BYTES).map_err(|error| name_file(path, error))
}

/// Adds the name of the file to an error that does not mention it.
pub(super) fn name_file(path: &Path, error: TicketError) -> anyhow::Error {
    match error {
        TicketError::Io { .. } | TicketError::NotAFile(_) => error.into(),
        _ => anyhow::Error::new(error).context(path.display().to_string()),
    }
}
