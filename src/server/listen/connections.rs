//! The open connections of one listener: their number is bounded, and the oldest idle one makes
//! room for a new one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::framing::Position;
use super::gate::StartupGate;
use crate::metrics::{ClientTimeout, ConnectionMetrics};
use crate::server::error::ApiError;

/// Connections beyond the limit, kept for probes.
const RESERVE: usize = 16;

/// The open connections of one listener.
pub struct Connections {
    limit: usize,
    gate: StartupGate,
    open: Mutex<Open>,
    /// Exchanges over HTTP/2 beside the first of their connection.
    further: AtomicUsize,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// Number of connections that the gauge of the metrics includes.
    shown: usize,
    by_id: BTreeMap<u64, Arc<Connection>>,
}

impl Open {
    fn count(&self, reserve: bool) -> usize {
        let counts = |c: &&Arc<Connection>| c.reserve == reserve && !c.state().evicted;
        self.by_id.values().filter(counts).count()
    }

    /// Tells the connection that has been idle longest to end, if any is idle.
    fn evict(&self, reserve: bool) -> bool {
        let idle_since = |c: &&Arc<Connection>| c.idle_since();
        let candidates = self.by_id.values().filter(|c| c.reserve == reserve);
        let oldest = candidates
            .filter_map(|c| Some((idle_since(&c)?, c)))
            .min_by_key(|(since, _)| *since);
        let Some((_, oldest)) = oldest else {
            return false;
        };
        oldest.state().evicted = true;
        oldest.evict.notify_one();
        true
    }
}

impl Connections {
    /// No connections, and at most `limit` plus a small reserve.
    pub fn new(limit: usize, gate: StartupGate) -> Arc<Self> {
        Arc::new(Self {
            limit,
            gate,
            open: Mutex::default(),
            further: AtomicUsize::new(0),
            count: watch::Sender::new(0),
        })
    }

    /// Admits a connection. If all are in use, the one that has been idle longest makes room; if
    /// none is idle, the connection comes from the reserve. `None` if the reserve is in use too.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let evicts = |reserve, limit| open.count(reserve) >= limit && open.evict(reserve);
        let (reserve, evicted) = if open.by_id.len() < self.limit {
            (false, false)
        } else if evicts(false, self.limit) {
            (false, true)
        } else if open.count(false) < self.limit {
            (false, false)
        } else if open.count(true) < RESERVE {
            (true, false)
        } else if open.evict(true) {
            (true, true)
        } else {
            drop(open);
            self.record(|series| series.refused.inc());
            return None;
        };
        let id = open.next;
        open.next += 1;
        let connection = Arc::new(Connection::new(reserve));
        open.by_id.insert(id, Arc::clone(&connection));
        self.changed(open);
        if evicted {
            self.record(|series| series.evicted.inc());
        }
        let connections = Arc::clone(self);
        Some(Admitted {
            connections,
            connection,
            id,
        })
    }

    /// Ends the connection that has been idle longest, if any is idle.
    pub fn evict(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.evict(false) || open.evict(true) {
            self.record(|series| series.evicted.inc());
        }
    }

    /// Waits until no connection is open.
    pub async fn all_ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    /// Records in the metrics, which exist once the base is loaded.
    pub fn record(&self, record: impl FnOnce(&ConnectionMetrics)) {
        if let Some(state) = self.gate.state() {
            record(&state.metrics.connections);
        }
    }

    fn changed(&self, mut open: MutexGuard<'_, Open>) {
        self.count.send_replace(open.by_id.len());
        self.show(&mut open);
    }

    /// Brings the gauge up to date, once there are metrics. Listeners add up in it.
    fn show(&self, open: &mut Open) {
        let count = open.by_id.len();
        self.record(|series| {
            series.open.add(count as i64 - open.shown as i64);
            open.shown = count;
        });
    }
}

/// An open connection; dropping it takes it off the list.
pub struct Admitted {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    id: u64,
}

