//! Input of one step of the decoder: a ragged batch of sequences.

use std::ops::Range;
use std::sync::Arc;

use crate::kernels::attention::Span;
use crate::model::kv::BLOCK;
use crate::model::layout::TicketLayout;

/// Tokens of one step: the rows of several sequences, sequence by sequence.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// KV slot of each row: `block · BLOCK + offset`.
    pub slots: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub spans: Vec<Span>,
    /// Rows whose logits are computed, ascending.
    pub logits_rows: Vec<u32>,
    /// Rows whose hidden states after the final norm are computed, ascending.
    pub hidden_rows: Vec<u32>,
    /// Rows that a ticket is overlaid on, ascending.
    pub overlaid: Vec<OverlaidRows>,
}

/// Rows of a batch that one ticket is overlaid on.
#[derive(Clone, Debug)]
pub struct OverlaidRows {
    /// The rows, contiguous.
    pub rows: Range<usize>,
    /// Layout of the ticket, on the base's device.
    pub ticket: Arc<TicketLayout>,
}

impl Batch {
    /// Appends the next `tokens` of a sequence, the first of them at position `start`. `blocks` is
    /// the sequence's block table; `wants_logits` asks for the logits of the last row.
    pub fn push(&mut self, tokens: &[u32], start: usize, blocks: &[u32], wants_logits: bool) {
        self.spans.push(Span {
            first_row: self.tokens.len(),
            rows: tokens.len(),
            first_position: start,
            blocks: blocks.to_vec(),
        });
        for (position, &token) in (start..).zip(tokens) {
            let slot = blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            self.tokens.push(token);
            self.positions.push(position as u32);
            self.slots.push(slot as u32);
        }
        if wants_logits {
            self.logits_rows.push(self.tokens.len() as u32 - 1);
        }
    }

    /// Overlays a ticket on the rows of the sequence that was pushed last.
    pub fn overlay(&mut self, ticket: &Arc<TicketLayout>) {
        let Some(span) = self.spans.last() else {
            return;
        };
        let rows = span.first_row..span.first_row + span.rows;
        match self.overlaid.last_mut() {
            Some(last) if last.rows.end == rows.start && Arc::ptr_eq(&last.ticket, ticket) => {
                last.rows.end = rows.end;
            }
            _ => self.overlaid.push(OverlaidRows {
                rows,
                ticket: Arc::clone(ticket),
            }),
        }
    }
}
