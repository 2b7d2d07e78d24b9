//! An engine without a model, which echoes each prompt.

use std::thread;
use std::time::Duration;

use tombola::engine::{
    Command, EngineInbox, FinishReason, Output, OutputSender, Pooling, Request, SequenceError,
    TokenLogprobs,
};
use tombola::ticket::Digest;

use super::tokenizer::END;

/// Tokens of each prompt that the engine reports as cached, if it has as many.
pub const CACHED: usize = 2;

/// Suffix of a prompt that is answered with `x` until the stream is dropped.
pub const ENDLESS: &str = "~";
/// Suffix of a prompt that gets no token.
pub const SILENT: &str = "=";
/// Suffix of a prompt whose engine stops after one token.
pub const DEADLY: &str = "!";
/// Suffix of a prompt that breaks the model at its second token.
pub const BREAKING: &str = "?";

/// Observes the engine.
pub trait Observer: Clone + Send + 'static {
    /// A request has arrived.
    fn received(&self, request: &Request);

    /// A sequence was cancelled.
    fn cancelled(&self);
}

/// Runs the engine until it is shut down.
pub fn run(inbox: &EngineInbox, observer: &impl Observer) {
    while let Some(command) = inbox.recv() {
        match command {
            Command::Submit {
                request, outputs, ..
            } => {
                observer.received(&request);
                let observer = observer.clone();
                thread::spawn(move || echo(&request, &outputs, &observer));
            }
            Command::BaseDigest(answer) => {
                let _ = answer.send(Digest::of(b"loaded"));
            }
            Command::Shutdown => return,
        }
    }
}

/// Answers with the prompt, or as its last byte says.
fn echo(request: &Request, outputs: &OutputSender, observer: &impl Observer) {
    let (prompt, params) = (&request.prompt, &request.params);
    let ends_with = |mark: &str| prompt.last() == Some(&u32::from(mark.as_bytes()[0]));
    if ends_with(SILENT) {
        while !outputs.is_closed() {
            thread::sleep(Duration::from_millis(1));
        }
        return observer.cancelled();
    }
    if let Some(pooling) = request.pooling {
        // This fails if the client has disconnected.
        let _ = outputs.send(match ends_with(BREAKING) {
            true => Err(SequenceError::NotFinite),
            false => Ok(vector(prompt, pooling)),
        });
        return;
    }
    let endless = ends_with(ENDLESS);
    let answer: Box<dyn Iterator<Item = u32>> = if endless {
        Box::new(std::iter::repeat(u32::from(b'x')))
    } else {
        Box::new(prompt.iter().copied().chain([END]))
    };
    for (i, token) in answer.enumerate() {
        if ends_with(DEADLY) && i == 1 {
            return;
        }
        if ends_with(BREAKING) && i == 1 {
            // This fails if the client has disconnected.
            let _ = outputs.send(Err(SequenceError::NotFinite));
            return;
        }
        let stop = token == END || params.stop_token_ids.contains(&token);
        let length = i + 1 == params.max_tokens && !endless;
        let finish = match (stop, length) {
            (true, _) => Some(FinishReason::Stop),
            (_, true) => Some(FinishReason::Length),
            _ => None,
        };
        let alternative = |k: usize| match k {
            0 => (token, -0.5),
            k => (u32::from(b'a') + k as u32, f32::NEG_INFINITY),
        };
        let logprobs = params.logprobs.map(|k| TokenLogprobs {
            chosen: -0.5,
            rank: 1,
            top: (0..k).map(alternative).collect(),
        });
        let output = Output {
            token,
            logprobs,
            finish,
            prompt_logprobs: (i == 0).then(|| scores(request)).flatten(),
            cached_tokens: (i == 0).then_some(CACHED.min(prompt.len() - 1)),
            pooled: None,
        };
        if outputs.send(Ok(output)).is_err() {
            return observer.cancelled();
        }
        if finish.is_some() {
            return;
        }
        if endless {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The answer to a request for a vector: length of the prompt, last token, 0, and 1 for the mean.
fn vector(prompt: &[u32], pooling: Pooling) -> Output {
    let last = prompt[prompt.len() - 1];
    let mean = f32::from(u8::from(pooling == Pooling::Mean));
    Output {
        token: last,
        logprobs: None,
        finish: Some(FinishReason::Length),
        prompt_logprobs: None,
        cached_tokens: None,
        pooled: Some(vec![prompt.len() as f32, last as f32, 0.0, mean]),
    }
}

/// A score of each position that the request asks for: −1, and as an alternative the letter `a`.
fn scores(request: &Request) -> Option<Vec<TokenLogprobs>> {
    let score = |_: usize| TokenLogprobs {
        chosen: -1.0,
        rank: 2,
        top: vec![(u32::from(b'a'), -0.25); request.scored_top.min(1)],
    };
    let positions = request.scored.iter().cloned().flatten();
    let scores: Vec<_> = positions.map(score).collect();
    (!scores.is_empty()).then_some(scores)
}
