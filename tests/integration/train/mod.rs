//! The trainer against PyTorch, finite differences and its own resumed runs. This file sets up runs
//! on the tiny base.

mod command;
mod golden;
mod gradients;
mod method;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tombola::data::{Dataset, Example};
use tombola::model::{Base, Checkpoint, Dtype, Files, LoadedTicket, save_folder};
use tombola::ticket::merge::merge;
use tombola::ticket::top_k::Scope;
use tombola::ticket::{BoundTicket, DeltaDtype, Digest, Ticket};
use tombola::train::{
    Backprop, Callbacks, Decay, Event, Existing, Gradients, MaskSource, OptimizerKind, Phase,
    PhaseConfig, Rows, RunFolder, Score, Slot, Start, TrainConfig, TrainError, TrainRequest,
    Trained, train,
};

use crate::support::bases::{LLAMA, load_tiny, tiny_folder};
use crate::support::environment::{golden_json, ids};

/// The golden's configuration.
fn config() -> TrainConfig {
    TrainConfig {
        name: "golden".to_owned(),
        density: 0.1,
        score: Score::TaskVector,
        scope: Scope::Global,
        calibrate: PhaseConfig {
            steps: 40,
            learning_rate: 4e-3,
        },
        adapt: PhaseConfig {
            steps: 40,
            learning_rate: 6e-3,
        },
        batch: 4,
        accumulate: 1,
        optimizer: OptimizerKind::AdamW,
        weight_decay: 0.0,
        warmup: 0.0,
        decay: Decay::Constant,
        clip: None,
        checkpointing: false,
        shuffle: false,
        seed: 0,
    }
}

/// The golden's batches as rows. The tokens after the prompt of six are learned.
fn dataset() -> Dataset {
    let golden = golden_json("train-tiny.json");
    let batches = golden["batches"].as_array().expect("batches");
    let rows = batches.iter().flat_map(|b| b.as_array().expect("rows"));
    let example = |(line, row): (usize, &Value)| {
        let tokens = ids(row);
        Example {
            line: line + 1,
            learned: std::iter::once(6..tokens.len()).collect(),
            tokens,
            answer: None,
        }
    };
    Dataset {
        examples: rows.enumerate().map(example).collect(),
        digest: Digest::of(b"golden"),
        cut: 0,
        left_out: 0,
    }
}

/// A run of the trainer, and its differences from the golden run.
struct Run<'a> {
    config: TrainConfig,
    existing: Existing,
    save_every: usize,
    /// Number of steps, of both phases together, after which the run is interrupted.
    stop_after: Option<usize>,
    mask: MaskSource<'a>,
    avoid: Vec<Arc<BoundTicket>>,
    on_top_of: Option<Arc<BoundTicket>>,
    /// Folder that keeps the calibrated base.
    keep: Option<&'a Path>,
}

impl Run<'_> {
    fn new(config: TrainConfig) -> Self {
        Self {
            config,
            existing: Existing::ReplaceFinished,
            save_every: 0,
            stop_after: None,
            mask: MaskSource::Score,
            avoid: Vec::new(),
            on_top_of: None,
            keep: None,
        }
    }

    /// Runs in `folder`, adding its events to `events`.
    fn go(self, folder: &Path, events: &mut Vec<Event>) -> Result<Trained, TrainError> {
        let data = dataset();
        let checkpoint = Checkpoint::open(&Files::Folder(tiny_folder(LLAMA))).unwrap();
        let stop = AtomicBool::new(false);
        let mut keep = |parameters: &BTreeMap<String, Tensor>| match self.keep {
            Some(folder) => save_folder(folder, checkpoint.config(), parameters)
                .map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let base = load_tiny(LLAMA, Dtype::F32);
        let request = TrainRequest {
            config: self.config,
            start: Start {
                checkpoint: &checkpoint,
                manifest: Arc::clone(&base.manifest),
                on_top_of: self.on_top_of,
            },
            train: &data,
            valid: Some(&data),
            mask: self.mask,
            avoid: self.avoid,
            license: None,
            eval_every: 0,
            save_every: self.save_every,
            stop: &stop,
            threads: 2,
        };
        let (mut folder, saved) = RunFolder::open(folder, &request.describe(), self.existing)?;
        let mut steps = 0;
        let mut observe = |event: &Event| {
            events.push(event.clone());
            steps += usize::from(matches!(event, Event::Step(_)));
            if Some(steps) == self.stop_after {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let callbacks = Callbacks {
            observe: &mut observe,
            save_calibrated: &mut keep,
        };
        let trained = train(base, &request, &mut folder, saved, callbacks);
        if trained.is_ok() {
            folder.finish()?;
        }
        trained
    }
}

/// The flat positions that a ticket touches, by parameter.
fn positions(ticket: &Ticket, base: &Base) -> BTreeMap<String, BTreeSet<usize>> {
    let tensors = ticket.tensors().iter().map(|(name, delta)| {
        let width = base.manifest.parameters[name].shape[1];
        let flat = delta.entries().map(|(row, column, _)| row * width + column);
        (name.clone(), flat.collect())
    });
    tensors.collect()
}

/// The mean loss over the learned tokens of `rows`.
fn mean(backprop: &Backprop, rows: &Rows) -> f64 {
    let losses = backprop.losses(rows).unwrap();
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

/// A short run of both phases.
fn short() -> TrainConfig {
    TrainConfig {
        calibrate: PhaseConfig {
            steps: 6,
            learning_rate: 4e-3,
        },
        adapt: PhaseConfig {
            steps: 7,
            learning_rate: 6e-3,
        },
        clip: Some(1.0),
        accumulate: 2,
        shuffle: true,
        weight_decay: 0.01,
        ..config()
    }
}
