//! Runs the rows of a data set through the engine.

use std::collections::VecDeque;

use super::{Answers, EvalError, EvalOptions, EvalResult, MatchRule};
use crate::data::{Dataset, Example};
use crate::engine::{EngineHandle, FinishReason, OutputStream, Request, SamplingParams};
use crate::registry::Lease;
use crate::text::Text;

/// Sequences that are with the engine at once at most: more than it runs at once, so that it is
/// never short of work while the oldest one is waited for.
const IN_FLIGHT: usize = 256;

/// One sequence to run for a row.
#[derive(Clone, Copy)]
enum Job<'a> {
    /// Score the learned tokens.
    Score(&'a Example),
    /// Answer the prompt, and compare with this answer.
    Answer(&'a Example, &'a [u32], &'a str, MatchRule),
}

/// Evaluates the base under `ticket`, or bare. `progress` is told how many sequences of how many are
/// done. Waits for the engine, so it is for threads outside a runtime.
///
/// # Errors
/// There is no row, one has no place in the engine's context, the engine stops or is busy with other
/// work, or the ticket breaks the model.
pub fn evaluate(
    engine: &EngineHandle,
    ticket: Option<&Lease>,
    dataset: &Dataset,
    text: &Text,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<EvalResult, EvalError> {
    let jobs = jobs(engine, dataset, options)?;
    let mut waiting = jobs.iter();
    let mut running: VecDeque<(Job, OutputStream)> = VecDeque::new();
    let window = IN_FLIGHT.min(engine.capacity());
    let mut tally = Tally::default();
    for done in 0..jobs.len() {
        while running.len() < window
            && let Some(job) = waiting.next()
        {
            let request = job.request(ticket, options);
            let stream = engine.submit(request);
            let line = job.line();
            let stream = stream.map_err(|error| EvalError::Submit { line, error })?;
            running.push_back((*job, stream));
        }
        // In the order of their rows: those behind go on meanwhile.
        let (job, stream) = running.pop_front().expect("a job is running");
        tally.add(&job, stream, text)?;
        progress(done + 1, jobs.len());
    }
    Ok(tally.result(dataset.examples.len(), options))
}

/// What there is to run, checked against the engine's limits.
fn jobs<'a>(
    engine: &EngineHandle,
    dataset: &'a Dataset,
    options: &EvalOptions,
) -> Result<Vec<Job<'a>>, EvalError> {
    let (limit, vocab_size) = (engine.limits().max_model_len, engine.limits().vocab_size);
    let mut jobs = Vec::new();
    for example in &dataset.examples {
        let (line, tokens) = (example.line, example.tokens.len());
        if tokens > limit {
            return Err(EvalError::TooLong {
                line,
                tokens,
                limit,
            });
        }
        let unknown = |token: &&u32| **token as usize >= vocab_size;
        if let Some(&token) = example.tokens.iter().find(unknown) {
            return Err(EvalError::UnknownToken {
                line,
                token,
                vocab_size,
            });
        }
        jobs.push(Job::Score(example));
        if let Some(rule) = options.answers
            && let Some((prompt, answer)) = example.prompt().zip(example.answer.as_deref())
        {
            jobs.push(Job::Answer(example, prompt, answer, rule));
        }
    }
    if jobs.is_empty() {
        return Err(EvalError::NoRows);
    }
    Ok(jobs)
}

impl Job<'_> {
    fn line(&self) -> usize {
        match self {
            Self::Score(example) | Self::Answer(example, ..) => example.line,
        }
    }

    fn request(&self, ticket: Option<&Lease>, options: &EvalOptions) -> Request {
        let (prompt, scored, max_tokens) = match *self {
            // The engine chooses a token in any case; nobody looks at it.
            Self::Score(example) => (&*example.tokens, example.learned.clone(), 1),
            Self::Answer(_, prompt, ..) => (prompt, Vec::new(), options.max_tokens),
        };
        Request {
            prompt: prompt.to_vec(),
            params: SamplingParams {
                max_tokens,
                temperature: 0.0,
                ..SamplingParams::default()
            },
            ticket: ticket.cloned(),
            scored,
        }
    }
}

/// What the sequences so far came to.
#[derive(Default)]
struct Tally {
    logprobs: f64,
    tokens: usize,
    score: f64,
    texts: Vec<String>,
}

impl Tally {
    /// Waits for the end of a job's sequence and counts what it gave.
    fn add(&mut self, job: &Job, mut stream: OutputStream, text: &Text) -> Result<(), EvalError> {
        let line = job.line();
        let mut ids = Vec::new();
        let mut finish = None;
        while finish.is_none() {
            let output = stream.blocking_recv().ok_or(EvalError::Stopped { line })?;
            let output = output.map_err(|error| EvalError::Sequence { line, error })?;
            finish = output.finish;
            // What ends a text is no part of it, and neither is an embedding without a token.
            let known = (output.token as usize) < text.vocab_size();
            if finish != Some(FinishReason::Stop) && known {
                ids.push(output.token);
            }
            let logprobs = output.prompt_logprobs.unwrap_or_default();
            self.tokens += logprobs.len();
            self.logprobs += logprobs.into_iter().map(f64::from).sum::<f64>();
        }
        if let Job::Answer(_, _, expected, rule) = job {
            let answer = text.decode(&ids, true);
            let answer = answer.expect("every id is in the vocabulary");
            self.score += rule.score(&answer, expected);
            self.texts.push(answer);
        }
        Ok(())
    }

    fn result(self, rows: usize, options: &EvalOptions) -> EvalResult {
        EvalResult {
            rows,
            tokens: self.tokens,
            loss: -self.logprobs / self.tokens as f64,
            answers: options.answers.map(|rule| Answers {
                rule,
                rows: self.texts.len(),
                score: self.score,
            }),
            texts: self.texts,
        }
    }
}
