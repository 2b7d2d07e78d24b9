//! Readout of a step: copies only what is needed from the device, whole rows of logits or just the
//! sampled tokens, and the hidden states that are pooled.

use candle_core::{DType, Device, Tensor};

use super::plan::Chunk;
use super::sequence::{ChunkOutput, Next, Sequence};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::sample::{SamplingMethod, sample};
use crate::kernels::step::indices::Indices;
use crate::model::{ModelError, StepRows};

/// Reads that the chunks of a plan make from the logits `[rows, vocab]` and the hidden states
/// `[rows, hidden]` of its step.
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
    /// Hidden states that are pooled.
    hidden: usize,
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
        let next = sequence.samples(chunk).then(|| {
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
        let hidden = sequence.pooled_by(chunk).len();
        self.chunks.push(ChunkReadout {
            scored,
            hidden,
            next,
        });
    }

    /// Samples and copies from the rows of the step. Returns the output of each chunk, in the order
    /// of the plan.
    ///
    /// # Errors
    /// The device fails to run a kernel or to copy.
    pub fn read(self, step: &StepRows) -> Result<Vec<ChunkOutput>, ModelError> {
        let hidden = match &step.hidden {
            Some(hidden) => hidden_states(hidden)?,
            None => Vec::new(),
        };
        let mut hidden = hidden.into_iter();
        let (tokens, rows) = match &step.logits {
            Some(logits) => (self.tokens(logits)?, self.whole_rows(logits)?),
            None => Default::default(),
        };
        let (mut tokens, mut rows) = (tokens.into_iter(), rows.into_iter());
        let outputs = self.chunks.into_iter().map(|chunk| ChunkOutput {
            scored: rows.by_ref().take(chunk.scored).collect(),
            hidden: hidden.by_ref().take(chunk.hidden).collect(),
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

/// Hidden states `[rows, hidden]` of any dtype, on the host.
fn hidden_states(rows: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(rows.to_vec2()?)
}
