use std::path::PathBuf;

/// Why text could not be turned into tokens, or the files that say how could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the base's folder is missing or unreadable.
    #[error("cannot read {path}: {error}; expected {expected}")]
    Read {
        path: PathBuf,
        expected: &'static str,
        error: std::io::Error,
    },
    /// A file of the base's folder does not hold what it should.
    #[error("{path} is broken: {reason}; expected {expected}")]
    File {
        path: PathBuf,
        expected: &'static str,
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write { path: PathBuf, reason: String },
    /// A key of the GGUF's metadata is missing, malformed or of an unsupported kind.
    #[error("GGUF metadata `{key}`: found {found}, expected {expected}")]
    Metadata {
        key: &'static str,
        found: String,
        expected: &'static str,
    },
    /// The tokenizer is well-formed but cannot be served.
    #[error("the tokenizer of {origin} cannot be used: {reason}")]
    Tokenizer { origin: String, reason: String },
    /// The chat template does not compile.
    #[error("the chat template of {origin} does not compile: {reason}")]
    Template { origin: String, reason: String },
    /// A chat was asked of a base that has no template.
    #[error(
        "this base has no chat template: send a plain prompt, or add chat_template.jinja to its folder"
    )]
    NoChatTemplate,
    /// The template called `raise_exception`; the text is the template's own.
    #[error("the chat template refuses these messages: {0}")]
    TemplateRaised(String),
    /// The template failed on these messages.
    #[error("the chat template failed on these messages: {0}")]
    Render(String),
    /// The tokenizer failed on this text.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// An id that the tokenizer does not have.
    #[error("token id {id} is not in the vocabulary: expected less than {vocab_size}")]
    UnknownToken { id: u32, vocab_size: usize },
}
