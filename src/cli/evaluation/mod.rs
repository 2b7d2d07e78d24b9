//! Evaluation of a base and tickets on a data file, through an engine. `tombola eval` and the end
//! of `tombola train` run it.

mod report;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

pub use report::Report;

use super::base::{ComputeArgs, OpenBase, QuantizedArgs, progress_bar};
use super::note::note;
use super::ticket;
use crate::data::Dataset;
use crate::engine::{self, EngineConfig, TicketMode};
use crate::eval::{self, EvalOptions, EvalResult};
use crate::metrics::Metrics;
use crate::model::{BLOCK, Base, LoadOptions};
use crate::registry::Lease;
use crate::ticket::{BaseManifest, Ticket};

/// Sequences that run at once.
const SEQUENCES: usize = 64;
/// Tokens per step, as in serving; it bounds the logits in memory.
const STEP_TOKENS: usize = 512;
/// Sequences that wait while [`SEQUENCES`] run.
const QUEUE: usize = 3 * SEQUENCES;
/// Bytes for keys and values, unless the longest row needs more.
const CACHE_BYTES: usize = 1 << 30;

/// A ticket to evaluate, read but not yet checked against the base.
pub struct Candidate {
    name: String,
    path: PathBuf,
    ticket: Ticket,
}

impl Candidate {
    /// Reads a ticket file; its name in the report is that of the file, without extension.
    pub fn read(path: PathBuf) -> anyhow::Result<Self> {
        let stem = path.file_stem().unwrap_or_default();
        Ok(Self {
            name: stem.to_string_lossy().into_owned(),
            ticket: ticket::read(&path)?,
            path,
        })
    }

    /// Name of the ticket in the report.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A merged ticket, under a new name.
    pub fn merged(name: String, path: PathBuf, ticket: Ticket) -> Self {
        Self { name, path, ticket }
    }

    fn lease(self, base: &BaseManifest, allow_foreign_base: bool) -> anyhow::Result<Lease> {
        let bound = self
            .ticket
            .bind(base, allow_foreign_base)
            .map_err(|error| ticket::name_file(&self.path, error))?;
        Ok(Lease::of_file(&self.name, self.path, bound))
    }
}

/// Result of one evaluation.
pub struct Evaluated {
    /// Name of the ticket; `None` for the bare base.
    pub ticket: Option<String>,
    pub result: EvalResult,
}

/// Loads the base and evaluates it on the data, first bare and then with each ticket.
///
/// # Errors
/// The base cannot be loaded, a ticket was made for another base, or an evaluation ends early.
pub fn evaluate(
    base: OpenBase,
    compute: &ComputeArgs,
    quantized: QuantizedArgs,
    tickets: Vec<Candidate>,
    allow_foreign_base: bool,
    dataset: &Dataset,
    options: &EvalOptions,
) -> anyhow::Result<Vec<Evaluated>> {
    let resident = base.load(&LoadOptions {
        keep_quantized: quantized.keep_quantized,
        ..compute.load_options()
    })?;
    let leases = tickets
        .into_iter()
        .map(|ticket| ticket.lease(&resident.manifest, allow_foreign_base))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let config = EngineConfig {
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: STEP_TOKENS,
        max_queue: QUEUE,
        kv_cache_bytes: cache_bytes(&resident, dataset, options),
        enable_prefix_caching: true,
        ticket_mode: if quantized.keep_quantized {
            TicketMode::Overlay
        } else {
            TicketMode::Apply
        },
        costs: None,
        threads: compute.threads(),
        enforce_eager: false,
        end_tokens: base.end_tokens(),
    };
    let metrics = Arc::new(Metrics::new(resident.max_positions)?);
    let (engine, _thread) = engine::spawn(resident, &config, metrics)?;
    let text = Arc::clone(&base.text);
    // The weights are resident: release the files.
    drop(base);
    let bare = std::iter::once(None);
    let each = bare.chain(leases.iter().map(Some)).map(|lease| {
        let name = lease.map(Lease::alias);
        let result = with_bar(name, |progress| {
            eval::evaluate(&engine, lease, dataset, &text, options, progress)
        });
        let whose = || name.map_or("the base".to_owned(), |name| format!("ticket `{name}`"));
        Ok(Evaluated {
            result: result.with_context(|| format!("evaluating {}", whose()))?,
            ticket: name.map(str::to_owned),
        })
    });
    each.collect()
}

/// Runs an evaluation with a progress bar on standard error.
fn with_bar<T>(name: Option<&str>, run: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T) -> T {
    let what = format!("evaluating {}", name.unwrap_or("the base"));
    let bar = progress_bar(what, "{pos}/{len} sequences", 0);
    let result = run(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    result
}

/// Bytes for keys and values: [`CACHE_BYTES`], or more if the longest row and its answer need it.
fn cache_bytes(base: &Base, dataset: &Dataset, options: &EvalOptions) -> usize {
    let rows = dataset.examples.iter().map(|example| example.tokens.len());
    let longest = rows.max().unwrap_or(0).saturating_add(options.max_tokens);
    let blocks = longest.min(base.max_positions).div_ceil(BLOCK);
    CACHE_BYTES.max(blocks * base.block_bytes())
}

/// Reports on standard error the rows that were cut or left out.
pub fn report_cut_rows(dataset: &Dataset, max_length: usize) {
    let Dataset { cut, left_out, .. } = dataset;
    if *cut > 0 {
        note(format_args!(
            "tombola: rows cut to {max_length} tokens (--max-length): {cut}; of these, {left_out} \
             are left out, as nothing of their answers is left"
        ));
    }
}
