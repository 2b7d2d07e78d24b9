//! The HTTP server of the integration tests.

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../integration/support/echo.rs"]
pub mod echo;
#[path = "../integration/support/tokenizer.rs"]
pub mod tokenizer;
