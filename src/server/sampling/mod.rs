//! Sampling and output fields that the protocols share, validated once.

mod bad_words;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::ApiError;
use super::fields::{Fields, brief};
use crate::engine::{Limits, SamplingParams};
use crate::grammar::CompiledGrammar;
use crate::text::{StopSet, StreamOptions, Text};

/// Maximum number of completions per prompt, as in OpenAI's API.
pub const MAX_N: usize = 128;
const MAX_STOP_STRINGS: usize = 64;
/// Maximum bytes of one stop string.
const MAX_STOP_BYTES: usize = 1 << 10;
/// Maximum bytes of all stop strings of a request together.
const MAX_STOP_BYTES_IN_ALL: usize = 8 << 10;
/// Maximum number of stop tokens.
const MAX_STOP_TOKENS: usize = 1024;
/// Maximum number of biased tokens.
const MAX_BIASES: usize = 1024;

/// Validated sampling and output options, except for the token limit, which depends on the prompt.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Completions per prompt.
    pub n: usize,
    /// The endpoint fills in `logprobs`, and each prompt `max_tokens`.
    pub params: SamplingParams,
    /// Stop strings, and which tokens become text.
    pub text: StreamOptions,
    /// Report log-probabilities of the prompt's tokens, with this many alternatives each.
    pub prompt_logprobs: Option<usize>,
    /// Constraint on every completion; the protocol fills it in.
    pub grammar: Option<Arc<CompiledGrammar>>,
}

impl Sampling {
    /// Takes the shared fields.
    ///
    /// # Errors
    /// The first invalid or unsupported field.
    pub fn take(
        fields: &mut Fields<'_>,
        limits: &Limits,
        vocabulary: &Text,
    ) -> Result<Self, ApiError> {
        let n = fields.take_in("n", 1..=MAX_N)?.unwrap_or(1);
        let params = take_params(fields, limits, vocabulary)?;
        let text = StreamOptions {
            stop: take_stop(fields)?,
            include_stop_str_in_output: take_flag(fields, "include_stop_str_in_output", false)?,
            min_tokens: params.min_tokens,
            skip_special_tokens: take_flag(fields, "skip_special_tokens", true)?,
        };
        Ok(Self {
            n,
            params,
            text,
            prompt_logprobs: take_prompt_logprobs(fields, limits)?,
            grammar: None,
        })
    }
}

fn take_flag(fields: &mut Fields<'_>, name: &str, default: bool) -> Result<bool, ApiError> {
    Ok(fields.take(name)?.unwrap_or(default))
}

fn take_params(
    fields: &mut Fields<'_>,
    limits: &Limits,
    vocabulary: &Text,
) -> Result<SamplingParams, ApiError> {
    let default = SamplingParams::default();
    let temperature = fields.take_in("temperature", 0.0..=2.0)?;
    let top_p = fields.take_in("top_p", 0.0..=1.0)?.unwrap_or(default.top_p);
    let penalty = -2.0..=2.0;
    Ok(SamplingParams {
        min_tokens: fields.take("min_tokens")?.unwrap_or(default.min_tokens),
        // No probability at all keeps the likeliest token alone.
        temperature: match top_p {
            0.0 => 0.0,
            _ => temperature.unwrap_or(default.temperature),
        },
        top_p: if top_p == 0.0 { default.top_p } else { top_p },
        top_k: take_top_k(fields)?,
        min_p: fields.take_in("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        repetition_penalty: take_repetition_penalty(fields)?.unwrap_or(default.repetition_penalty),
        presence_penalty: fields
            .take_in("presence_penalty", penalty.clone())?
            .unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .take_in("frequency_penalty", penalty)?
            .unwrap_or(default.frequency_penalty),
        // OpenAI's seeds are signed; only the bits matter.
        seed: fields.take::<i64>("seed")?.map(i64::cast_unsigned),
        stop_token_ids: take_stop_token_ids(fields, limits)?,
        ignore_eos: take_flag(fields, "ignore_eos", default.ignore_eos)?,
        logit_bias: take_logit_bias(fields, limits)?,
        allowed_token_ids: take_allowed_token_ids(fields, limits)?,
        bad_words: bad_words::take(fields, vocabulary)?,
        ..default
    })
}

fn take_repetition_penalty(fields: &mut Fields<'_>) -> Result<Option<f32>, ApiError> {
    const NAME: &str = "repetition_penalty";
    match fields.take::<f32>(NAME)? {
        Some(penalty) if !(penalty > 0.0 && penalty.is_finite()) => {
            let problem = format!("must be above 0, got {penalty}");
            Err(ApiError::invalid(NAME, problem))
        }
        penalty => Ok(penalty),
    }
}

/// As in vLLM, -1 and 0 keep all tokens.
fn take_top_k(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    match fields.take::<i64>("top_k")? {
        None | Some(-1 | 0) => Ok(None),
        Some(k) => match usize::try_from(k) {
            Ok(k) => Ok(Some(k)),
            Err(_) => {
                let problem = format!("must be at least 1, or -1 for all tokens, got {k}");
                Err(ApiError::invalid("top_k", problem))
            }
        },
    }
}

/// The only tokens that may be sampled; ascending and distinct.
fn take_allowed_token_ids(
    fields: &mut Fields<'_>,
    limits: &Limits,
) -> Result<Option<Arc<[u32]>>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    let Some(mut ids) = fields.take_list::<u32>(NAME, limits.vocab_size)? else {
        return Ok(None);
    };
    if ids.is_empty() {
        return Err(ApiError::invalid(
            NAME,
            "is empty; nothing could be generated",
        ));
    }
    check_vocabulary(NAME, &ids, limits)?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids.into()))
}

