//! The arguments of `tombola train`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::base::{BaseArgs, ComputeArgs, at_least_one, density};
use crate::eval::MatchRule;
use crate::ticket::top_k::Scope;
use crate::train::{Decay, Existing, OptimizerKind, PhaseConfig, Score, TrainConfig};

/// Arguments of `tombola train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Rows to train on: one JSON object per line, with `messages`, `prompt` and `completion`, or
    /// `text`.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    pub data: PathBuf,
    /// Validation rows, in the same form: their loss is measured, they are never trained on
    /// [default: none].
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    pub valid: Option<PathBuf>,
    /// Name of the ticket, which requests use.
    #[arg(long, help_heading = OUTPUT)]
    pub name: String,
    /// Folder that the ticket is written into, as NAME.safetensors.
    #[arg(long, value_name = "DIR", default_value = "adapters", help_heading = OUTPUT)]
    pub out: PathBuf,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub steps: StepArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola train --data rows.jsonl --name mine
  tombola train --data train.jsonl --valid dev.jsonl --match sql --name sql --density 0.005
  tombola train --data more.jsonl --name second --avoid first      Disjoint positions (LoTTO)
  tombola train --data rows.jsonl --name mine --resume             Continue an unfinished run";

// Headings of `--help`, and of the flag tables in docs/.
const DATA: &str = "Data";
const OUTPUT: &str = "Output";

/// Choice of the weights that are trained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mask")]
pub struct MethodArgs {
    /// Share of the adaptable weights that the ticket may touch: above 0, at most 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = density)]
    pub density: f64,
    /// Score that ranks the weights: task-vector, gradient, saliency or random.
    #[arg(long, default_value_t = Score::TaskVector)]
    pub score: Score,
    /// Scope of the share: global (all parameters together) or tensor (each parameter).
    #[arg(long, default_value_t = Scope::Global)]
    pub scope: Scope,
    /// Ticket whose positions the mask leaves out (LoTTO); repeatable [default: none].
    #[arg(long, value_name = "TICKET")]
    pub avoid: Vec<String>,
    /// Ticket that is applied to the base before training; the new ticket holds the difference to
    /// that [default: the bare base].
    #[arg(long, value_name = "TICKET")]
    pub on_top_of: Option<String>,
    /// Ticket whose positions are trained instead of a mask chosen by score.
    #[arg(long, value_name = "TICKET", conflicts_with_all = ["calibrate_from", "avoid", "score"])]
    pub mask_from: Option<String>,
    /// Tuned checkpoint that gives the task vector instead of a calibration phase.
    #[arg(long, value_name = "BASE", conflicts_with = "score")]
    pub calibrate_from: Option<String>,
    /// Folder to keep the calibrated base in, for --calibrate-from or --model [default: it is
    /// discarded].
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mask_from", "calibrate_from"])]
    pub save_calibrated: Option<PathBuf>,
}

/// Steps, batches and learning rates.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub struct StepArgs {
    /// Steps of the calibration, a full fine-tune whose result ranks the weights.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub calibrate_steps: usize,
    /// Steps that train the ticket.
    #[arg(long, value_name = "N", default_value_t = 80)]
    pub steps: usize,
    /// Rows per batch.
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = at_least_one)]
    pub batch: usize,
    /// Batches per step, whose gradients are summed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub accumulate: usize,
    /// Longest row, in tokens; longer rows are cut.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub max_length: usize,
    /// Peak learning rate of the calibration.
    #[arg(long, value_name = "RATE", default_value_t = 3e-5, value_parser = rate)]
    pub calibrate_lr: f32,
    /// Peak learning rate of the ticket.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = rate)]
    pub lr: f32,
    /// Optimizer: adamw or rmsprop.
    #[arg(long, default_value_t = OptimizerKind::AdamW)]
    pub optimizer: OptimizerKind,
    /// Decoupled weight decay of matrices, times the learning rate per step; 0 turns it off.
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, value_parser = not_negative)]
    pub weight_decay: f32,
    /// Share of a phase's steps in which the learning rate rises to its peak.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub warmup: f32,
    /// Decay of the learning rate after the warmup: constant, linear or cosine.
    #[arg(long, default_value_t = Decay::Linear)]
    pub decay: Decay,
    /// Norm that larger gradients are scaled down to; 0 turns clipping off.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = not_negative)]
    pub clip: f32,
    /// Recompute activations in the backward pass instead of keeping them: less memory, slower.
    #[arg(long)]
    pub checkpointing: bool,
    /// Take the rows in the order of the file.
    #[arg(long)]
    pub no_shuffle: bool,
    /// Seed of the row order, and of a random mask.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Saves, validation and report of the run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Folder of the run: configuration, metrics, report, and the state of an unfinished run
    /// [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Continue an unfinished run, which gives the same ticket as an uninterrupted one.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Discard an unfinished run and start again.
    #[arg(long)]
    pub overwrite: bool,
    /// Steps between saves; 0 saves nothing in between.
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    pub save_every: usize,
    /// Steps between measurements of the validation loss; 0 measures none in between.
    #[arg(long, value_name = "STEPS", default_value_t = 40)]
    pub eval_every: usize,
    /// Number of validation rows to use, from the start of the file.
    #[arg(long, value_name = "ROWS", default_value_t = 100, value_parser = at_least_one)]
    pub valid_rows: usize,
    /// Rule that compares greedy answers with those of the validation rows: text, sql, number,
    /// choice or rouge-l.
    #[arg(long = "match", value_name = "RULE", default_value_t)]
    pub rule: MatchRule,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Measure only the loss at the end, without generating answers.
    #[arg(long)]
    pub no_answers: bool,
    /// Licence of the ticket, for example `CC-BY-4.0`.
    #[arg(long, help_heading = OUTPUT)]
    pub license: Option<String>,
}

impl RunArgs {
    /// Treatment of a run that the folder already holds.
    pub fn existing(&self) -> Existing {
        if self.resume {
            Existing::Resume
        } else if self.overwrite {
            Existing::Overwrite
        } else {
            Existing::ReplaceFinished
        }
    }
}

impl TrainArgs {
    /// Training configuration: with base and data, it determines the bytes of the ticket.
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

    /// Folder of the run.
    pub fn run_dir(&self) -> PathBuf {
        let given = self.run.run_dir.clone();
        given.unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// File of the ticket.
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
        _ => Err("must be a number of at least 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_numbers_are_refused() {
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
