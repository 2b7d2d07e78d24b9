//! `POST /v1/chat/completions`

mod message;
mod request;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use self::message::{Delta, Message};
use self::request::ChatRequest;
use super::envelope::{Kind, done, finish_reason};
use super::logprobs::{ChatLogprobs, PromptLogprobs, TokenSpelling};
use super::stream_options::Streaming;
use crate::chat::{MessageParser, ParserOptions};
use crate::engine::FinishReason;
use crate::server::conversation::read_whole;
use crate::server::error::ApiError;
use crate::server::exchange;
use crate::server::fields::Fields;
use crate::server::generate::{TextDelta, Usage};
use crate::server::protocol::{Facts, Job, Piece, Protocol};
use crate::server::state::AppState;

const KIND: Kind = Kind {
    id_prefix: "chatcmpl-",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
};

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    exchange::respond::<Chat>(state, request).await
}

/// One whole choice.
#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(flatten)]
    prompt: ShownPrompt,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// One choice of a chunk.
#[derive(Serialize)]
struct ChatChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(flatten)]
    prompt: ShownPrompt,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What a choice shows of the prompt, on request.
#[derive(Default, Serialize)]
struct ShownPrompt {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// State of one response.
struct Chat {
    streaming: Streaming,
    options: ParserOptions,
    spelling: TokenSpelling,
    logprobs: bool,
    prompt_logprobs: bool,
    token_ids: bool,
    /// Token ids of the prompt.
    prompt: Vec<u32>,
    /// State of each completion in a stream.
    choices: Vec<StreamedChoice>,
}

/// State of a completion in a stream.
struct StreamedChoice {
    parser: MessageParser,
    /// Whether its first chunk was written.
    begun: bool,
}

impl Chat {
    fn logprobs(&self, delta: &TextDelta) -> Option<ChatLogprobs> {
        self.logprobs
            .then(|| ChatLogprobs::new(&self.spelling, delta))
    }

    fn token_ids(&self, delta: &mut TextDelta) -> Option<Vec<u32>> {
        self.token_ids.then(|| std::mem::take(&mut delta.ids))
    }

    /// The prompt, as the first delta of a choice shows it.
    fn shown_prompt(&self, delta: &TextDelta) -> ShownPrompt {
        let scores = delta.prompt_logprobs.as_deref().unwrap_or(&[]);
        let logprobs = || PromptLogprobs::new(&self.spelling, &self.prompt, scores);
        ShownPrompt {
            prompt_logprobs: self.prompt_logprobs.then(logprobs),
            prompt_token_ids: self.token_ids.then(|| self.prompt.clone()),
        }
    }

    /// The whole completion at `index`.
    fn choice(&self, index: usize, mut completion: TextDelta) -> ChatChoice {
        let message = Message::new(read_whole(self.options.clone(), &completion.text));
        ChatChoice {
            index,
            logprobs: self.logprobs(&completion),
            finish_reason: completion
                .finish
                .map(|finish| finished(finish, message.calls())),
            message,
            prompt: self.shown_prompt(&completion),
            token_ids: self.token_ids(&mut completion),
        }
    }

    /// Choices of the chunks for a delta.
    fn chunk_choices(&mut self, index: usize, mut delta: TextDelta) -> Vec<ChatChunkChoice> {
        let plain = |delta| ChatChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            prompt: ShownPrompt::default(),
            token_ids: None,
        };
        let mut choices = Vec::new();
        if !std::mem::replace(&mut self.choices[index].begun, true) {
            choices.push(ChatChunkChoice {
                prompt: self.shown_prompt(&delta),
                ..plain(Delta::start())
            });
        }
        let parser = &mut self.choices[index].parser;
        let mut parts = parser.push(&delta.text);
        if delta.finish.is_some() {
            parts.extend(parser.finish());
        }
        let has_calls = parser.calls() > 0;
        let first = choices.len();
        choices.extend(parts.into_iter().map(|part| plain(part.into())));
        let tells_tokens = self.logprobs || self.token_ids;
        if choices.len() == first && tells_tokens && !delta.ids.is_empty() {
            choices.push(plain(Delta::empty()));
        }
        if let Some(choice) = choices.get_mut(first) {
            choice.logprobs = self.logprobs(&delta);
            choice.token_ids = self.token_ids(&mut delta);
        }
        if let Some(finish) = delta.finish {
            choices.push(ChatChunkChoice {
                finish_reason: Some(finished(finish, has_calls)),
                ..plain(Delta::default())
            });
        }
        choices
    }
}

/// Finish reason of a message, which may call tools.
fn finished(finish: FinishReason, has_calls: bool) -> &'static str {
    match finish {
        FinishReason::Stop | FinishReason::Complete if has_calls => "tool_calls",
        finish => finish_reason(finish),
    }
}

impl Protocol for Chat {
    fn read(fields: &mut Fields<'_>, state: &AppState) -> Result<Job<Self>, ApiError> {
        let ChatRequest {
            prompt,
            sampling,
            streaming,
            parser,
            logprobs,
            tokens_as_ids,
            token_ids,
        } = ChatRequest::take(fields, state)?;
        let choice = || StreamedChoice {
            parser: MessageParser::new(parser.clone()),
            begun: false,
        };
        Ok(Job {
            stream: streaming.on,
            protocol: Self {
                streaming,
                choices: (0..sampling.n).map(|_| choice()).collect(),
                options: parser,
                spelling: TokenSpelling::new(Arc::clone(&state.text), tokens_as_ids),
                logprobs,
                prompt_logprobs: sampling.prompt_logprobs.is_some(),
                token_ids,
                prompt: prompt.ids.clone(),
            },
            prompts: vec![prompt],
            sampling,
        })
    }

    fn whole(self, facts: &Facts, completions: Vec<TextDelta>, usage: Usage) -> String {
        let completions = completions.into_iter().enumerate();
        let choices: Vec<_> = completions
            .map(|(index, completion)| self.choice(index, completion))
            .collect();
        KIND.whole(facts, &choices, usage)
    }

    fn delta(&mut self, facts: &Facts, index: usize, delta: TextDelta) -> Vec<Piece> {
        let choices = self.chunk_choices(index, delta);
        KIND.chunks(facts, choices, self.streaming.include_usage)
    }

    fn end(&mut self, facts: &Facts, usage: Usage) -> Vec<Piece> {
        KIND.end(facts, self.streaming.include_usage.then_some(usage))
    }

    fn failure(&mut self, _facts: &Facts, error: &ApiError) -> Vec<Piece> {
        vec![Piece::json(&error.body()), done()]
    }
}
