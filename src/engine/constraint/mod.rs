//! Constraints: opaque sources of the tokens that may come next, such as a grammar. The engine
//! knows masks over the vocabulary only, no grammars and no text.

mod guide;
mod mask;
#[cfg(test)]
pub(super) mod tests;
mod workers;

use std::fmt::Debug;

pub use guide::Guide;
pub use mask::TokenMask;
pub use workers::MaskWorkers;

/// A constraint on one sequence's output, with its state.
///
/// Masks are computed on threads of the engine's own while the sequence's step runs. A mask costs
/// at most a few milliseconds; [`Constraint::accept`] is on the path between two steps, and costs
/// microseconds.
pub trait Constraint: Debug + Send {
    /// Tokens that may follow those accepted so far.
    ///
    /// # Errors
    /// The state has become too complex, or the constraint fails.
    fn mask(&mut self) -> Result<TokenMask, ConstraintError>;

    /// Appends a token that the latest mask allowed. Returns whether the output is complete:
    /// nothing may follow the token.
    ///
    /// # Errors
    /// The state has become too complex, or the constraint fails.
    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError>;
}

/// Failure of a constraint while a sequence is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("the grammar is too complex: its state exceeds the limits after this output")]
    TooComplex,
    #[error("no token can continue the grammar after this output")]
    NoTokenAllowed,
    #[error("the grammar failed")]
    Failed,
}
