//! The arguments of `tombola train`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::base::{BaseArgs, ComputeArgs, at_least_one, density};
use crate::eval::MatchRule;
use crate::ticket::select::Scope;
use crate::train::{Decay, OptimizerKind, PhaseConfig, Score, TrainConfig};

/// Arguments of `tombola train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Rows to learn: one JSON object a line, with `messages`, `prompt` and `completion`, or `text`.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Rows whose loss is measured and never learned.
    #[arg(long, value_name = "FILE")]
    pub valid: Option<PathBuf>,
    /// The ticket's name.
    #[arg(long)]
    pub name: String,
    /// The folder that the ticket is written to, as NAME.safetensors.
    #[arg(long, value_name = "DIR", default_value = "adapters")]
    pub out: PathBuf,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub steps: StepArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Which weights are trained.
#[derive(Debug, Args)]
pub struct MethodArgs {
    /// The share of the adaptable weights that the ticket may touch.
    #[arg(long, default_value_t = 0.01, value_parser = density)]
    pub density: f64,
    /// What ranks the weights: task-vector, gradient, saliency or random.
    #[arg(long, default_value_t = Score::TaskVector)]
    pub score: Score,
    /// Keep the share of all weights together (global), or of every parameter (tensor).
    #[arg(long, default_value_t = Scope::Global)]
    pub scope: Scope,
    /// A ticket whose positions the mask must not hold (LoTTO); may be repeated.
    #[arg(long, value_name = "TICKET")]
    pub avoid: Vec<String>,
    /// Train from the base with this ticket applied, and write the difference.
    #[arg(long, value_name = "TICKET")]
    pub on_top_of: Option<String>,
    /// Train the positions of this ticket instead of choosing some.
    #[arg(long, value_name = "TICKET", conflicts_with_all = ["calibrate_from", "avoid", "score"])]
    pub mask_from: Option<String>,
    /// Take the task vector from this tuned checkpoint instead of calibrating.
    #[arg(long, value_name = "BASE", conflicts_with = "score")]
    pub calibrate_from: Option<String>,
    /// Keep the calibrated base too, as a folder that --calibrate-from and --model read.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mask_from", "calibrate_from"])]
    pub save_calibrated: Option<PathBuf>,
}

/// How the weights are trained.
#[derive(Debug, Args)]
pub struct StepArgs {
    /// Steps of the full fine-tune that the mask is chosen by.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub calibrate_steps: usize,
    /// Steps that train the ticket.
    #[arg(long, value_name = "N", default_value_t = 80)]
    pub steps: usize,
    /// Rows that go through the model at once.
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = at_least_one)]
    pub batch: usize,
    /// Batches that one step sums over.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub accumulate: usize,
    /// Tokens of a row; what is longer is cut.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub max_length: usize,
    /// Learning rate of the calibration.
    #[arg(long, value_name = "RATE", default_value_t = 3e-5, value_parser = rate)]
    pub calibrate_lr: f32,
    /// Learning rate of the ticket.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = rate)]
    pub lr: f32,
    /// adamw or rmsprop.
    #[arg(long, default_value_t = OptimizerKind::AdamW)]
    pub optimizer: OptimizerKind,
    /// Shrinks matrices by this share of the learning rate each step.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub weight_decay: f32,
    /// The share of a phase's steps in which the learning rate rises.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub warmup: f32,
    /// How the learning rate falls after that: constant, linear or cosine.
    #[arg(long, default_value_t = Decay::Linear)]
    pub decay: Decay,
    /// The norm that gradients are scaled down to; 0 leaves them.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = not_negative)]
    pub clip: f32,
    /// Keep less of the forward pass and compute it again: slower, in less memory.
    #[arg(long)]
    pub checkpointing: bool,
    /// Take the rows in the order of the file.
    #[arg(long)]
    pub no_shuffle: bool,
    /// Decides the order of the rows, and a random mask.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// How the run goes on.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The run's folder: configuration, metrics, report, and its state while unfinished
    /// [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on with an unfinished run: to the same ticket that it would have made.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Throw an unfinished run away.
    #[arg(long)]
    pub overwrite: bool,
    /// Steps between saves; 0: none.
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    pub save_every: usize,
    /// Steps between looks at the validation rows; 0: none.
    #[arg(long, value_name = "STEPS", default_value_t = 40)]
    pub eval_every: usize,
    /// Use the first rows of the validation file.
    #[arg(long, value_name = "ROWS", default_value_t = 100, value_parser = at_least_one)]
    pub valid_rows: usize,
    /// How greedy answers to the validation rows are compared: text, sql, number, choice or rouge-l.
    #[arg(long = "match", value_name = "RULE", default_value_t)]
    pub rule: MatchRule,
    /// Tokens that an answer may have.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Measure the loss alone at the end, without answers.
    #[arg(long)]
    pub no_answers: bool,
    /// Licence of the ticket, for example `CC-BY-4.0`.
    #[arg(long)]
    pub license: Option<String>,
}

impl TrainArgs {
    /// What decides the ticket's bytes besides base and data.
    pub fn config(&self) -> TrainConfig {
        let steps = &self.steps;
        TrainConfig {
            name: self.name.clone(),
            density: self.method.density,
            score: self.method.score,
            scope: self.method.scope,
            calibrate: PhaseConfig {
                steps: steps.calibrate_steps,
                learning_rate: steps.calibrate_lr,
            },
            adapt: PhaseConfig {
                steps: steps.steps,
                learning_rate: steps.lr,
            },
            batch: steps.batch,
            accumulate: steps.accumulate,
            optimizer: steps.optimizer,
            weight_decay: steps.weight_decay,
            warmup: steps.warmup,
            decay: steps.decay,
            clip: (steps.clip > 0.0).then_some(steps.clip),
            checkpointing: steps.checkpointing,
            shuffle: !steps.no_shuffle,
            seed: steps.seed,
        }
    }

    /// The run's folder.
    pub fn run_dir(&self) -> PathBuf {
        let given = self.run.run_dir.clone();
        given.unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// The ticket's file.
    pub fn ticket_path(&self) -> PathBuf {
        self.out.join(format!("{}.safetensors", self.name))
    }
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a share from 0 to 1".to_owned()),
    }
}

fn rate(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a number from 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for wrong in ["0", "-0.1", "1.1", "NaN", "x"] {
            assert!(density(wrong).is_err(), "{wrong}");
        }
        assert_eq!(density("1"), Ok(1.0));
        for wrong in ["0", "-1", "inf", "NaN"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert!(share("1.5").is_err() && not_negative("-1").is_err());
        assert_eq!(not_negative("0"), Ok(0.0));
    }
}
