//! The integration tests: one binary, so that the library is linked once.

mod common;
mod decoder;
mod engine;
mod golden;
mod loading;
mod resident;
mod text;
