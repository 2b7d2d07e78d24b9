//! Fields that OpenAI's and vLLM's clients send and that change no answer here.

use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// Fields that are known and have no effect, each with the reason.
pub const NO_EFFECT: &[(&str, &str)] = &[
    ("user", "identifies an end user of the client"),
    ("safety_identifier", "identifies an end user of the client"),
    ("metadata", "is for stored responses"),
    ("store", "no response is stored"),
    ("service_tier", "there is one tier"),
    (
        "prompt_cache_key",
        "the prefix cache needs no key; `cache_salt` separates callers",
    ),
    ("prompt_cache_retention", "the prefix cache keeps what fits"),
    ("request_id", "the header `x-request-id` names a request"),
    ("guided_decoding_backend", "there is one backend"),
    ("spaces_between_special_tokens", "text is the tokens' bytes"),
    ("cache_prompt", "the prefix cache serves every request"),
];

/// Takes the fields without effect.
///
/// # Errors
/// `user` is not a string: a client that sends something else is mistaken.
pub fn discard(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    fields.take::<String>("user")?;
    for (name, _) in NO_EFFECT {
        fields.discard(name);
    }
    Ok(())
}
