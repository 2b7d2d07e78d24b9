//! Fixtures of the integration tests that this binary uses too.

#![allow(
    dead_code,
    reason = "other fixtures of the same files serve the integration tests"
)]

#[path = "../integration/support/environment.rs"]
pub mod environment;
#[path = "../integration/support/keys.rs"]
pub mod keys;
#[path = "../integration/support/printable_base.rs"]
pub mod printable_base;
#[path = "../integration/support/server.rs"]
pub mod server;
#[path = "../integration/support/tickets.rs"]
pub mod tickets;
#[path = "../integration/support/tokenizer.rs"]
pub mod tokenizer;
