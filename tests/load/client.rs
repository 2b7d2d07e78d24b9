//! One client of the run: it sends one request after another over a connection that it keeps, and
//! checks each answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::sleep;

use crate::answer::{Answer, Events};
use crate::golden::Content;
use crate::http::{Connection, Request, Response};
use crate::site::{Caller, Site, Target};
use crate::timeline::State;

/// Longest pause between two requests.
const THINK: Duration = Duration::from_millis(1500);
/// Time over which the clients begin.
const RAMP: Duration = Duration::from_secs(4);
/// Bound of a request's time. Nothing here takes long, so a request beyond it hangs.
const HANGS: Duration = Duration::from_secs(90);
/// Codes of status 429.
const BUSY: [&str; 2] = ["queue_full", "tenant_limit"];

/// How a client reads a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Whole,
    Stream,
    /// With a pause after each piece.
    SlowStream,
    /// Leaves after this many events.
    Leave(u64),
}

/// A client, until the run ends.
pub async fn run(site: Arc<Site>, number: u64) {
    let mut client = Client {
        caller: number as usize % site.callers.len(),
        site: Arc::clone(&site),
        rng: StdRng::seed_from_u64(number),
        connection: None,
    };
    sleep(RAMP.mul_f64(client.rng.random())).await;
    while site.goes_on() {
        let visit = tokio::time::timeout(HANGS, client.visit()).await;
        let failed = match visit {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("no end within {} s", HANGS.as_secs())),
        };
        if let Some(what) = failed {
            site.tally.violation(what);
            client.connection = None;
        }
        sleep(THINK.mul_f64(client.rng.random())).await;
    }
}

struct Client {
    site: Arc<Site>,
    caller: usize,
    rng: StdRng,
    connection: Option<Connection>,
}

impl Client {
    async fn visit(&mut self) -> anyhow::Result<()> {
        let reading = match self.rng.random_range(0..100) {
            0..50 => Reading::Stream,
            50..80 => Reading::Whole,
            80..83 => Reading::SlowStream,
            83..92 => Reading::Leave(self.rng.random_range(0..12)),
            92..96 => return self.send_half().await,
            _ => return self.list().await,
        };
        let (shape, target) = self.choose();
        self.complete(shape, target, reading).await
    }

    /// A shape and a model.
    fn choose(&mut self) -> (usize, Target) {
        let shape = self.rng.random_range(0..self.site.shapes.len());
        let target = match self.rng.random_range(0..10) {
            0..2 => Target::Base,
            2..4 => Target::Public(self.rng.random_range(0..2)),
            4..6 => Target::Own,
            6..9 => Target::Moving,
            _ => Target::Fleeting,
        };
        (shape, target)
    }

    fn me(&self) -> &Caller {
        &self.site.callers[self.caller]
    }

    fn request(&self, shape: usize, target: Target, stream: bool) -> Request {
        let public;
        let model = match target {
            Target::Base => "tiny",
            Target::Public(number) => {
                public = format!("public-{number}");
                &public
            }
            Target::Own => "own",
            Target::Moving => "moving",
            Target::Fleeting => "fleeting",
        };
        let key = self.me().key.as_deref();
        self.site
            .completion(&self.site.shapes[shape], model, key, stream)
    }

    async fn complete(
        &mut self,
        shape: usize,
        target: Target,
        reading: Reading,
    ) -> anyhow::Result<()> {
        let request = self.request(shape, target, reading != Reading::Whole);
        let sent = Instant::now();
        let (mut connection, mut response) = self.send(&request).await?;
        let met = self.site.met(self.me(), target, sent, Instant::now());
        if response.status != 200 {
            let body = connection.body(&mut response).await?;
            self.keep(connection, &response);
            let may_be_absent = met.contains(&State::Absent);
            return self.refused(&response, &body, may_be_absent).await;
        }
        let mut answer = Answer::empty(self.site.shapes[shape].choices);
        let whole = match reading {
            Reading::Whole => {
                let body = connection.body(&mut response).await?;
                answer.add(&serde_json::from_slice(&body)?)?;
                true
            }
            _ => read_events(&mut connection, &mut response, &mut answer, reading).await?,
        };
        if whole {
            self.keep(connection, &response);
        }
        let possible: Vec<Content> = match target {
            Target::Base => vec![None],
            _ => met.into_iter().filter_map(content).collect(),
        };
        let checked = self.site.goldens.check(shape, &possible, &answer, whole);
        if let Err(wrong) = checked {
            bail!("{target:?}, {reading:?}: {wrong}");
        }
        self.site.tally.count(|counts| {
            counts.whole += u64::from(whole);
            counts.streamed += u64::from(whole && reading != Reading::Whole);
            counts.left += u64::from(!whole);
            counts.tokens += answer.tokens();
        });
        Ok(())
    }

