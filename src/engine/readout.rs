//! Readout of a step's logits: copies only what is needed from the device, whole rows or just the
//! sampled tokens.

use candle_core::Tensor;

use super::plan::Chunk;
use super::sequence::{ChunkOutput, Next, Sequence};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::sample::{SamplingMethod, sample};
use crate::kernels::step::indices::Indices;
use crate::model::ModelError;

/// Reads that the chunks of a plan make from the logits `[rows, vocab]` of its step.
#[derive(Debug, Default)]
pub struct Readout {
    /// One per chunk.
    chunks: Vec<ChunkReadout>,
    /// Rows that are read whole, ascending.
    whole: Vec<u32>,
    /// Rows that a token is sampled from on the device, ascending.
    sampled: Vec<(u32, SamplingMethod)>,
    /// Rows of the logits so far.
    rows: u32,
}

/// Reads of one chunk.
#[derive(Debug)]
struct ChunkReadout {
    /// Whole rows that score the prompt.
    scored: usize,
    /// Source of the next token; `None` if the chunk does not sample.
    next: Option<NextFrom>,
}

/// Source of the next token of a sequence.
#[derive(Debug)]
enum NextFrom {
    /// A token sampled on the device.
    Token,
    /// A whole row of logits.
    Logits,
}

impl Readout {
    /// Adds the next chunk of the plan.
    pub fn push(&mut self, chunk: &Chunk, sequence: &Sequence) {
        let scored = sequence.scored_by(chunk).len();
        self.whole.extend(self.rows..self.rows + scored as u32);
        self.rows += scored as u32;
        let next = chunk.samples.then(|| {
            let row = self.rows;
            self.rows += 1;
            if let Some(method) = sequence.sampling_method() {
                self.sampled.push((row, method));
                NextFrom::Token
            } else {
                self.whole.push(row);
                NextFrom::Logits
            }
        });
        self.chunks.push(ChunkReadout { scored, next });
    }

    /// Samples and copies from the logits; `logits` is `None` if no chunk needs any. Returns the
    /// output of each chunk, in the order of the plan.
    ///
    /// # Errors
    /// The device fails to run a kernel or to copy.
    pub fn read(self, logits: Option<&Tensor>) -> Result<Vec<ChunkOutput>, ModelError> {
        let (tokens, rows) = match logits {
            Some(logits) => (self.tokens(logits)?, self.whole_rows(logits)?),
            None => Default::default(),
        };
        let (mut tokens, mut rows) = (tokens.into_iter(), rows.into_iter());
        let outputs = self.chunks.into_iter().map(|chunk| ChunkOutput {
            scored: rows.by_ref().take(chunk.scored).collect(),
            next: chunk.next.and_then(|next| match next {
                NextFrom::Token => tokens.next().map(Next::Token),
                NextFrom::Logits => rows.next().map(Next::Logits),
            }),
        });
        Ok(outputs.collect())
    }

    /// The sampled tokens; `None` for a row without a finite logit.
    fn tokens(&self, logits: &Tensor) -> Result<Vec<Option<u32>>, ModelError> {
        if self.sampled.is_empty() {
            return Ok(Vec::new());
        }
        Ok(sample(logits, &self.sampled)?)
    }

    /// The rows `[vocab]` that are read whole.
    fn whole_rows(&self, logits: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let rows = match self.whole.len() {
            0 => Vec::new(),
            all if all == self.rows as usize => logits.to_vec2()?,
            _ => {
                gather_rows(logits, &Indices::uploaded(&self.whole, logits.device())?)?.to_vec2()?
            }
        };
        Ok(rows)
    }
}
