//! The trainer against PyTorch, against finite differences, and against itself.

mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Tensor};
use serde_json::Value;
use tombola::data::{Dataset, Example};
use tombola::model::{Base, Checkpoint, Dtype, Files};
use tombola::ticket::select::Scope;
use tombola::ticket::{Digest, Ticket};
use tombola::train::{
    Backprop, Decay, Event, Existing, Gradients, Job, MaskSource, OptimizerKind, Phase,
    PhaseConfig, Rows, RunFolder, Score, Slot, TrainConfig, TrainError, Trained, train,
};

use crate::common::{Player, TINY, golden, golden_json, ids, load_tiny};

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

/// The golden's batches as rows of which the tokens after the prompt are learned.
fn dataset() -> Dataset {
    let golden = golden_json("train-tiny.json");
    let batches = golden["batches"].as_array().expect("batches");
    let rows = batches.iter().flat_map(|b| b.as_array().expect("rows"));
    let example = |(line, row): (usize, &Value)| {
        let tokens = ids(row);
        Example {
            line: line + 1,
            learned: vec![6..tokens.len()],
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

/// How a run differs from the golden's.
struct Run<'a> {
    config: TrainConfig,
    existing: Existing,
    save_every: usize,
    /// Stop after so many steps of both phases.
    stop_after: Option<usize>,
    mask: MaskSource<'a>,
}

impl Run<'_> {
    fn new(config: TrainConfig) -> Self {
        Self {
            config,
            existing: Existing::Keep,
            save_every: 0,
            stop_after: None,
            mask: MaskSource::Score,
        }
    }

    fn go(self, folder: &Path, events: &mut Vec<Event>) -> Result<Trained, TrainError> {
        let data = dataset();
        let checkpoint = Checkpoint::open(&Files::Folder(golden("tiny/llama-untied"))).unwrap();
        let stop = AtomicBool::new(false);
        let job = Job {
            config: self.config,
            base: load_tiny("llama-untied", Dtype::F32),
            checkpoint: &checkpoint,
            train: &data,
            valid: Some(&data),
            mask: self.mask,
            avoid: Vec::new(),
            on_top_of: None,
            license: None,
            eval_every: 0,
            save_every: self.save_every,
            calibrated: &mut |_| Ok(()),
            stop: &stop,
            threads: 2,
        };
        let (mut folder, saved) = RunFolder::open(folder, &job.describe(), self.existing)?;
        let mut steps = 0;
        let mut observe = |event: &Event| {
            events.push(event.clone());
            steps += usize::from(matches!(event, Event::Step(_)));
            if Some(steps) == self.stop_after {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let trained = train(job, &mut folder, saved, &mut observe);
        if trained.is_ok() {
            folder.finish()?;
        }
        trained
    }
}

fn losses(events: &[Event], wanted: Phase) -> Vec<f64> {
    let loss = |event: &Event| match event {
        Event::Step(step) if step.phase == wanted => Some(step.loss),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("numbers")
}

/// The positions of every parameter of a ticket.
fn positions(ticket: &Ticket, base: &Base) -> BTreeMap<String, BTreeSet<usize>> {
    let tensors = ticket.tensors().iter().map(|(name, delta)| {
        let width = base.manifest.parameters[name].shape[1];
        let flat = delta.entries().map(|(row, column, _)| row * width + column);
        (name.clone(), flat.collect())
    });
    tensors.collect()
}

#[test]
fn golden_losses_positions_and_logprobs() {
    let golden = golden_json("train-tiny.json");
    let folder = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let trained = Run::new(config()).go(folder.path(), &mut events).unwrap();
    for (phase, name) in [
        (Phase::Calibrate, "losses_calibrate"),
        (Phase::Adapt, "losses_adapt"),
    ] {
        let (got, want) = (losses(&events, phase), numbers(&golden[name]));
        assert_eq!(got.len(), want.len());
        let share = got
            .iter()
            .zip(&want)
            .map(|(got, want)| (got - want).abs() / want);
        let worst = share.fold(0.0, f64::max);
        println!("{name}: worst difference {:.4} %", 100.0 * worst);
        assert!(worst < 0.01, "{name}: {got:?}");
    }
    let mut base = load_tiny("llama-untied", Dtype::F32);
    let got = positions(&trained.ticket, &base);
    let want: BTreeMap<String, BTreeSet<usize>> =
        serde_json::from_value(golden["kept_positions"].clone()).unwrap();
    let (mut same, mut all) = (0, 0);
    for (name, want) in &want {
        let got = &got[name];
        let near = want.len().abs_diff(got.len()) <= 3.max(want.len() / 100);
        assert!(
            near,
            "{name}: {} positions, PyTorch {}",
            got.len(),
            want.len()
        );
        same += got.intersection(want).count();
        all += want.len();
    }
    println!("positions: {same} of {all} are PyTorch's");
    assert!(same * 100 >= all * 99, "{same} of {all}");
    let ticket = trained.ticket.bind(&base.manifest, false).unwrap();
    base.resident.swap(Some(&ticket.into()), 1.0).unwrap();
    let probe = ids(&golden["probe_ids"]);
    let got = Player::new(&base, 1, 16).step(&[(0, &probe)]).remove(0);
    let want = numbers(&golden["probe_logprobs_after_adapt"]);
    let differences = got
        .iter()
        .zip(&want)
        .map(|(got, want)| (f64::from(*got) - want).abs());
    let worst = differences.fold(0.0, f64::max);
    println!("log-probabilities: worst difference {worst:.5}");
    assert!(worst < 2e-2, "{worst}");
}

/// Dense gradients of every slot.
#[derive(Default)]
struct Dense(BTreeMap<Slot, Tensor>);

impl Dense {
    fn put(&mut self, slot: Slot, gradient: Tensor) -> candle_core::Result<()> {
        let sum = match self.0.remove(&slot) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(slot, sum);
        Ok(())
    }
}

impl Gradients for Dense {
    fn everything(&self) -> bool {
        true
    }

    fn product(&mut self, slot: Slot, x: &Tensor, dy: &Tensor) -> candle_core::Result<()> {
        self.put(slot, dy.t()?.matmul(x)?)
    }

    fn add(&mut self, slot: Slot, gradient: &Tensor) -> candle_core::Result<()> {
        self.put(slot, gradient.clone())
    }

    fn add_rows(&mut self, slot: Slot, rows: &[u32], values: &Tensor) -> candle_core::Result<()> {
        let rows = Tensor::new(rows, values.device())?;
        let vocab = 256;
        let zeros = Tensor::zeros((vocab, values.dim(1)?), DType::F32, values.device())?;
        self.put(slot, zeros.index_add(&rows, values, 0)?)
    }
}

fn rows() -> Rows {
    let mut rows = Rows::default();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 250).collect();
    rows.push(&tokens[..23], &[5..9, 12..23]);
    rows.push(&tokens[20..], &[1..17]);
    rows
}

fn mean(backprop: &Backprop, rows: &Rows) -> f64 {
    let losses = backprop.losses(rows).unwrap();
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

/// Along the gradient's own direction, and along random ones, the loss changes as the gradient says.
#[test]
fn gradients_equal_finite_differences_in_all_families() {
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        for checkpointing in [false, true] {
            let backprop = Backprop {
                decoder: &base.decoder,
                checkpointing,
            };
            let rows = rows();
            let mut dense = Dense::default();
            let weight = 1.0 / rows.targets.len() as f32;
            backprop.gradients(&rows, weight, &mut dense).unwrap();
            let tied = base.decoder.config().tie_word_embeddings;
            let slots = Slot::all(base.decoder.weights(), tied);
            assert_eq!(
                slots.len(),
                dense.0.len(),
                "{name}: every tensor has a gradient"
            );
            for slot in slots {
                let tensor = slot.tensor(base.decoder.weights()).unwrap();
                let gradient = &dense.0[&slot];
                let norm: f32 = gradient
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar()
                    .unwrap();
                let norm = norm.sqrt();
                let before = tensor.copy().unwrap();
                let step = 2e-2 / norm.max(1.0);
                let direction = (gradient / f64::from(norm)).unwrap();
                let at = |sign: f64| {
                    let moved = &before + (&direction * (sign * f64::from(step))).unwrap();
                    tensor.slice_set(&moved.unwrap(), 0, 0).unwrap();
                    mean(&backprop, &rows)
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(step));
                tensor.slice_set(&before, 0, 0).unwrap();
                let difference = (slope - f64::from(norm)).abs();
                let allowed = 0.02 * f64::from(norm) + 2e-3;
                assert!(
                    difference < allowed,
                    "{name} {slot}: {norm}, the loss's slope {slope}"
                );
            }
        }
    }
}

#[test]
fn the_training_forward_pass_is_the_serving_one() {
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        let backprop = Backprop {
            decoder: &base.decoder,
            checkpointing: false,
        };
        let rows = rows();
        let logits = backprop
            .all_logits(&rows)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for range in &rows.sequences {
            for end in range.clone() {
                let tokens = &rows.tokens[range.start..=end];
                let mut player = Player::new(&base, 1, 48);
                let served = player
                    .logits(&[(0, tokens)])
                    .to_vec2::<f32>()
                    .unwrap()
                    .remove(0);
                let pairs = served.iter().zip(&logits[end]);
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-4, "{name}: {worst}");
            }
        }
    }
}

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

#[test]
fn a_resumed_run_makes_the_same_ticket() {
    for score in [Score::TaskVector, Score::Saliency] {
        let config = TrainConfig { score, ..short() };
        let whole = tempfile::tempdir().unwrap();
        let want = Run::new(config.clone())
            .go(whole.path(), &mut Vec::new())
            .unwrap();
        for stop_after in [2, 6, 9] {
            let folder = tempfile::tempdir().unwrap();
            let stopped = Run {
                stop_after: Some(stop_after),
                ..Run::new(config.clone())
            };
            let mut events = Vec::new();
            let ended = stopped.go(folder.path(), &mut events);
            assert!(matches!(ended, Err(TrainError::Stopped { .. })));
            let resumed = Run {
                existing: Existing::Resume,
                save_every: 2,
                ..Run::new(config.clone())
            };
            let got = resumed.go(folder.path(), &mut events).unwrap();
            assert_eq!(
                got.ticket.digest(),
                want.ticket.digest(),
                "{score} {stop_after}"
            );
            let read = |folder: &Path| std::fs::read_to_string(folder.join("metrics.jsonl"));
            let lines = |folder: &Path| read(folder).unwrap().lines().count();
            assert_eq!(lines(folder.path()), lines(whole.path()));
        }
    }
}

#[test]
fn a_run_that_diverges_says_so_and_keeps_what_it_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = short();
    config.adapt.learning_rate = f32::MAX;
    config.clip = None;
    let ended = Run::new(config).go(folder.path(), &mut Vec::new());
    let error = ended.err().expect("it diverges").to_string();
    assert!(error.contains("adapt phase"), "{error}");
    assert!(
        error.contains("step 0 of the adapt phase is saved"),
        "{error}"
    );
    assert!(folder.path().join("state.safetensors").exists());
}
