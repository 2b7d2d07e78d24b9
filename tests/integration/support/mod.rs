//! Fixtures that the tests share: no test imports a helper from another test's module.

pub mod bare_state;
pub mod bases;
pub mod caller;
pub mod data_files;
pub mod echo;
pub mod echo_engine;
pub mod engine;
pub mod environment;
pub mod h2;
pub mod keys;
pub mod live;
pub mod player;
pub mod printable_base;
pub mod python;
pub mod server;
pub mod tickets;
pub mod tokenizer;
