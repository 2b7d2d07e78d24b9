//! The HTTP server of the integration tests, without a model.

#[path = "../integration/support/bare_state.rs"]
pub mod bare_state;
#[path = "../integration/support/echo_engine.rs"]
pub mod echo_engine;
#[path = "../integration/support/tokenizer.rs"]
pub mod tokenizer;

use std::sync::Arc;
use std::thread;

use tempfile::TempDir;
use tombola::engine::{EngineInbox, Request};
use tombola::server::AppState;
use tombola::text::Text;

use bare_state::bare_state;
use echo_engine::{Observer, run};

/// A server, with its folder of tickets.
pub struct Server {
    pub state: Arc<AppState>,
    _tickets: TempDir,
}

impl Server {
    /// A server of this tokenizer, capacity and largest body, whose engine does not run yet.
    pub fn new(text: Arc<Text>, capacity: usize, max_body_bytes: usize) -> (Self, EngineInbox) {
        let tickets = TempDir::new().unwrap();
        let (state, inbox) = bare_state(tickets.path(), text, capacity, max_body_bytes);
        let server = Self {
            state: Arc::new(state),
            _tickets: tickets,
        };
        (server, inbox)
    }
}

/// Runs the engine on a thread.
pub fn run_engine(inbox: EngineInbox) {
    thread::spawn(move || run(&inbox, &()));
}

impl Observer for () {
    fn received(&self, _request: &Request) {}

    fn cancelled(&self) {}
}
