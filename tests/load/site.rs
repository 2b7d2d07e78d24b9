//! The server under load, its tickets and callers, and what each alias points at.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tombola::ticket::Digest;

use crate::answer::Answer;
use crate::golden::{Content, Goldens, Shape, shapes};
use crate::http::{Connection, Request};
use crate::support::printable_base::PrintableBase;
use crate::tally::Tally;
use crate::timeline::{State, Timeline};

/// Public tickets, `public-0` and `public-1`.
const PUBLIC: usize = 2;
/// Contents of one caller: its own, three that take turns under one alias, one that comes and goes.
const PER_CALLER: usize = 5;

/// A caller of the server. All have tickets of the same names and of different contents.
pub struct Caller {
    /// API key, if the server has keys.
    pub key: Option<String>,
    first: usize,
    /// The alias `moving`, which is replaced again and again.
    pub moving: Timeline,
    /// The alias `fleeting`, which is uploaded and deleted again and again.
    pub fleeting: Timeline,
}

impl Caller {
    /// Content of the alias `own`, which stays.
    pub fn own(&self) -> usize {
        self.first
    }

    /// Contents that the alias `moving` may have.
    pub fn turns(&self) -> std::ops::Range<usize> {
        self.first + 1..self.first + PER_CALLER - 1
    }

    /// Content of the alias `fleeting`.
    pub fn guest(&self) -> usize {
        self.first + PER_CALLER - 1
    }
}

/// The server, and what is known about it.
pub struct Site {
    pub address: SocketAddr,
    pub shapes: Vec<Shape>,
    pub goldens: Goldens,
    pub callers: Vec<Caller>,
    pub tally: Tally,
    /// The operator's API key, if the server has keys.
    operator: Option<String>,
    /// Files of the contents.
    files: Vec<Vec<u8>>,
    deadline: OnceLock<Instant>,
}

/// A model that a request names.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Base,
    Public(usize),
    Own,
    Moving,
    Fleeting,
}

impl Site {
    /// Uploads the tickets that stay, and takes the golden answers, one request at a time. The
    /// first key is the operator's, whose tickets are public; the others are callers'. Without
    /// keys, there is one caller.
    pub async fn prepare(
        address: SocketAddr,
        base: &PrintableBase,
        keys: &[String],
    ) -> anyhow::Result<Self> {
        let callers = keys.len().saturating_sub(1).max(1);
        let caller = |number: usize| Caller {
            key: keys.get(number + 1).cloned(),
            first: PUBLIC + number * PER_CALLER,
            moving: Timeline::starting(State::Absent),
            fleeting: Timeline::starting(State::Absent),
        };
        let contents = PUBLIC + callers * PER_CALLER;
        let mut site = Self {
            address,
            shapes: shapes(),
            goldens: Goldens::default(),
            callers: (0..callers).map(caller).collect(),
            tally: Tally::default(),
            operator: keys.first().cloned(),
            files: (0..contents as u64).map(|seed| base.ticket(seed)).collect(),
            deadline: OnceLock::new(),
        };
        let operator = keys.first().map(String::as_str);
        site.take_goldens(None, "tiny", operator).await?;
        for content in 0..contents {
            site.put(operator, "golden", content, true).await?;
            site.take_goldens(Some(content), "golden", operator).await?;
        }
        site.delete(operator, "golden").await?;
        for content in 0..PUBLIC {
            let name = format!("public-{content}");
            site.put(operator, &name, content, false).await?;
        }
        for caller in &site.callers {
            let key = caller.key.as_deref();
            site.put(key, "own", caller.own(), false).await?;
            let first = caller.turns().start;
            caller.moving.sending(State::Content(first));
            site.put(key, "moving", first, false).await?;
            caller.moving.acknowledged();
        }
        Ok(site)
    }

