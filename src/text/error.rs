use std::path::PathBuf;

/// Failure to read a tokenizer or a chat template, or to use one.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file in the base's folder is missing or unreadable.
    #[error("cannot read {path}: {error}; expected {expected}")]
    Read {
        path: PathBuf,
        expected: &'static str,
        error: std::io::Error,
    },
    /// A file in the base's folder is malformed.
    #[error("{path} is malformed: {reason}; expected {expected}")]
    File {
        path: PathBuf,
        expected: &'static str,
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write { path: PathBuf, reason: String },
    /// A key of the GGUF metadata is missing, malformed or not supported.
    #[error("GGUF metadata `{key}`: found {found}, expected {expected}")]
    Metadata {
        key: &'static str,
        found: String,
        expected: &'static str,
    },
    /// The tokenizer is well-formed but not supported.
    #[error("the tokenizer of {origin} cannot be used: {reason}")]
    Tokenizer { origin: String, reason: String },
    /// The chat template does not compile.
    #[error("the chat template of {origin} does not compile: {reason}")]
    Template { origin: String, reason: String },
    /// The base has no chat template.
    #[error(
        "this base has no chat template: send a plain prompt, or add chat_template.jinja to its \
         folder"
    )]
    NoChatTemplate,
    /// The template called `raise_exception` with this message.
    #[error("the chat template refuses these messages: {0}")]
    TemplateRaised(String),
    /// The template failed to render these messages.
    #[error("the chat template failed on these messages: {0}")]
    Render(String),
    /// A call in a message is malformed.
    #[error("`{param}` {problem}")]
    ToolCall { param: String, problem: String },
    /// A further variable of the template has the name of one that the request sets otherwise.
    #[error("the chat template's variable `{0}` has a field of its own in the request")]
    ReservedVariable(String),
    /// The final message cannot be continued.
    #[error(
        "the chat template changes or drops the content of the final message, so it cannot be \
         continued"
    )]
    FinalMessageLost,
    /// The template executed too many instructions on these messages.
    #[error("the chat template ran for more than {0} instructions on these messages")]
    TemplateEndless(u64),
    /// The template rendered these messages to more than so many bytes.
    #[error("the chat template renders these messages to more than {max_bytes} bytes")]
    RenderedTooLong { max_bytes: usize },
    /// The tokenizer failed to encode this text.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// The tokenizer has no such id.
    #[error("token id {id} is not in the vocabulary: expected less than {vocab_size}")]
    UnknownToken { id: u32, vocab_size: usize },
    /// The base has no tokens for text to insert.
    #[error("the base was not made to insert text: it has no fill-in-the-middle tokens")]
    NoInfill,
}