/// Number of alternatives per token of the prompt; `false` requests none, as older clients say.
fn take_prompt_logprobs(
    fields: &mut Fields<'_>,
    limits: &Limits,
) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "prompt_logprobs";
    if fields.take_equal(NAME, "false") {
        return Ok(None);
    }
    fields.take_in(NAME, 0..=limits.max_logprobs)
}

/// One stop string or a list of them, compiled.
fn take_stop(fields: &mut Fields<'_>) -> Result<StopSet, ApiError> {
    const NAME: &str = "stop";
    let refuse = |problem: String| Err(ApiError::invalid(NAME, problem));
    let stop = fields
        .take_strings(NAME, MAX_STOP_STRINGS)?
        .unwrap_or_default();
    if stop.iter().any(String::is_empty) {
        return refuse("contains an empty string".to_owned());
    }
    if let Some(long) = stop.iter().find(|text| text.len() > MAX_STOP_BYTES) {
        let bytes = long.len();
        return refuse(format!(
            "has a string of {bytes} bytes; at most {MAX_STOP_BYTES} are allowed"
        ));
    }
    let bytes: usize = stop.iter().map(String::len).sum();
    if bytes > MAX_STOP_BYTES_IN_ALL {
        return refuse(format!(
            "has {bytes} bytes in all; at most {MAX_STOP_BYTES_IN_ALL} are allowed"
        ));
    }
    Ok(StopSet::new(stop))
}

fn take_stop_token_ids(fields: &mut Fields<'_>, limits: &Limits) -> Result<Arc<[u32]>, ApiError> {
    const NAME: &str = "stop_token_ids";
    let ids: Vec<u32> = fields.take_list(NAME, MAX_STOP_TOKENS)?.unwrap_or_default();
    check_vocabulary(NAME, &ids, limits)?;
    Ok(ids.into())
}

fn take_logit_bias(
    fields: &mut Fields<'_>,
    limits: &Limits,
) -> Result<Arc<[(u32, f32)]>, ApiError> {
    const NAME: &str = "logit_bias";
    let biases: BTreeMap<String, f32> = fields.take_map(NAME, MAX_BIASES)?.unwrap_or_default();
    let entry = |(token, bias): (String, f32)| {
        let id = token.parse().map_err(|_| {
            let token = brief(token);
            let problem = format!("has the key {token:?}; expected a token id");
            ApiError::invalid(NAME, problem)
        })?;
        check_vocabulary(NAME, &[id], limits)?;
        if !(-100.0..=100.0).contains(&bias) {
            let problem = format!("must be between -100 and 100, got {bias}");
            return Err(ApiError::invalid(NAME, problem));
        }
        Ok((id, bias))
    };
    let mut biases: Vec<_> = biases.into_iter().map(entry).collect::<Result<_, _>>()?;
    biases.sort_unstable_by_key(|&(id, _)| id);
    if let Some(twice) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let problem = format!("has token {} twice", twice[0].0);
        return Err(ApiError::invalid(NAME, problem));
    }
    Ok(biases.into())
}

