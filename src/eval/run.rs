//! Runs the rows of a dataset through the engine.

use std::collections::VecDeque;

use super::{Answers, EvalError, EvalOptions, EvalResult, MatchRule};
use crate::data::{Dataset, Example};
use crate::engine::{EngineHandle, FinishReason, OutputStream, Request, SamplingParams};
use crate::registry::Lease;
use crate::text::Text;

/// Maximum number of sequences in the engine at once. It exceeds the engine's batch, so that the
/// engine stays busy while this thread waits for the oldest sequence.
const IN_FLIGHT: usize = 256;

/// One sequence to run for a row.
#[derive(Clone, Copy)]
enum Query<'a> {
    /// Score the learned tokens.
    Score(&'a Example),
    /// Answer the prompt greedily and compare with the expected answer.
    Answer {
        example: &'a Example,
        prompt: &'a [u32],
        expected: &'a str,
        rule: MatchRule,
    },
}

/// Evaluates the base, bare or under `ticket`. Calls `progress` with the number of finished
/// sequences and their total. Blocks on the engine: call it from a thread outside any runtime.
///
/// # Errors
/// There are no rows, a row exceeds the engine's context, the engine stops or is busy with other
/// work, or the model under the ticket yields no finite logits.
pub fn evaluate(
    engine: &EngineHandle,
    ticket: Option<&Lease>,
    dataset: &Dataset,
    text: &Text,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<EvalResult, EvalError> {
    let queries = queries(engine, dataset, options)?;
    let mut waiting = queries.iter();
    let mut running: VecDeque<(Query, OutputStream)> = VecDeque::new();
    let window = IN_FLIGHT.min(engine.largest_share());
    let mut tally = Tally::default();
    for done in 0..queries.len() {
        while running.len() < window
            && let Some(query) = waiting.next()
        {
            let stream = engine.submit(query.request(ticket, options));
            let line = query.line();
            let stream = stream.map_err(|error| EvalError::Submit { line, error })?;
            running.push_back((*query, stream));
        }
        // Wait in the order of the rows; later sequences keep running meanwhile.
        let (query, stream) = running.pop_front().expect("a query is running");
        tally.add(&query, stream, text)?;
        progress(done + 1, queries.len());
    }
    Ok(tally.result(dataset.examples.len(), options))
}

/// The queries of all rows, checked against the limits of the engine.
fn queries<'a>(
    engine: &EngineHandle,
    dataset: &'a Dataset,
    options: &EvalOptions,
) -> Result<Vec<Query<'a>>, EvalError> {
    let (limit, vocab_size) = (engine.limits().max_model_len, engine.limits().vocab_size);
    let mut queries = Vec::new();
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
        queries.push(Query::Score(example));
        if let Some(rule) = options.answers
            && let Some((prompt, expected)) = example.prompt().zip(example.answer.as_deref())
        {
            queries.push(Query::Answer {
                example,
                prompt,
                expected,
                rule,
            });
        }
    }
    if queries.is_empty() {
        return Err(EvalError::NoRows);
    }
    Ok(queries)
}

impl Query<'_> {
    /// Line of the row in the data file, from 1.
    fn line(&self) -> usize {
        match self {
            Self::Score(example) | Self::Answer { example, .. } => example.line,
        }
    }

    fn request(&self, ticket: Option<&Lease>, options: &EvalOptions) -> Request {
        let (prompt, scored, max_tokens) = match *self {
            // The engine always samples at least one token; this one is ignored.
            Self::Score(example) => (&*example.tokens, example.learned.clone(), 1),
            Self::Answer { prompt, .. } => (prompt, Vec::new(), options.max_tokens),
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
            ..Request::default()
        }
    }
}

/// Running totals of the finished sequences.
#[derive(Default)]
struct Tally {
    logprobs: f64,
    tokens: usize,
    score: f64,
    texts: Vec<String>,
}

impl Tally {
    /// Waits for the end of a query's sequence and adds its result.
    fn add(
        &mut self,
        query: &Query,
        mut stream: OutputStream,
        text: &Text,
    ) -> Result<(), EvalError> {
        let line = query.line();
        let mut ids = Vec::new();
        let mut finish = None;
        while finish.is_none() {
            let output = stream.blocking_recv().ok_or(EvalError::Stopped { line })?;
            let output = output.map_err(|error| EvalError::Sequence { line, error })?;
            finish = output.finish;
            // Leave out stop tokens, and ids beyond the tokenizer's vocabulary: embeddings may be
            // padded with rows without a token.
            let known = (output.token as usize) < text.vocab_size();
            if finish != Some(FinishReason::Stop) && known {
                ids.push(output.token);
            }
            let logprobs = output.prompt_logprobs.unwrap_or_default();
            self.tokens += logprobs.len();
            self.logprobs += logprobs
                .iter()
                .map(|scored| f64::from(scored.chosen))
                .sum::<f64>();
        }
        if let Query::Answer { expected, rule, .. } = query {
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
