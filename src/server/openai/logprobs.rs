//! Log-probabilities in the wire formats of the two endpoints. Every counted token has an entry,
//! including the stop token.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::TokenLogprobs;
use crate::server::generate::TextDelta;
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
    pub fn new(spelling: &TokenSpelling, delta: &TextDelta) -> Self {
        let alternative = |&(id, logprob): &(u32, f32)| ChatTopLogprob {
            token: spelling.token(id),
            logprob: finite(logprob),
            bytes: spelling.text.token_bytes(id).to_vec(),
        };
        let token = |(id, logprobs): (u32, &TokenLogprobs)| ChatTokenLogprob {
            chosen: alternative(&(id, logprobs.chosen)),
            top_logprobs: logprobs.top.iter().map(alternative).collect(),
        };
        Self {
            content: delta.scored_tokens().map(token).collect(),
            refusal: None,
        }
    }
}

/// `logprobs` of a plain completion choice. Lists have one entry per token.
#[derive(Default, Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    /// `null` for the first token of an echoed prompt, which follows nothing.
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
}

impl CompletionLogprobs {
    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// How tokens are spelled in lists of log-probabilities.
#[derive(Clone)]
pub struct TokenSpelling {
    text: Arc<Text>,
    as_ids: bool,
}

impl TokenSpelling {
    /// Tokens are spelled by their text, or `as_ids` by `token_id:ID`, as in vLLM.
    pub fn new(text: Arc<Text>, as_ids: bool) -> Self {
        Self { text, as_ids }
    }

    fn token(&self, id: u32) -> String {
        if self.as_ids {
            format!("token_id:{id}")
        } else {
            self.text.token_text(id)
        }
    }
}

/// Text offset of the next token of one plain completion, in characters.
pub struct TextOffsets {
    spelling: TokenSpelling,
    /// Assembles characters, since a token may hold only part of one.
    decoder: TokenDecoder,
    next: usize,
}

impl TextOffsets {
    /// Offsets of a text that begins now.
    pub fn new(spelling: TokenSpelling) -> Self {
        Self {
            decoder: TokenDecoder::continuing(spelling.text.clone(), true),
            spelling,
            next: 0,
        }
    }

    /// Appends an echoed prompt; `scores` are those of its tokens from the second on.
    pub fn push_prompt(
        &mut self,
        prompt: &[u32],
        scores: &[TokenLogprobs],
        lists: &mut CompletionLogprobs,
    ) {
        self.decoder = TokenDecoder::new(self.spelling.text.clone(), true);
        let scores = std::iter::once(None).chain(scores.iter().map(Some));
        for (&id, score) in prompt.iter().zip(scores) {
            self.push(id, score, lists);
        }
    }

    /// Appends a token, and moves the offset past it.
    pub fn push(
        &mut self,
        id: u32,
        logprobs: Option<&TokenLogprobs>,
        lists: &mut CompletionLogprobs,
    ) {
        lists.text_offset.push(self.next);
        let text = self.decoder.push(id);
        self.next += text.map_or(0, |text| text.chars().count());
        let chosen = logprobs.map(|logprobs| finite(logprobs.chosen));
        lists.token_logprobs.push(chosen);
        lists.tokens.push(self.spelling.token(id));
        let top = logprobs.map(|logprobs| self.alternatives(id, logprobs));
        lists.top_logprobs.push(top);
    }

    /// The alternatives, always with the chosen token. If two have the same text, the likelier one
    /// stays.
    fn alternatives(&self, id: u32, logprobs: &TokenLogprobs) -> Map<String, Value> {
        let mut top = Map::new();
        let chosen = (id, logprobs.chosen);
        for &(id, logprob) in logprobs.top.iter().chain([&chosen]) {
            let token = self.spelling.token(id);
            top.entry(token).or_insert_with(|| finite(logprob).into());
        }
        top
    }
}

/// `prompt_logprobs`, in vLLM's form: per token its alternatives by id, `null` for the first.
#[derive(Serialize)]
#[serde(transparent)]
pub struct PromptLogprobs(Vec<Option<BTreeMap<u32, RankedLogprob>>>);

/// A token of the prompt, or an alternative.
#[derive(Serialize)]
struct RankedLogprob {
    logprob: f32,
    /// Place among all tokens by probability, from 1.
    rank: usize,
    decoded_token: String,
}

impl PromptLogprobs {
    /// `scores` are those of the prompt's tokens from the second on.
    pub fn new(spelling: &TokenSpelling, prompt: &[u32], scores: &[TokenLogprobs]) -> Self {
        let ranked = |id: u32, logprob: f32, rank: usize| RankedLogprob {
            logprob: finite(logprob),
            rank,
            decoded_token: spelling.token(id),
        };
        let position = |(&id, score): (&u32, &TokenLogprobs)| {
            let top = score.top.iter().zip(1..);
            let mut tokens: BTreeMap<_, _> = top
                .map(|(&(id, logprob), rank)| (id, ranked(id, logprob, rank)))
                .collect();
            tokens.insert(id, ranked(id, score.chosen, score.rank));
            Some(tokens)
        };
        let scored = prompt.iter().skip(1).zip(scores).map(position);
        Self(std::iter::once(None).chain(scored).collect())
    }
}
