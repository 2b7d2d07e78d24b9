//! One streamed request and the timing of its parts.

use std::io::{BufRead as _, BufReader};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use super::error::LoadError;

/// API by which a request selects its adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerKind {
    /// By the name in `model`, as in vLLM and this server.
    #[default]
    OpenAi,
    /// By the adapter's number in `lora`, as in llama.cpp's server.
    LlamaCpp,
}

impl ServerKind {
    const ALL: [Self; 2] = [Self::OpenAi, Self::LlamaCpp];

    fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::LlamaCpp => "llamacpp",
        }
    }
}

impl FromStr for ServerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("unknown kind {text:?}; expected `openai` or `llamacpp`"))
    }
}

impl std::fmt::Display for ServerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A server to measure.
pub struct Server {
    agent: Agent,
    url: String,
    kind: ServerKind,
    /// Value of the `Authorization` header, if the server needs a key.
    authorization: Option<String>,
    /// `model` of requests without an adapter.
    model: String,
    /// Names of the adapters, in the order of their numbers.
    pub adapters: Vec<String>,
}

/// Times at which the parts of a response arrived.
#[derive(Clone, Debug)]
pub struct RequestTiming {
    sent: Instant,
    /// Arrival of each chunk with text.
    chunks: Vec<Instant>,
    end: Instant,
    /// Generated tokens as the server counts them; the number of chunks if it does not.
    pub completion_tokens: usize,
    /// Prompt tokens as the server counts them, if it does.
    pub prompt_tokens: Option<usize>,
}

impl RequestTiming {
    /// The same timing, relative to the scheduled time instead of the time of sending.
    pub(super) fn measured_from(self, sent: Instant) -> Self {
        Self { sent, ..self }
    }

    /// Time until the first chunk.
    pub fn time_to_first_token(&self) -> Duration {
        let first = self.chunks.first().unwrap_or(&self.end);
        first.duration_since(self.sent)
    }

    /// Times between consecutive chunks.
    pub fn inter_token_times(&self) -> impl Iterator<Item = Duration> {
        let pairs = self.chunks.windows(2);
        pairs.map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Tokens per second after the first chunk; `None` if there was only one.
    pub fn decode_rate(&self) -> Option<f64> {
        let span: Duration = self.inter_token_times().sum();
        let tokens = self.completion_tokens.checked_sub(1)?;
        (tokens > 0 && !span.is_zero()).then(|| tokens as f64 / span.as_secs_f64())
    }

    /// Time until the stream ended.
    pub fn total(&self) -> Duration {
        self.end.duration_since(self.sent)
    }
}

impl Server {
    /// A server at `url`, which gets the API `key` with each request. Without `model`,
    /// requests name the first model that the server lists.
    ///
    /// ```
    /// use tombola::loadgen::{Server, ServerKind};
    ///
    /// // The base is named, so no request for the list of models is sent.
    /// let base = Some("smollm2-135m".to_owned());
    /// let tickets = vec!["sql".to_owned(), "arc".to_owned()];
    /// let url = "http://127.0.0.1:8000";
    /// let server = Server::new(url, ServerKind::OpenAi, None, base, tickets)?;
    /// assert_eq!(server.adapters.len(), 2);
    /// # Ok::<(), tombola::loadgen::LoadError>(())
    /// ```
    ///
    /// # Errors
    /// The server does not answer or lists no model.
    pub fn new(
        url: &str,
        kind: ServerKind,
        key: Option<&str>,
        model: Option<String>,
        adapters: Vec<String>,
    ) -> Result<Self, LoadError> {
        // One connection per request: llama.cpp closes it after a stream.
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .build()
            .into();
        let mut server = Self {
            agent,
            url: url.trim_end_matches('/').to_owned(),
            kind,
            authorization: key.map(|key| format!("Bearer {key}")),
            model: model.unwrap_or_default(),
            adapters,
        };
        if server.model.is_empty() {
            server.model = server.first_model()?;
        }
        Ok(server)
    }

    fn first_model(&self) -> Result<String, LoadError> {
        let url = format!("{}/v1/models", self.url);
        let failed = |reason: String| LoadError::Server {
            url: url.clone(),
            reason,
        };
        let mut request = self.agent.get(&url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let mut response = request.call().map_err(|e| failed(e.to_string()))?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let text: String = text.chars().take(500).collect();
            return Err(failed(format!("{}: {text}", response.status())));
        }
        let models: Value = response
            .body_mut()
            .read_json()
            .map_err(|e| failed(e.to_string()))?;
        models["data"][0]["id"]
            .as_str()
            .map(str::to_owned)
            .ok_or(LoadError::NoModel { url })
    }

    /// Generates exactly `max_tokens` tokens after a prompt, greedily.
    pub(super) fn complete(
        &self,
        prompt: &str,
        max_tokens: usize,
        adapter: Option<usize>,
    ) -> Result<RequestTiming, LoadError> {
        let url = format!("{}/v1/completions", self.url);
        let body = self.body(prompt, max_tokens, adapter);
        let sent = Instant::now();
        let failed = |reason: String| LoadError::Server {
            url: url.clone(),
            reason,
        };
        let mut request = self.agent.post(&url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let mut response = request
            .send_json(&body)
            .map_err(|e| failed(e.to_string()))?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let text: String = text.chars().take(500).collect();
            return Err(failed(format!("{}: {text}", response.status())));
        }
        let (mut chunks, mut usage) = (Vec::new(), Value::Null);
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.map_err(|e| failed(format!("the stream broke off: {e}")))?;
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
        Ok(RequestTiming {
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
            ServerKind::OpenAi => {
                if let Some(adapter) = adapter {
                    body["model"] = self.adapters[adapter].clone().into();
                }
            }
            ServerKind::LlamaCpp => {
                body["cache_prompt"] = false.into();
                // Unlisted adapters have scale 0; without a list, all have scale 1.
                let scale = if adapter.is_some() { 1.0 } else { 0.0 };
                body["lora"] = json!([{ "id": adapter.unwrap_or(0), "scale": scale }]);
            }
        }
        body
    }
}
