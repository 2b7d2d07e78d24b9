//! Fan-out of prompts and `n` to sequences of the engine, and back to pieces of text.

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;

use super::AppState;
use super::error::ApiError;
use super::meter::Meter;
use super::sampling::Sampling;
use crate::engine::{FinishReason, Output, OutputStream, Request, SequenceError, TokenLogprobs};
use crate::metrics::Finished;
use crate::registry::Lease;
use crate::text::TextStream;

/// A valid request, ready for the engine.
pub struct Job {
    pub prompts: Vec<Prompt>,
    pub sampling: Sampling,
    pub ticket: Option<Lease>,
    /// When the request came in.
    pub arrived: Instant,
}

/// One prompt and how much may follow it.
pub struct Prompt {
    pub ids: Vec<u32>,
    pub max_tokens: usize,
}

/// What one sequence adds to its text at a time.
#[derive(Debug, Default)]
pub struct Piece {
    pub text: String,
    /// How many tokens it took.
    pub tokens: usize,
    /// Those tokens, where log-probabilities were asked for.
    pub logprobs: Vec<(u32, TokenLogprobs)>,
    /// Set on a sequence's last piece.
    pub finish: Option<FinishReason>,
}

/// Token counts as OpenAI reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Usage {
    /// Counts the prompts, each once however many completions it has.
    pub fn of_prompts(prompts: &[Prompt]) -> Self {
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Self {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens: prompt_tokens,
        }
    }

    /// Counts tokens of a completion.
    pub fn add(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total_tokens += tokens;
    }
}

/// Hands the job to the engine: all of its sequences, or none. The sequence at
/// `prompt * n + choice` is that choice of that prompt.
pub fn submit(state: &AppState, job: Job) -> Result<Vec<Sequence>, ApiError> {
    let (n, sequences) = (job.sampling.n, job.prompts.len() * job.sampling.n);
    let capacity = state.engine.capacity();
    if sequences > capacity {
        let param = if job.prompts.len() > 1 { "prompt" } else { "n" };
        let problem =
            format!("asks for {sequences} completions, at most {capacity} are taken at once");
        return Err(ApiError::invalid(param, problem));
    }
    let metrics = &state.metrics;
    let request = |prompt: &Prompt, choice: u64| {
        let mut params = job.sampling.params.clone();
        params.max_tokens = prompt.max_tokens;
        params.seed = params.seed.map(|seed| seed.wrapping_add(choice));
        Request {
            prompt: prompt.ids.clone(),
            params,
            ticket: job.ticket.clone(),
            scored: Vec::new(),
        }
    };
    let choices = job.prompts.iter();
    let choices = choices.flat_map(|prompt| (0..n as u64).map(move |choice| (prompt, choice)));
    let requests = choices
        .clone()
        .map(|(prompt, choice)| request(prompt, choice));
    let streams = state.engine.submit_all(requests.collect())?;
    if let Some(ticket) = &job.ticket {
        metrics.ticket_requested(ticket.alias());
    }
    metrics.request_n.observe(n as f64);
    let sequence = |(outputs, (prompt, _)): (OutputStream, (&Prompt, u64))| Sequence {
        outputs: Some(outputs),
        text: TextStream::new(state.text.clone(), job.sampling.text.clone()),
        show_stop_token: job.sampling.text.include_stop_str_in_output,
        meter: Meter::start(Arc::clone(metrics), job.arrived, prompt),
    };
    Ok(streams.into_iter().zip(choices).map(sequence).collect())
}

/// One completion as it comes. Dropping it cancels what the engine still does for it.
pub struct Sequence {
    /// `None` once the sequence is over.
    outputs: Option<OutputStream>,
    text: TextStream,
    /// A token that ended the sequence by its id is part of the text.
    show_stop_token: bool,
    meter: Meter,
}

impl Sequence {
    /// Waits until there is text to show, or the end. `None` after the end.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        let mut piece = Piece::default();
        loop {
            let output = self.outputs.as_mut()?.recv().await;
            let output = match output.ok_or(ApiError::EngineStopped) {
                Ok(Ok(output)) => output,
                Ok(Err(SequenceError::NotFinite)) => return self.fail(ApiError::BrokenTicket),
                Err(error) => return self.fail(error),
            };
            self.meter.token();
            self.take(output, &mut piece);
            if let Some(finish) = piece.finish {
                // Cancels a sequence that its text ended; the engine knows of no stop strings.
                self.outputs = None;
                self.meter.finish(match finish {
                    FinishReason::Stop => Finished::Stop,
                    FinishReason::Length => Finished::Length,
                });
            }
            if piece.finish.is_some() || !piece.text.is_empty() {
                return Some(Ok(piece));
            }
        }
    }

    fn fail(&mut self, error: ApiError) -> Option<Result<Piece, ApiError>> {
        self.outputs = None;
        Some(Err(error))
    }

    fn take(&mut self, output: Output, piece: &mut Piece) {
        piece.tokens += 1;
        piece
            .logprobs
            .extend(output.logprobs.map(|logprobs| (output.token, logprobs)));
        piece.finish = output.finish;
        let ended_by_token = output.finish == Some(FinishReason::Stop);
        if !ended_by_token || self.show_stop_token {
            let step = self.text.push(output.token);
            piece.text.push_str(&step.text_to_emit);
            if step.stopped.is_some() {
                piece.finish = Some(FinishReason::Stop);
                return;
            }
        }
        if output.finish.is_some() {
            let rest = self.text.finish();
            piece.text.push_str(&rest.text_to_emit);
            if rest.stopped.is_some() {
                piece.finish = Some(FinishReason::Stop);
            }
        }
    }
}

/// The pieces of all sequences as they come, each with the place of its sequence.
pub fn merge(
    sequences: Vec<Sequence>,
) -> impl Stream<Item = (usize, Result<Piece, ApiError>)> + Send + Unpin {
    let one = |(index, sequence)| {
        let pieces = stream::unfold(sequence, |mut sequence: Sequence| async {
            let piece = sequence.next().await?;
            Some((piece, sequence))
        });
        pieces.map(move |piece| (index, piece)).boxed()
    };
    stream::select_all(sequences.into_iter().enumerate().map(one))
}

/// Waits for all sequences; each becomes one piece that holds everything.
pub async fn collect(sequences: Vec<Sequence>) -> Result<Vec<Piece>, ApiError> {
    let mut wholes: Vec<Piece> = sequences.iter().map(|_| Piece::default()).collect();
    let mut pieces = merge(sequences);
    while let Some((index, piece)) = pieces.next().await {
        let (piece, whole) = (piece?, &mut wholes[index]);
        whole.text.push_str(&piece.text);
        whole.tokens += piece.tokens;
        whole.logprobs.extend(piece.logprobs);
        whole.finish = piece.finish;
    }
    Ok(wholes)
}
