//! Log-probabilities in the shapes of the two endpoints. Every counted token has an entry, the one
//! that ended the text included.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::TokenLogprobs;
use crate::text::{Text, TokenDecoder};

/// JSON has no infinity; vLLM's stand-in for a token that is impossible.
const LOWEST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(LOWEST)
}

/// Of a chat completion.
#[derive(Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatToken {
    #[serde(flatten)]
    chosen: ChatAlternative,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub fn new(text: &Text, tokens: &[(u32, TokenLogprobs)]) -> Self {
        let alternative = |&(id, logprob): &(u32, f32)| ChatAlternative {
            token: text.token_text(id),
            logprob: finite(logprob),
            bytes: text.token_bytes(id).to_vec(),
        };
        let token = |(id, logprobs): &(u32, TokenLogprobs)| ChatToken {
            chosen: alternative(&(*id, logprobs.chosen)),
            top_logprobs: logprobs.top.iter().map(alternative).collect(),
        };
        Self {
            content: tokens.iter().map(token).collect(),
            refusal: None,
        }
    }
}

/// Of a plain completion.
#[derive(Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<Map<String, Value>>,
}

/// Where the next token of one plain completion begins, in characters of its text.
pub struct CompletionOffsets {
    text: Arc<Text>,
    /// A token may hold a part of a character: what is complete is counted.
    decoder: TokenDecoder,
    next: usize,
}

impl CompletionOffsets {
    pub fn new(text: Arc<Text>) -> Self {
        Self {
            decoder: TokenDecoder::continuing(text.clone(), true),
            text,
            next: 0,
        }
    }

    /// The log-probabilities of the next tokens.
    pub fn advance(&mut self, tokens: &[(u32, TokenLogprobs)]) -> CompletionLogprobs {
        let mut shape = CompletionLogprobs {
            text_offset: Vec::new(),
            token_logprobs: Vec::new(),
            tokens: Vec::new(),
            top_logprobs: Vec::new(),
        };
        for (id, logprobs) in tokens {
            let token = self.text.token_text(*id);
            // The chosen token is among its alternatives, likely or not. Of two tokens with one
            // text the likelier stays.
            let mut top = Map::new();
            let chosen = (*id, logprobs.chosen);
            for (id, logprob) in logprobs.top.iter().chain([&chosen]) {
                let text = self.text.token_text(*id);
                top.entry(text).or_insert_with(|| finite(*logprob).into());
            }
            shape.text_offset.push(self.next);
            self.next += self
                .decoder
                .push(*id)
                .map_or(0, |text| text.chars().count());
            shape.token_logprobs.push(finite(logprobs.chosen));
            shape.tokens.push(token);
            shape.top_logprobs.push(top);
        }
        shape
    }
}