    /// A refusal has to be a documented one.
    async fn refused(
        &mut self,
        response: &Response,
        body: &[u8],
        may_be_absent: bool,
    ) -> anyhow::Result<()> {
        let body: Value = serde_json::from_slice(body)?;
        let code = body["error"]["code"].as_str().unwrap_or_default();
        match response.status {
            429 if BUSY.contains(&code) => {
                let after = response.header("retry-after").context("Retry-After")?;
                let after: u64 = after.parse().context("Retry-After")?;
                ensure!((1..=120).contains(&after), "Retry-After: {after}");
                let most = Duration::from_secs(after.min(3));
                sleep(most.mul_f64(self.rng.random_range(0.5..1.0))).await;
            }
            404 if code == "model_not_found" && may_be_absent => {}
            status => bail!("status {status}: {body}"),
        }
        let refused = format!("{} {code}", response.status);
        self.site
            .tally
            .count(|counts| *counts.refused.entry(refused).or_default() += 1);
        Ok(())
    }

    /// Leaves in the middle of a request.
    async fn send_half(&mut self) -> anyhow::Result<()> {
        let (shape, target) = self.choose();
        let request = self.request(shape, target, true);
        let share = self.rng.random_range(0.0..0.95);
        let mut connection = self.open_or_reuse().await?;
        // A connection that was idle may have been closed meanwhile.
        let sent = connection.send_part(&request, share).await;
        ensure!(
            sent.is_ok() || connection.reused,
            "half a request: {sent:?}"
        );
        self.site.tally.count(|counts| counts.half_sent += 1);
        Ok(())
    }

    /// Lists the tickets, which have to be the caller's own and the public ones.
    async fn list(&mut self) -> anyhow::Result<()> {
        let key = self.me().key.as_deref();
        let request = Request::new("GET", "/v1/tickets", key);
        let (mut connection, mut response) = self.send(&request).await?;
        let body = connection.body(&mut response).await?;
        self.keep(connection, &response);
        let body: Value = serde_json::from_slice(&body)?;
        ensure!(response.status == 200, "the list: {body}");
        let me = self.me();
        let mut own = 0;
        for ticket in body["data"].as_array().context("`data`")? {
            let allowed = match ticket["name"].as_str() {
                Some("public-0") => vec![0],
                Some("public-1") => vec![1],
                Some("own") => vec![me.own()],
                Some("moving") => me.turns().collect(),
                Some("fleeting") => vec![me.guest()],
                _ => Vec::new(),
            };
            own += usize::from(ticket["name"] == "own");
            let mut digests = allowed.into_iter().map(|content| self.site.digest(content));
            let listed = digests.any(|digest| ticket["digest"] == digest);
            ensure!(listed, "another's ticket is listed: {ticket}");
        }
        ensure!(
            own == 1,
            "the caller's ticket is listed {own} times: {body}"
        );
        self.site.tally.count(|counts| counts.lists += 1);
        Ok(())
    }

    async fn open_or_reuse(&mut self) -> anyhow::Result<Connection> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(self.site.address).await,
        }
    }

    /// Sends a request, once more if the connection was closed while it was idle.
    async fn send(&mut self, request: &Request) -> anyhow::Result<(Connection, Response)> {
        let mut connection = self.open_or_reuse().await?;
        match connection.request(request).await {
            Ok(response) => Ok((connection, response)),
            Err(_) if connection.reused => {
                let mut connection = Connection::open(self.site.address).await?;
                let response = connection.request(request).await?;
                Ok((connection, response))
            }
            Err(error) => Err(error),
        }
    }

    fn keep(&mut self, connection: Connection, response: &Response) {
        self.connection = (!response.closes()).then_some(connection);
    }
}

fn content(state: State) -> Option<Content> {
    match state {
        State::Absent => None,
        State::Content(content) => Some(Some(content)),
    }
}

/// Reads a stream to its end, or until the client leaves. Returns whether it ended.
async fn read_events(
    connection: &mut Connection,
    response: &mut Response,
    answer: &mut Answer,
    reading: Reading,
) -> anyhow::Result<bool> {
    let (mut events, mut seen, mut done) = (Events::default(), 0, false);
    if reading == Reading::Leave(0) {
        return Ok(false);
    }
    while let Some(piece) = connection.piece(response).await? {
        for data in events.split(&piece)? {
            ensure!(!done, "an event after [DONE]: {data}");
            if data == "[DONE]" {
                done = true;
                continue;
            }
            answer.add(&serde_json::from_str(&data)?)?;
            seen += 1;
            if reading == Reading::Leave(seen) {
                return Ok(false);
            }
        }
        if reading == Reading::SlowStream {
            sleep(Duration::from_millis(40)).await;
        }
    }
    ensure!(
        done && events.is_empty(),
        "a stream without its end: {answer:?}"
    );
    Ok(true)
}