/// Checks that the model has all of these token ids.
///
/// # Errors
/// The first id outside the vocabulary.
pub fn check_vocabulary(param: &str, ids: &[u32], limits: &Limits) -> Result<(), ApiError> {
    let size = limits.vocab_size;
    match ids.iter().find(|&&id| id as usize >= size) {
        Some(id) => {
            let problem = format!("contains token id {id}; the vocabulary has {size} tokens");
            Err(ApiError::invalid(param, problem))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LIMITS: Limits = Limits {
        max_model_len: 64,
        vocab_size: 4096,
        max_logprobs: 5,
        hidden_size: 8,
    };

    fn take(body: &Value) -> Result<Sampling, String> {
        let body = body.to_string();
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let text = crate::text::tests::byte_level_text("gpt-2");
        Sampling::take(&mut fields, &LIMITS, &text).map_err(|error| error.to_string())
    }

    #[test]
    fn stop_strings_are_bounded_in_number_in_bytes_and_in_all() {
        assert!(take(&json!({"stop": "x".repeat(1024)})).is_ok());
        assert!(take(&json!({"stop": vec!["x".repeat(1024); 8]})).is_ok());
        assert!(take(&json!({"stop": vec!["x"; 64]})).is_ok());
        for (stop, expected) in [
            (json!(vec!["x"; 65]), "`stop` has more than 64 entries"),
            (
                json!("é".repeat(513)),
                "`stop` has a string of 1026 bytes; at most 1024 are allowed",
            ),
            (
                json!(vec!["x".repeat(911); 9]),
                "`stop` has 8199 bytes in all; at most 8192 are allowed",
            ),
            (json!(7), "`stop` is malformed: "),
            (json!({"a": "b"}), "`stop` is malformed: "),
        ] {
            let error = take(&json!({"stop": stop})).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn stop_tokens_and_biases_are_bounded_in_number() {
        let ids = |count: usize| (0..count).collect::<Vec<_>>();
        let biases = |count: usize| -> Value {
            let entries = (0..count).map(|i| (i.to_string(), json!(1)));
            Value::Object(entries.collect())
        };
        assert!(take(&json!({"stop_token_ids": ids(1024), "logit_bias": biases(1024)})).is_ok());
        let error = take(&json!({"stop_token_ids": ids(1025)})).unwrap_err();
        assert!(error.contains("more than 1024 entries"), "{error}");
        let error = take(&json!({"logit_bias": biases(1025)})).unwrap_err();
        assert!(error.contains("more than 1024 entries"), "{error}");
        // The same token in two spellings.
        let error = take(&json!({"logit_bias": {"7": 1, "07": 2}})).unwrap_err();
        assert_eq!(error, "`logit_bias` has token 7 twice");
    }

    #[test]
    fn no_probability_at_all_keeps_the_likeliest_token() {
        let params = take(&json!({"top_p": 0, "temperature": 1.5}))
            .unwrap()
            .params;
        assert_eq!((params.temperature, params.top_p), (0.0, 1.0));
    }

    #[test]
    fn extreme_numbers_are_taken_or_refused_but_never_overflow() {
        let sampling = take(&json!({
            "seed": i64::MIN, "top_k": i64::MAX, "min_tokens": u64::MAX, "temperature": 1e-45,
            "repetition_penalty": 1e38, "top_p": 1e-30, "min_p": 1,
        }));
        let params = sampling.unwrap().params;
        assert_eq!(params.seed, Some(1 << 63));
        assert_eq!(params.top_k, Some(i64::MAX as usize));
        for (name, value) in [
            ("seed", json!(u64::MAX)),
            ("seed", json!(1e30)),
            ("top_k", json!(i64::MIN)),
            ("min_tokens", json!(-1)),
            ("n", json!(u64::MAX)),
            ("repetition_penalty", json!(1e39)),
            ("frequency_penalty", json!(-1e300)),
        ] {
            let error = take(&json!({name: value})).unwrap_err();
            assert!(error.starts_with(&format!("`{name}` ")), "{error}");
        }
    }
}
