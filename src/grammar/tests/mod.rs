//! Tests of the layer, on a byte-level vocabulary.

mod kinds;
mod random;
mod refusals;
mod schemas;

use std::sync::LazyLock;

use serde_json::Value;

use super::{Grammar, GrammarError, Grammars};
use crate::text::Text;
use crate::text::tests::byte_level_text;

/// Rows of the model's output; more than the tokenizer has ids.
pub const VOCAB_SIZE: usize = 300;
/// End-of-text token of the vocabulary.
pub const END: u32 = 1;

pub static TEXT: LazyLock<Text> = LazyLock::new(|| byte_level_text("smollm"));
pub static GRAMMARS: LazyLock<Grammars> =
    LazyLock::new(|| Grammars::new(&TEXT, VOCAB_SIZE, &[END]).unwrap());

/// Whether the grammar allows each token of an output, and its end there.
pub fn accepts(grammar: &Grammar, output: &str) -> bool {
    let mut constraint = GRAMMARS.compile(grammar).unwrap().start();
    let mut complete = false;
    for token in TEXT.encode(output, false).unwrap() {
        if complete || !constraint.mask().unwrap().allows(token) {
            return false;
        }
        complete = constraint.accept(token).unwrap();
    }
    complete || constraint.mask().unwrap().may_end()
}

pub fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema)
}

/// The grammar allows the first texts and none of the others.
pub fn expect(grammar: &Grammar, valid: &[&str], invalid: &[&str]) {
    for output in valid {
        assert!(accepts(grammar, output), "{grammar:?} refuses {output}");
    }
    for output in invalid {
        assert!(!accepts(grammar, output), "{grammar:?} allows {output}");
    }
}

/// The error of a grammar that is refused.
pub fn refusal(grammar: &Grammar) -> GrammarError {
    GRAMMARS
        .compile(grammar)
        .err()
        .unwrap_or_else(|| panic!("{grammar:?} is not refused"))
}
