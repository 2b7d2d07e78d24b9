//! Requests to the real binary by one caller, with or without an API key.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Body, RequestBuilder};

use super::server::{Server, agent};

/// A caller of a server.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub server: &'a Server,
    /// API key; `None` sends none.
    pub key: Option<&'a str>,
}

impl<'a> Caller<'a> {
    /// A caller without a key.
    pub fn anyone(server: &'a Server) -> Self {
        Self { server, key: None }
    }

    fn url(&self, route: &str) -> String {
        format!("{}{route}", self.server.url())
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// Gets `route`; returns the status and the body.
    pub fn get_text(&self, route: &str) -> (u16, String) {
        let request = self.signed(agent().get(self.url(route)));
        text(request.call().expect("an answer"))
    }

    /// Gets the JSON of `route`.
    pub fn get(&self, route: &str) -> (u16, Value) {
        parsed(self.get_text(route))
    }

    /// Posts JSON; returns the response, whose body is not read yet.
    pub fn send(&self, route: &str, body: &Value) -> Response<Body> {
        let request = self.signed(agent().post(self.url(route)));
        request.send_json(body).expect("an answer")
    }

    /// Posts JSON.
    pub fn post(&self, route: &str, body: &Value) -> (u16, Value) {
        parsed(text(self.send(route, body)))
    }

    /// Deletes `route`.
    pub fn delete(&self, route: &str) -> (u16, Value) {
        let request = self.signed(agent().delete(self.url(route)));
        parsed(text(request.call().expect("an answer")))
    }

    /// Uploads a ticket; replaces one of this name if `replace`.
    pub fn upload(&self, name: &str, file: &[u8], replace: bool) -> (u16, Value) {
        const LINE: &str = "--------tombola";
        let field = |name: &str, more: &str| {
            format!("--{LINE}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n")
        };
        let form = [
            format!("{}{name}\r\n", field("name", "")).as_bytes(),
            format!("{}{replace}\r\n", field("replace", "")).as_bytes(),
            field("file", "; filename=\"t\"").as_bytes(),
            file,
            format!("\r\n--{LINE}--\r\n").as_bytes(),
        ]
        .concat();
        let request = self.signed(agent().post(self.url("/v1/tickets")));
        let request = request.header(
            "content-type",
            format!("multipart/form-data; boundary={LINE}"),
        );
        parsed(text(request.send(&form[..]).expect("an answer")))
    }

    /// A greedy completion of `tokens` tokens; returns its text, or panics unless it succeeds.
    pub fn complete(&self, model: &str, prompt: &str, tokens: usize) -> String {
        let (status, answer) = self.post("/v1/completions", &greedy(model, prompt, tokens));
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// A stream of the same completion, of which the first event has arrived.
    pub fn stream(&self, model: &str, prompt: &str, tokens: usize) -> Stream {
        let mut body = greedy(model, prompt, tokens);
        body["stream"] = true.into();
        let response = self.send("/v1/completions", &body);
        assert_eq!(response.status(), 200);
        let reader = response.into_body().into_reader();
        let mut stream = Stream {
            lines: Box::new(BufReader::new(reader).lines()),
            text: String::new(),
            done: false,
        };
        stream.step();
        stream
    }

    /// The value of a series, 0 if it has no sample.
    pub fn metric(&self, series: &str) -> f64 {
        let (status, metrics) = self.get_text("/metrics");
        assert_eq!(status, 200, "{metrics}");
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }
}

/// The body of a greedy completion of exactly `tokens` tokens.
pub fn greedy(model: &str, prompt: &str, tokens: usize) -> Value {
    json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true,
    })
}

/// A streamed completion.
pub struct Stream {
    lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
    text: String,
    done: bool,
}

impl Stream {
    /// Reads the next event.
    fn step(&mut self) {
        while !self.done {
            let line = self.lines.next().expect("a further line").expect("a line");
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                self.done = true;
                return;
            }
            let event: Value = serde_json::from_str(data).expect("JSON");
            assert!(event["error"].is_null(), "{event}");
            self.text += event["choices"][0]["text"].as_str().unwrap_or_default();
            return;
        }
    }

    /// Reads the rest; returns the whole text.
    pub fn finish(mut self) -> String {
        while !self.done {
            self.step();
        }
        self.text
    }
}

fn text(mut response: Response<Body>) -> (u16, String) {
    let body = response.body_mut().read_to_string().expect("text");
    (response.status().as_u16(), body)
}

fn parsed((status, body): (u16, String)) -> (u16, Value) {
    let value = serde_json::from_str(&body);
    (status, value.unwrap_or_else(|_| panic!("not JSON: {body}")))
}
