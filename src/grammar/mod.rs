//! Grammars that constrain outputs: JSON, JSON schemas, regular expressions, choices, and Lark or
//! GBNF text.
//!
//! [`Grammars`] compiles them for the vocabulary of one base, and keeps those that were used
//! lately. A [`CompiledGrammar`] starts one [`Constraint`](crate::engine::Constraint) per sequence,
//! which computes the engine's token masks with the crate llguidance.
//!
//! What is generated under a JSON schema validates against it, by draft 2020-12, or the schema is
//! refused by the JSON pointer of the keyword that cannot be honoured ([`schema`] has the list).
//! JSON is written with little white space, so that a model cannot go on with it for ever: between
//! two tokens stands nothing, one space, or one line break and up to 24 spaces. A character of a
//! string is written in one way only: as itself, or as one of the short escapes `\" \\ \b \f \n \r
//! \t`. Properties follow the order of the schema. Integers stay between ±(2^53 − 1), which every
//! reader of JSON takes exactly. The schemas in Lark text (`%json`) are llguidance's own, without
//! these checks.

mod cache;
mod compile;
mod compiled;
mod error;
mod gbnf;
mod matching;
mod schema;
mod text_size;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use compile::Grammars;
pub use compiled::CompiledGrammar;
pub use error::GrammarError;
use serde_json::Value;

/// What an output must match as a whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that validates against a JSON schema.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole, in the syntax of the crate regex without
    /// look-around. `^` at its start and `$` at its end change nothing.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a Lark grammar, as llguidance takes them; or of a GBNF grammar, told by its `::=`.
    Lark(String),
}

impl Grammar {
    /// What the grammar is, in the words of messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "choice",
            Self::Lark(text) if gbnf::is_gbnf(text) => "GBNF grammar",
            Self::Lark(_) => "Lark grammar",
        }
    }
}
