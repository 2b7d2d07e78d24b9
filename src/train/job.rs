//! A whole run, seen from outside: what it needs and what it makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::config::{Score, TrainConfig};
use super::error::TrainError;
use super::event::Event;
use super::phase::Log;
use super::run::Run;
use super::run_folder::{RunFolder, SavedState};
use super::start::Start;
use crate::data::{Dataset, Example};
use crate::kernels;
use crate::model::{Base, Checkpoint};
use crate::ticket::{BoundTicket, Digest, Metadata, TensorDelta, Ticket};

/// Where the mask comes from.
pub enum MaskSource<'a> {
    /// The configuration's score, after calibrating where it wants that.
    Score,
    /// `|w − w_0|` of a checkpoint that somebody else tuned.
    Checkpoint {
        checkpoint: &'a Checkpoint,
        fingerprint: Digest,
    },
    /// The positions of a ticket.
    Ticket(Arc<BoundTicket>),
}

/// Takes the parameters of a calibrated base, by checkpoint name; says what went wrong.
pub type Keep<'a> = dyn FnMut(&BTreeMap<String, Tensor>) -> Result<(), String> + Send + 'a;

/// Hears what happens.
pub type Observe<'a> = dyn FnMut(&Event) + Send + 'a;

/// All that a run needs.
pub struct Job<'a> {
    pub config: TrainConfig,
    pub base: Base,
    /// The base's own: what the weights go back to.
    pub checkpoint: &'a Checkpoint,
    pub train: &'a Dataset,
    /// Rows whose loss is watched; nothing is learned from them.
    pub valid: Option<&'a Dataset>,
    pub mask: MaskSource<'a>,
    /// Tickets whose positions the mask must not hold.
    pub avoid: Vec<Arc<BoundTicket>>,
    /// The ticket that training starts from, on top of the base.
    pub on_top_of: Option<Arc<BoundTicket>>,
    pub license: Option<String>,
    /// Steps between looks at the validation rows; 0: none.
    pub eval_every: usize,
    /// Steps between saves; 0: none.
    pub save_every: usize,
    /// Called with the calibrated parameters before they are given up.
    pub calibrated: &'a mut Keep<'a>,
    /// Set from outside when the run is to end.
    pub stop: &'a AtomicBool,
    /// Threads that compute.
    pub threads: usize,
}

/// What a run made.
pub struct Trained {
    pub ticket: Ticket,
    /// Mean loss of the validation rows under the base, the calibrated base (where there was one)
    /// and the ticket.
    pub losses: Losses,
}

/// Losses of the validation rows, in nats a learned token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    pub before: Option<f64>,
    pub calibrated: Option<f64>,
    pub ticket: Option<f64>,
}

impl Job<'_> {
    /// What decides the ticket's bytes, besides the processor: kept in the run's folder, and in part
    /// in the ticket.
    pub fn describe(&self) -> Value {
        let digest = |ticket: &Arc<BoundTicket>| ticket.digest().to_string();
        let mask = match &self.mask {
            MaskSource::Score => Value::Null,
            MaskSource::Checkpoint {
                checkpoint,
                fingerprint,
            } => json!({
                "checkpoint": checkpoint.path().file_name().map(|name| name.to_string_lossy()),
                "fingerprint": fingerprint.to_string(),
            }),
            MaskSource::Ticket(ticket) => json!({ "ticket": digest(ticket) }),
        };
        let mut train = json!(self.config);
        let unused: &[&str] = match &self.mask {
            MaskSource::Score if self.config.score == Score::Random => &["calibrate"],
            MaskSource::Score => &[],
            MaskSource::Checkpoint { .. } => &["calibrate"],
            MaskSource::Ticket(_) => &["calibrate", "density", "score", "scope"],
        };
        for name in unused {
            train[name] = Value::Null;
        }
        json!({
            "base": { "name": self.base.manifest.name, "fingerprint": self.base.manifest.fingerprint.to_string() },
            "data": describe_data(self.train),
            "valid": self.valid.map(describe_data),
            "mask_from": mask,
            "avoid": self.avoid.iter().map(digest).collect::<Vec<_>>(),
            "on_top_of": self.on_top_of.as_ref().map(digest),
            "license": self.license,
            "threads": self.threads,
            "train": train,
            "tool": concat!("tombola ", env!("CARGO_PKG_VERSION")),
        })
    }
}

fn describe_data(data: &Dataset) -> Value {
    json!({
        "sha256": data.digest.to_string(),
        "rows": data.examples.len(),
        "rows_cut": data.cut,
        "tokens": data.examples.iter().map(|e| e.tokens.len()).sum::<usize>(),
        "learned_tokens": data.examples.iter().map(Example::learned_tokens).sum::<usize>(),
    })
}

/// Runs a job in its folder.
///
/// # Errors
/// See [`TrainError`]; what was saved before stays in the folder.
pub fn train(
    job: Job,
    folder: &mut RunFolder,
    saved: Option<SavedState>,
    observe: &mut Observe,
) -> Result<Trained, TrainError> {
    let pool = kernels::Pool::new(job.threads).map_err(|e| TrainError::Threads(e.to_string()))?;
    pool.install(|| train_here(job, folder, saved, observe))
}

fn train_here(
    job: Job,
    folder: &mut RunFolder,
    saved: Option<SavedState>,
    observe: &mut Observe,
) -> Result<Trained, TrainError> {
    let description = job.describe();
    let Job {
        config,
        base,
        checkpoint,
        ..
    } = job;
    let start = Start {
        checkpoint,
        manifest: Arc::clone(&base.manifest),
        on_top_of: job.on_top_of.clone(),
    };
    let (decoder, parameters) = base.into_trainable()?;
    let valid = job.valid.map_or(&[][..], |valid| &valid.examples);
    let run = Run {
        config: &config,
        start: &start,
        decoder: &decoder,
        parameters: &parameters,
        train: &job.train.examples,
        valid,
        mask: &job.mask,
        avoid: &job.avoid,
        eval_every: job.eval_every,
        save_every: job.save_every,
        stop: job.stop,
    };
    let mut log = Log { folder, observe };
    let mut losses = Losses::default();
    if start.on_top_of.is_some() {
        start.reset(&parameters)?;
    }
    if saved.is_none() {
        losses.before = run.loss()?;
        if let Some(loss) = losses.before {
            log.tell(&Event::Valid {
                phase: None,
                step: 0,
                loss,
            })?;
        }
    }
    let tensors = run.deltas(saved, job.calibrated, &mut losses, &mut log)?;
    losses.ticket = run.loss_of(&tensors)?;
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let metadata = Metadata {
        license: job.license,
        training: Some(training(description, losses.ticket)),
        ..Metadata::new(&config.name, &start.manifest, nonzeros)
    };
    let ticket = Ticket::new(metadata, tensors)?;
    log.tell(&Event::Ticket {
        digest: ticket.digest().to_string(),
        bytes: ticket.file_bytes(),
        loss: losses.ticket,
    })?;
    Ok(Trained { ticket, losses })
}

/// What a ticket says of its training: only what is the same in every run that gives it.
fn training(mut description: Value, loss: Option<f64>) -> Value {
    if let Some(object) = description.as_object_mut() {
        object.remove("base");
        object.remove("license");
        object.insert("valid_loss".to_owned(), loss.into());
    }
    description
}
