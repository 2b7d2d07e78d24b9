//! The constraint of one sequence, by llguidance's parser.

use llguidance::TokenParser;
use llguidance::api::StopReason;

use crate::engine::{Constraint, ConstraintError, TokenMask};

/// State of a grammar after some tokens.
pub struct Matching {
    parser: TokenParser,
}

impl Matching {
    /// The constraint of a parser before its first token.
    pub fn new(parser: TokenParser) -> Self {
        Self { parser }
    }

    /// The error of a parser that has failed.
    fn error(&self, error: &anyhow::Error) -> ConstraintError {
        match self.parser.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                tracing::debug!("a grammar became too complex: {error}");
                ConstraintError::TooComplex
            }
            reason => {
                tracing::error!("a grammar failed ({reason}): {error}");
                ConstraintError::Failed
            }
        }
    }
}

impl Constraint for Matching {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        let may_end = self.parser.is_accepting();
        match self.parser.compute_mask() {
            Ok(mask) => {
                let vocab_size = mask.len();
                let mut words = Vec::from(mask);
                words.truncate(vocab_size.div_ceil(32));
                if let Some(last) = words.last_mut().filter(|_| vocab_size % 32 != 0) {
                    *last &= (1 << (vocab_size % 32)) - 1;
                }
                Ok(TokenMask::new(words, may_end))
            }
            // No token of the vocabulary continues the text.
            Err(_) if self.parser.stop_reason() == StopReason::NoExtensionBias => {
                Ok(TokenMask::new(Vec::new(), may_end))
            }
            Err(error) => Err(self.error(&error)),
        }
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        let accepted = self.parser.consume_token(token);
        let complete = accepted.and_then(|_| self.parser.check_stop());
        complete.map_err(|error| self.error(&error))
    }
}

impl std::fmt::Debug for Matching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matching")
            .field("tokens", &self.parser.num_tokens())
            .finish_non_exhaustive()
    }
}
