/// Reason why a server could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The tokenizer lacks single-token words to build prompts from.
    #[error(
        "the tokenizer has {first} lower-case words of one token that begin a text, and {rest} \
         that follow a space; prompts need some of each"
    )]
    Words {
        /// Words that begin a text.
        first: usize,
        /// Words with a space before them.
        rest: usize,
    },
    /// Words that are one token each are not in sequence.
    #[error("a prompt of {wanted} words has {found} tokens with this tokenizer")]
    PromptTokens {
        /// Words, hence expected tokens.
        wanted: usize,
        /// Tokens.
        found: usize,
    },
    /// The tokenizer failed.
    #[error("cannot encode the prompt: {0}")]
    Encode(String),
    /// The server did not answer, or not as expected.
    #[error("{url}: {reason}")]
    Server {
        /// The requested URL.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The server lists no model to name in requests.
    #[error("{url} lists no model")]
    NoModel {
        /// The requested URL.
        url: String,
    },
}
