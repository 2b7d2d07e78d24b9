//! Everything between strings and token ids: tokenizer, chat template, incremental decoding, stop
//! strings. Depends on neither HTTP, the engine nor candle.
//!
//! A [`Text`] is read once per base, from a Hugging Face folder or from GGUF metadata, and shared
//! by `Arc`. It renders and encodes requests; one [`TextStream`] per sequence decodes what the
//! engine generates.

mod base;
mod byte_bound;
mod decoder;
mod error;
mod facts;
mod gguf;
mod hugging_face;
mod infill;
mod limited;
mod save;
mod stop;
mod stream;
mod template;
#[cfg(test)]
pub(crate) mod tests;
mod token_bytes;
mod tokenizer_parts;

pub use base::Text;
pub use decoder::TokenDecoder;
pub use error::TextError;
pub use stop::{StopSet, StopStep};
pub use stream::{StreamOptions, TextStream};
pub(crate) use template::python_json;
pub use template::{ChatMessage, ChatPrompt, TemplateForms};
