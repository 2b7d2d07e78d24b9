//! `stream` and `stream_options`.

use serde::Deserialize;

use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// How a response is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// Whether it is streamed at all.
    pub on: bool,
    /// Whether the stream ends with a usage chunk.
    pub include_usage: bool,
}

impl Streaming {
    /// Takes the fields.
    ///
    /// # Errors
    /// They are malformed, or options without a stream.
    pub fn take(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        const NAME: &str = "stream_options";
        #[derive(Deserialize)]
        struct Options {
            include_usage: Option<bool>,
            continuous_usage_stats: Option<bool>,
        }
        let on = fields.take("stream")?.unwrap_or(false);
        let options: Option<Options> = fields.take(NAME)?;
        if options.is_some() && !on {
            let problem = "is only allowed when `stream` is true";
            return Err(ApiError::invalid(NAME, problem));
        }
        if options
            .as_ref()
            .is_some_and(|o| o.continuous_usage_stats == Some(true))
        {
            return Err(ApiError::Unsupported {
                param: format!("{NAME}.continuous_usage_stats"),
                reason: "the last chunk alone has the usage",
            });
        }
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        Ok(Self { on, include_usage })
    }
}
