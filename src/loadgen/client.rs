//! One streamed request, and when its parts came.

use std::io::{BufRead as _, BufReader};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use super::BenchError;

/// How a server is told which adapter a request wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// By `model`, as vLLM and this server take it.
    #[default]
    OpenAi,
    /// By the adapter's number in `lora`, as llama.cpp's server takes it.
    LlamaCpp,
}

impl Kind {
    const ALL: [Self; 2] = [Self::OpenAi, Self::LlamaCpp];

    fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::LlamaCpp => "llamacpp",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("{text:?} is not a kind of server: `openai` or `llamacpp`"))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A server to measure.
pub struct Server {
    agent: Agent,
    url: String,
    kind: Kind,
    /// What `model` is without an adapter.
    model: String,
    pub adapters: Vec<String>,
}

/// When the parts of an answer came.
#[derive(Clone, Debug)]
pub struct Timed {
    sent: Instant,
    /// Chunks that carried text.
    chunks: Vec<Instant>,
    end: Instant,
    /// As the server counts; of a server that does not, the chunks.
    pub completion_tokens: usize,
    pub prompt_tokens: Option<usize>,
}

impl Timed {
    /// Counts from another time on than that of sending.
    pub(super) fn since(self, sent: Instant) -> Self {
        Self { sent, ..self }
    }

    /// Until the first text came.
    pub fn first(&self) -> Duration {
        let first = self.chunks.first().unwrap_or(&self.end);
        first.duration_since(self.sent)
    }

    /// Between chunks.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        let pairs = self.chunks.windows(2);
        pairs.map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Tokens a second after the first chunk; `None` where only one came.
    pub fn decode_rate(&self) -> Option<f64> {
        let span: Duration = self.gaps().sum();
        let tokens = self.completion_tokens.checked_sub(1)?;
        (tokens > 0 && !span.is_zero()).then(|| tokens as f64 / span.as_secs_f64())
    }

    /// Until the stream ended.
    pub fn whole(&self) -> Duration {
        self.end.duration_since(self.sent)
    }
}

impl Server {
    /// A server at `url`; without `model` its first one is asked for.
    ///
    /// # Errors
    /// It does not answer, or names no model.
    pub fn new(
        url: &str,
        kind: Kind,
        model: Option<String>,
        adapters: Vec<String>,
    ) -> Result<Self, BenchError> {
        // Every request has a connection of its own: llama.cpp closes it after a stream.
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .build()
            .into();
        let mut server = Self {
            agent,
            url: url.trim_end_matches('/').to_owned(),
            kind,
            model: model.unwrap_or_default(),
            adapters,
        };
        if server.model.is_empty() {
            server.model = server.first_model()?;
        }
        Ok(server)
    }

    fn first_model(&self) -> Result<String, BenchError> {
        let url = format!("{}/v1/models", self.url);
        let failed = |reason: String| BenchError::Server {
            url: url.clone(),
            reason,
        };
        let mut response = self
            .agent
            .get(&url)
            .call()
            .map_err(|e| failed(e.to_string()))?;
        let models = response.body_mut().read_json::<Value>();
        let models = models.map_err(|e| failed(e.to_string()))?;
        let first = models["data"][0]["id"].as_str().map(str::to_owned);
        first.ok_or(BenchError::NoModel { url })
    }

    /// Asks for exactly `max_tokens` tokens after a prompt, greedily.
    pub(super) fn complete(
        &self,
        prompt: &str,
        max_tokens: usize,
        adapter: Option<usize>,
    ) -> Result<Timed, BenchError> {
        let url = format!("{}/v1/completions", self.url);
        let body = self.body(prompt, max_tokens, adapter);
        let sent = Instant::now();
        let failed = |reason: String| BenchError::Server {
            url: url.clone(),
            reason,
        };
        let response = self.agent.post(&url).send_json(&body);
        let mut response = response.map_err(|e| failed(e.to_string()))?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let text: String = text.chars().take(500).collect();
            return Err(failed(format!("{}: {text}", response.status())));
        }
        let (mut chunks, mut usage) = (Vec::new(), Value::Null);
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.map_err(|e| failed(format!("the stream broke: {e}")))?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else {
                continue;
            };
            if data == "[DONE]" {
                continue;
            }
            let event: Value = serde_json::from_str(data)
                .map_err(|e| failed(format!("an event is not JSON: {e}: {data}")))?;
            if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
                return Err(failed(error.to_string()));
            }
            if let Some(counted) = event.get("usage").filter(|usage| usage.is_object()) {
                usage = counted.clone();
            }
            if event["choices"][0]["text"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
            {
                chunks.push(Instant::now());
            }
        }
        let count = |name: &str| usage[name].as_u64().map(|count| count as usize);
        Ok(Timed {
            sent,
            end: Instant::now(),
            completion_tokens: count("completion_tokens").unwrap_or(chunks.len()),
            prompt_tokens: count("prompt_tokens"),
            chunks,
        })
    }

    fn body(&self, prompt: &str, max_tokens: usize, adapter: Option<usize>) -> Value {
        let mut body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "min_tokens": max_tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        match self.kind {
            Kind::OpenAi => {
                if let Some(adapter) = adapter {
                    body["model"] = self.adapters[adapter].clone().into();
                }
            }
            Kind::LlamaCpp => {
                body["cache_prompt"] = false.into();
                // What is not listed has a scale of 0; without any list all are on.
                let scale = if adapter.is_some() { 1.0 } else { 0.0 };
                body["lora"] = json!([{ "id": adapter.unwrap_or(0), "scale": scale }]);
            }
        }
        body
    }
}
