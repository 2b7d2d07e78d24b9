//! Progress of a training run on standard error, and the signals that stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use indicatif::ProgressBar;

use crate::cli::base::progress_bar;
use crate::cli::note::note;
use crate::cli::signals::Signals;
use crate::train::{Event, Phase, StepReport, TrainConfig};

/// Shows one progress bar per phase, and a line per result, on standard error.
pub struct Watch<'a> {
    config: &'a TrainConfig,
    bar: Option<ProgressBar>,
    tokens: usize,
    seconds: f64,
    since: Instant,
}

impl<'a> Watch<'a> {
    /// An observer of a run that has not begun.
    pub fn new(config: &'a TrainConfig) -> Self {
        Self {
            config,
            bar: None,
            tokens: 0,
            seconds: 0.0,
            since: Instant::now(),
        }
    }

    /// Displays one event.
    pub fn see(&mut self, event: &Event) {
        match event {
            Event::Phase {
                phase,
                trained,
                bytes,
                ..
            } => {
                let mib = *bytes as f64 / f64::from(1 << 20);
                self.begin(*phase);
                self.say(&format!(
                    "{phase}: training {trained} weights; gradients and optimizer state take \
                     {mib:.1} MiB"
                ));
            }
            Event::Step(step) => self.step(step),
            Event::Valid { phase, step, loss } => {
                let when = match phase {
                    None => "before training".to_owned(),
                    Some(phase) => format!("after {step} steps ({phase})"),
                };
                self.say(&format!("validation loss {when}: {loss:.4}"));
            }
            Event::Mask { parameters } => {
                let kept: usize = parameters.values().map(|(kept, _)| kept).sum();
                self.say(&format!("the mask keeps {kept} weights"));
            }
            Event::Ticket { loss, .. } => {
                self.finish();
                if let Some(loss) = loss {
                    self.say(&format!("validation loss with the ticket: {loss:.4}"));
                }
            }
        }
    }

    fn step(&mut self, step: &StepReport) {
        if self.bar.is_none() {
            // A resumed phase has no `Event::Phase`.
            self.begin(step.phase);
        }
        self.tokens += step.tokens;
        self.seconds += step.seconds;
        let Some(bar) = &self.bar else { return };
        bar.set_message(format!(
            "{} loss {:.4}, {:.0} tokens/s",
            step.phase,
            step.loss,
            self.tokens as f64 / self.seconds,
        ));
        bar.set_position(step.step as u64);
        if bar.is_hidden() && self.since.elapsed().as_secs() >= 30 {
            self.since = Instant::now();
            let StepReport {
                phase, step, loss, ..
            } = step;
            note(format_args!("{phase} step {step}: loss {loss:.4}"));
        }
    }

    fn begin(&mut self, phase: Phase) {
        let steps = self.config.phase(phase).steps;
        self.finish();
        (self.tokens, self.seconds) = (0, 0.0);
        self.bar = Some(progress_bar(
            phase.to_string(),
            "{pos}/{len} steps",
            steps as u64,
        ));
    }

    /// Removes the bar and prints the throughput of the phase.
    fn finish(&mut self) {
        let Some(bar) = self.bar.take() else { return };
        bar.finish_and_clear();
        if self.tokens > 0 {
            let (tokens, seconds) = (self.tokens, self.seconds);
            let speed = tokens as f64 / seconds;
            note(format_args!(
                "{tokens} tokens in {seconds:.1} s: {speed:.0} tokens/s"
            ));
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            // A hidden bar prints nothing.
            Some(bar) if !bar.is_hidden() => bar.println(line),
            _ => note(line),
        }
    }
}

/// SIGINT and SIGTERM: the first signal makes a training run save and stop. A second one, or any
/// after the training, ends the process at once.
pub struct Stop {
    /// Set once a stop is requested.
    pub requested: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Stop {
    /// Starts to listen.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn listen() -> anyhow::Result<Self> {
        let stop = Self {
            requested: Arc::new(AtomicBool::new(false)),
            over: Arc::new(AtomicBool::new(false)),
        };
        let (requested, over) = (Arc::clone(&stop.requested), Arc::clone(&stop.over));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("waiting for signals")?;
        let mut signals = {
            let _inside = runtime.enter();
            Signals::new().context("waiting for signals")?
        };
        std::thread::spawn(move || {
            runtime.block_on(signals.recv());
            if !over.load(Ordering::Relaxed) {
                requested.store(true, Ordering::Relaxed);
                note("stopping before the next step; a second signal ends at once");
                runtime.block_on(signals.recv());
            }
            std::process::exit(130);
        });
        Ok(stop)
    }

    /// Lets the next signal end the process at once: nothing is left to save.
    pub fn training_is_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