    async fn take_goldens(
        &mut self,
        content: Content,
        model: &str,
        key: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut connection = Connection::open(self.address).await?;
        for number in 0..self.shapes.len() {
            let shape = &self.shapes[number];
            let request = self.completion(shape, model, key, false);
            let (response, body) = connection.fetch(&request).await?;
            let body: Value = serde_json::from_slice(&body)?;
            ensure!(response.status == 200, "golden {number}: {body}");
            let mut answer = Answer::empty(shape.choices);
            answer.add(&body)?;
            self.goldens.insert(number, content, answer);
        }
        Ok(())
    }

    /// The request for a completion.
    pub fn completion(
        &self,
        shape: &Shape,
        model: &str,
        key: Option<&str>,
        stream: bool,
    ) -> Request {
        let mut body = shape.body.clone();
        body["model"] = model.into();
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        Request::new("POST", shape.path, key).json(&body)
    }

    /// Name, possible states between two times, and whether it may be absent.
    pub fn met(
        &self,
        caller: &Caller,
        target: Target,
        sent: Instant,
        begun: Instant,
    ) -> Vec<State> {
        match target {
            Target::Base => Vec::new(),
            Target::Public(content) => vec![State::Content(content)],
            Target::Own => vec![State::Content(caller.own())],
            Target::Moving => caller.moving.possible(sent, begun),
            Target::Fleeting => caller.fleeting.possible(sent, begun),
        }
    }

    /// Uploads a content. A name that is taken is an error unless `replace`.
    pub async fn put(
        &self,
        key: Option<&str>,
        name: &str,
        content: usize,
        replace: bool,
    ) -> anyhow::Result<()> {
        let mut connection = Connection::open(self.address).await?;
        let request = self.upload(key, name, content, replace);
        let (response, body) = connection.fetch(&request).await?;
        let text = String::from_utf8_lossy(&body);
        // Without a name before, 201; after a replacement, 200 or 201.
        let created = matches!(response.status, 200 | 201);
        ensure!(created, "the upload of {name}: {} {text}", response.status);
        let facts: Value = serde_json::from_slice(&body)?;
        ensure!(facts["digest"] == self.digest(content), "{text}");
        self.tally.count(|counts| counts.uploads += 1);
        Ok(())
    }

    /// The request for an upload.
    pub fn upload(&self, key: Option<&str>, name: &str, content: usize, replace: bool) -> Request {
        Request::new("POST", "/v1/tickets", key).upload(name, &self.files[content], replace)
    }

    /// Deletes a ticket.
    pub async fn delete(&self, key: Option<&str>, name: &str) -> anyhow::Result<()> {
        let request = Request::new("DELETE", &format!("/v1/tickets/{name}"), key);
        let mut connection = Connection::open(self.address).await?;
        let (response, body) = connection.fetch(&request).await?;
        let text = String::from_utf8_lossy(&body);
        ensure!(
            response.status == 200,
            "the deletion of {name}: {} {text}",
            response.status
        );
        self.tally.count(|counts| counts.deletions += 1);
        Ok(())
    }

    /// The digest of a content, as the server writes it.
    pub fn digest(&self, content: usize) -> String {
        Digest::of(&self.files[content]).to_string()
    }

    /// Starts the clock of the run.
    pub fn start(&self, length: Duration) {
        self.deadline.get_or_init(|| Instant::now() + length);
    }

    /// Whether clients go on.
    pub fn goes_on(&self) -> bool {
        self.deadline
            .get()
            .is_none_or(|deadline| Instant::now() < *deadline)
    }

    /// The operator's view of `path`.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut connection = Connection::open(self.address).await?;
        let request = Request::new("GET", path, self.operator.as_deref());
        let (response, body) = connection.fetch(&request).await?;
        let text = String::from_utf8(body)?;
        ensure!(response.status == 200, "{path}: {} {text}", response.status);
        Ok(text)
    }

    /// The value of a series.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.get("/metrics").await?;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("the series {name}"))?;
        Ok(value.parse()?)
    }
}
