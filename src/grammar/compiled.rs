//! A compiled grammar, from which sequences start.

use std::sync::{Mutex, PoisonError};

use llguidance::TokenParser;

use super::matching::Matching;
use crate::engine::{Constraint, ConstraintError};

/// A grammar that can constrain any number of sequences.
pub struct CompiledGrammar {
    /// The parser before the first token, with its first mask computed.
    start: Mutex<TokenParser>,
    bytes: usize,
}

impl CompiledGrammar {
    /// Checks that the grammar has a first token, which computes its first mask.
    ///
    /// # Errors
    /// It has none, which the message explains.
    pub(super) fn new(parser: TokenParser) -> Result<Self, String> {
        // The clone shares the lexer's states, which are kept.
        let mut first = Matching::new(parser.clone());
        match first.mask() {
            Ok(mask) if !mask.is_empty() => {}
            Ok(mask) if mask.may_end() => return Err("it matches the empty text only".to_owned()),
            Ok(_) => return Err("no token of the base can begin an output".to_owned()),
            Err(ConstraintError::TooComplex) => return Err("it is too complex".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        let bytes = parser.parser.lexer_stats().num_bytes;
        Ok(Self {
            start: Mutex::new(parser),
            bytes,
        })
    }

    /// The constraint of one sequence, before its first token. Sequences share no state.
    pub fn start(&self) -> Box<dyn Constraint> {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(Matching::new(start.deep_clone()))
    }

    /// Estimate of the memory that the grammar takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl std::fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledGrammar")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
