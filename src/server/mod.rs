//! HTTP only: the OpenAI-compatible routes, the ticket routes, and operations.
//!
//! `routes` holds the table of routes, each with the scope that it requires, and `guard` stands
//! before each of them. A request for completions crosses `exchange`: its [`protocol::Protocol`]
//! validates the fields once → `generate` submits the completions to the engine → `stream`, or one
//! JSON response. Every failure is an `error::ApiError`, and one table maps errors to status, type
//! and code. Dropping a response drops its completions, which cancels them in the engine.

mod about;
mod adapters;
mod audit;
mod blocking;
mod body;
mod caller;
mod constrained;
mod conversation;
mod encoding;
mod error;
mod exchange;
mod fields;
mod form_body;
mod front;
mod generate;
mod guard;
mod ignored;
mod listen;
mod meter;
mod named_ticket;
mod openai;
mod ops;
mod preconditions;
mod preparation;
mod prompt;
mod protocol;
mod quota;
mod refusals;
mod request_id;
mod routes;
mod sampling;
mod selected;
mod shares;
mod state;
mod stream;
mod tickets;
mod timestamp;
mod upload;
mod upload_gate;

pub use guard::{Access, AccessOptions, BrowserRules, BrowserRulesError};
pub use listen::{
    Drained, ListenOptions, Listener, StartupGate, Tls, TlsError, connection_limit, serve,
};
pub use openai::{FieldFact, fields_without_effect, refused_fields};
pub use routes::{Port, RouteFacts, admin_router, public_router, route_facts, router};
pub use state::{AppState, ServedBase, ServerOptions};
