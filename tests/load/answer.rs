//! Answers of the completion endpoints, whole or streamed, and their comparison.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// All choices of a response. Equal whether it was streamed or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub choices: Vec<Choice>,
    /// Prompt and completion tokens, as the server counts them.
    pub usage: Option<(u64, u64)>,
}

/// One choice, as far as it has arrived.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    pub text: String,
    pub finish: Option<String>,
    /// Log-probability of each token, if requested.
    pub logprobs: Vec<f64>,
}

impl Answer {
    /// An answer of which nothing has arrived.
    pub fn empty(choices: usize) -> Self {
        Self {
            choices: vec![Choice::default(); choices],
            usage: None,
        }
    }

    /// Adds the choices of a whole response or of one event.
    pub fn add(&mut self, part: &Value) -> anyhow::Result<()> {
        if !part["error"].is_null() {
            bail!("the error {}", part["error"]);
        }
        let choices = part["choices"].as_array().context("`choices`")?;
        for choice in choices {
            let index = choice["index"].as_u64().context("`index`")? as usize;
            let mine = self.choices.get_mut(index);
            let mine = mine.with_context(|| format!("a choice {index} that was not requested"))?;
            ensure!(
                mine.finish.is_none(),
                "choice {index} goes on after its end"
            );
            let contents = ["text"].map(|name| &choice[name]).into_iter();
            let in_message = ["message", "delta"].map(|name| &choice[name]["content"]);
            for text in contents.chain(in_message).filter_map(Value::as_str) {
                mine.text += text;
            }
            let logprobs = choice["logprobs"]["token_logprobs"].as_array();
            let logprobs = logprobs.into_iter().flatten().filter_map(Value::as_f64);
            mine.logprobs.extend(logprobs);
            mine.finish = choice["finish_reason"].as_str().map(str::to_owned);
        }
        let count = |name: &str| part["usage"][name].as_u64();
        if let (Some(prompt), Some(completion)) =
            (count("prompt_tokens"), count("completion_tokens"))
        {
            self.usage = Some((prompt, completion));
        }
        Ok(())
    }

    /// Whether `self` is a part of `whole`, as a reader has it who leaves early.
    pub fn begins(&self, whole: &Self) -> bool {
        let pairs = self.choices.iter().zip(&whole.choices);
        self.choices.len() == whole.choices.len() && { pairs }.all(|(part, whole)| {
            whole.text.starts_with(&part.text)
                && whole.logprobs.starts_with(&part.logprobs)
                && (part.finish.is_none() || part == whole)
        })
    }

    /// Generated tokens; of a part, its characters, since each token is one.
    pub fn tokens(&self) -> u64 {
        let characters = || self.choices.iter().map(|choice| choice.text.len() as u64);
        self.usage
            .map_or_else(|| characters().sum(), |usage| usage.1)
    }
}

/// Splits server-sent events off a stream's bytes.
#[derive(Default)]
pub struct Events {
    unread: Vec<u8>,
}

impl Events {
    /// The data of the events that `piece` completes. Comments are left out.
    pub fn split(&mut self, piece: &[u8]) -> anyhow::Result<Vec<String>> {
        self.unread.extend_from_slice(piece);
        let mut found = Vec::new();
        while let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
            let event = String::from_utf8(self.unread.drain(..end + 2).collect())?;
            for line in event.lines().filter(|line| !line.is_empty()) {
                match line.strip_prefix("data: ") {
                    Some(data) => found.push(data.to_owned()),
                    None => ensure!(line.starts_with(':'), "the line {line:?}"),
                }
            }
        }
        Ok(found)
    }

    /// Whether nothing is left of an event that has begun.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }
}
