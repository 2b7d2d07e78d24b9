//! Fields of OpenAI's API and of its relatives that would change the answer and are not honoured:
//! each is refused by its name.

use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// A field that is refused unless it requests nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unsupported {
    pub name: &'static str,
    /// Values, in JSON, that request nothing; absent and `null` do so anyway.
    pub harmless: &'static [&'static str],
    /// Why it is not honoured.
    pub reason: &'static str,
}

const fn field(
    name: &'static str,
    harmless: &'static [&'static str],
    reason: &'static str,
) -> Unsupported {
    Unsupported {
        name,
        harmless,
        reason,
    }
}

const SAMPLER: &str = "this sampler is not implemented";
const TEMPLATE: &str = "the chat template is the base's";
const MODALITY: &str = "the base reads and writes text only";
const TICKETS: &str = "name a ticket by `model`";
const CODE: &str = "clients cannot send code";

/// The fields that both kinds of completion refuse.
pub const UNSUPPORTED: &[Unsupported] = &[
    // OpenAI's.
    field("functions", &["[]"], "send `tools`"),
    field(
        "function_call",
        &["\"none\"", "\"auto\""],
        "send `tool_choice`",
    ),
    field("modalities", &["[\"text\"]"], MODALITY),
    field("audio", &[], MODALITY),
    field("prediction", &[], "predicted outputs are not implemented"),
    field("web_search_options", &[], "web search is not implemented"),
    field("verbosity", &["\"medium\""], "only OpenAI's models know it"),
    field("moderation", &[], "moderation is not implemented"),
    // vLLM's.
    field(
        "use_beam_search",
        &["false"],
        "only sampling is implemented",
    ),
    field("length_penalty", &["1"], "only sampling is implemented"),
    field("chat_template", &[], TEMPLATE),
    field("logits_processors", &["[]"], CODE),
    field("lora_request", &[], TICKETS),
    field("mm_processor_kwargs", &["{}"], MODALITY),
    field("media_io_kwargs", &["{}"], MODALITY),
    field("prompt_embeds", &["[]"], "prompts are text or token ids"),
    field(
        "kv_transfer_params",
        &["{}"],
        "KV blocks are not transferred",
    ),
    field("vllm_xargs", &["{}"], "there are no custom arguments"),
    field("repetition_detection", &[], SAMPLER),
    field(
        "thinking_token_budget",
        &[],
        "reasoning is not bounded apart",
    ),
    field(
        "guided_whitespace_pattern",
        &[],
        "white space is the grammar's own",
    ),
    // llama.cpp's, SGLang's, LoRAX's and others'.
    field("typical_p", &["1"], SAMPLER),
    field("tfs_z", &["1"], SAMPLER),
    field("top_a", &["0"], SAMPLER),
    field("top_n_sigma", &["-1", "0"], SAMPLER),
    field("epsilon_cutoff", &["0"], SAMPLER),
    field("eta_cutoff", &["0"], SAMPLER),
    field("mirostat", &["0"], SAMPLER),
    field("mirostat_mode", &["0"], SAMPLER),
    field("mirostat_tau", &[], "mirostat is not implemented"),
    field("mirostat_eta", &[], "mirostat is not implemented"),
    field("dynatemp_range", &["0"], SAMPLER),
    field("dry_multiplier", &["0"], SAMPLER),
    field("dry_base", &[], SAMPLER),
    field("xtc_probability", &["0"], SAMPLER),
    field("xtc_threshold", &[], SAMPLER),
    field("no_repeat_ngram_size", &["0"], SAMPLER),
    field("encoder_repetition_penalty", &["1"], SAMPLER),
    field("penalty_alpha", &["0"], SAMPLER),
    field("samplers", &[], "the order of the samplers is vLLM's"),
    field("custom_logit_processor", &[], CODE),
    field("n_predict", &[], "send `max_tokens`"),
    field("repeat_penalty", &["1"], "send `repetition_penalty`"),
    field("n_probs", &["0"], "send `logprobs`"),
    field("grammar", &["\"\""], "send `guided_grammar`"),
    field("json_schema", &[], "send `response_format`"),
    field("ebnf", &[], "send `guided_grammar`"),
    field("regex", &[], "send `guided_regex`"),
    field("stop_regex", &[], "send `stop`"),
    field("adapter_id", &[], TICKETS),
    field("adapter_source", &[], TICKETS),
    field("merged_adapters", &[], TICKETS),
    field("lora_path", &[], TICKETS),
    field("lora", &["[]"], TICKETS),
];

/// The fields that plain completions refuse.
pub const COMPLETIONS: &[Unsupported] = &[
    field("tools", &["[]"], "plain completions call no tools"),
    field(
        "tool_choice",
        &["\"none\"", "\"auto\""],
        "plain completions call no tools",
    ),
    field(
        "chat_template_kwargs",
        &["{}"],
        "plain completions have no template",
    ),
];

/// The fields that chat completions refuse.
pub const CHAT: &[Unsupported] = &[
    field("echo", &["false"], "the answer is a message of its own"),
    field("suffix", &["\"\""], "insertion is for plain completions"),
    field("best_of", &["1"], "send it to plain completions"),
];

/// Refuses these fields.
///
/// # Errors
/// The first one that requests something.
pub fn refuse(fields: &mut Fields<'_>, unsupported: &[Unsupported]) -> Result<(), ApiError> {
    for field in unsupported {
        fields.refuse(field.name, field.harmless, field.reason)?;
    }
    Ok(())
}
