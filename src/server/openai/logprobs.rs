//! Log-probabilities in the wire formats of the two endpoints. Every counted token has an entry,
//! including the stop token.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::TokenLogprobs;
use crate::text::{Text, TokenDecoder};

/// Log-probability of an impossible token, as in vLLM: JSON has no infinity.
const MIN_LOGPROB: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(MIN_LOGPROB)
}

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatTokenLogprob>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatTokenLogprob {
    #[serde(flatten)]
    chosen: ChatTopLogprob,
    top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Serialize)]
struct ChatTopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Log-probabilities of the tokens of a delta.
    pub fn new(text: &Text, tokens: &[(u32, TokenLogprobs)]) -> Self {
        let alternative = |&(id, logprob): &(u32, f32)| ChatTopLogprob {
            token: text.token_text(id),
            logprob: finite(logprob),
            bytes: text.token_bytes(id).to_vec(),
        };
        let token = |(id, logprobs): &(u32, TokenLogprobs)| ChatTokenLogprob {
            chosen: alternative(&(*id, logprobs.chosen)),
            top_logprobs: logprobs.top.iter().map(alternative).collect(),
        };
        Self {
            content: tokens.iter().map(token).collect(),
            refusal: None,
        }
    }
}

/// `logprobs` of a plain completion choice. Lists have one entry per token.
#[derive(Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<Map<String, Value>>,
}

/// Text offset of the next token of one plain completion, in characters.
pub struct TextOffsets {
    text: Arc<Text>,
    /// Assembles characters, since a token may hold only part of one.
    decoder: TokenDecoder,
    next: usize,
}

impl TextOffsets {
    /// Offsets of a completion that begins now.
    pub fn new(text: Arc<Text>) -> Self {
        Self {
            decoder: TokenDecoder::continuing(text.clone(), true),
            text,
            next: 0,
        }
    }

    /// Log-probabilities of the next tokens; moves the offset past them.
    pub fn advance(&mut self, tokens: &[(u32, TokenLogprobs)]) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs {
            text_offset: Vec::new(),
            token_logprobs: Vec::new(),
            tokens: Vec::new(),
            top_logprobs: Vec::new(),
        };
        for (id, logprobs) in tokens {
            let token = self.text.token_text(*id);
            // The chosen token is always among the alternatives. If two tokens have the same text,
            // the likelier one stays.
            let mut top = Map::new();
            let chosen = (*id, logprobs.chosen);
            for (id, logprob) in logprobs.top.iter().chain([&chosen]) {
                let text = self.text.token_text(*id);
                top.entry(text).or_insert_with(|| finite(*logprob).into());
            }
            lists.text_offset.push(self.next);
            self.next += self
                .decoder
                .push(*id)
                .map_or(0, |text| text.chars().count());
            lists.token_logprobs.push(finite(logprobs.chosen));
            lists.tokens.push(token);
            lists.top_logprobs.push(top);
        }
        lists
    }
}