impl Admitted {
    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Counts a client that took too long.
    pub fn timed_out(&self, kind: ClientTimeout) {
        self.connections.record(|series| series.timed_out(kind));
    }

    /// Begins an exchange over HTTP/2. One beside others of the connection counts as a connection;
    /// `None` if that is one too many.
    pub fn begin_exchange(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.connection.state();
        if state.streams > 0 {
            let connections = &self.connections;
            let taken = connections.further.fetch_add(1, Ordering::Relaxed);
            if taken + *connections.count.borrow() >= connections.limit {
                connections.further.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
        }
        state.streams += 1;
        state.exchange = Exchange::Received;
        let admitted = Arc::clone(self);
        Some(Place(admitted))
    }

    /// Brings the gauge up to date: connections may be older than the metrics.
    pub fn show_all(&self) {
        let open = &self.connections.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.show(&mut open);
    }

    /// Records in the metrics.
    pub fn record(&self, record: impl FnOnce(&ConnectionMetrics)) {
        self.connections.record(record);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let open = &self.connections.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_id.remove(&self.id);
        self.connections.changed(open);
    }
}

/// Place of an exchange over HTTP/2, until it is dropped.
pub struct Place(Arc<Admitted>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.connection.state();
        state.streams -= 1;
        if state.streams > 0 {
            self.0.connections.further.fetch_sub(1, Ordering::Relaxed);
        } else {
            state.exchange = Exchange::None;
            state.since = Instant::now();
            state.reused = true;
        }
    }
}

/// State of one connection, shared by its task, its input and the accept loop.
pub struct Connection {
    /// Whether it comes from the reserve, and serves probes only.
    pub reserve: bool,
    /// Time at which it was accepted.
    pub opened: Instant,
    /// Told once the connection is to make room.
    pub evict: Notify,
    state: Mutex<State>,
}

/// Progress of a connection.
pub struct State {
    /// What the next byte of the client belongs to.
    pub position: Position,
    /// The exchange in progress.
    pub exchange: Exchange,
    /// End of the last exchange, or the time at which the connection was accepted.
    pub since: Instant,
    /// Whether an exchange has ended.
    pub reused: bool,
    /// Whether the client takes interim responses.
    pub interim: bool,
    /// Whether the client has ended its side.
    pub half_closed: bool,
    /// Number of exchanges in progress over HTTP/2.
    streams: usize,
    /// Reason to refuse what the client sends next.
    pub refusal: Option<ApiError>,
    evicted: bool,
}

/// Progress of a request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// There is none.
    None,
    /// The head has arrived; the response has not begun.
    Received,
    /// The response has begun.
    Answered,
    /// The response is complete; its last bytes may not have been written yet.
    Ended,
}

/// What would be lost if a connection ended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    Idle,
    /// A part of a request, to which no response has begun.
    HalfSent,
    /// A response, or the work on one.
    Running,
}

impl Connection {
    fn new(reserve: bool) -> Self {
        let opened = Instant::now();
        let state = State {
            position: Position::Between,
            exchange: Exchange::None,
            since: opened,
            reused: false,
            interim: false,
            half_closed: false,
            streams: 0,
            refusal: None,
            evicted: false,
        };
        Self {
            reserve,
            opened,
            evict: Notify::new(),
            state: Mutex::new(state),
        }
    }

    /// The progress. The lock is held for moments only.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What would be lost if the connection ended now.
    pub fn phase(&self) -> Phase {
        let state = self.state();
        match (state.exchange, state.position) {
            (Exchange::None, Position::Between) => Phase::Idle,
            (Exchange::None, _) | (Exchange::Received, Position::Body) => Phase::HalfSent,
            _ => Phase::Running,
        }
    }

    /// Takes back the eviction if a request has arrived in the meantime.
    pub fn must_leave(&self) -> bool {
        let mut state = self.state();
        state.evicted = state.exchange == Exchange::None;
        state.evicted
    }

    /// Since when there has been no whole request; `None` while there is one, or if the connection
    /// is about to end.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.exchange == Exchange::None && !state.evicted).then_some(state.since)
    }
}
