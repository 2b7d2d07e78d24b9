//! The `openai` Python package as a client, in a virtual environment that this test creates. The
//! tests themselves are `tests/clients/test_*.py`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::environment::{package, utf8};
use crate::support::python::{run, virtual_environment};
use crate::support::server::Server;

#[test]
fn the_openai_package_works_against_the_server() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let python = virtual_environment(
        &scratch.join("clients-venv"),
        &package("tests/clients/requirements.txt"),
    );

    // A separate ticket folder, since the tests upload and delete.
    let tickets = tempfile::tempdir_in(scratch).expect("a folder for tickets");
    let shipped = package("adapters/sql.safetensors");
    fs::copy(&shipped, tickets.path().join("sql.safetensors")).expect("the shipped ticket");

    let folder = utf8(tickets.path());
    let server = Server::start(&["--tickets", folder]);
    let mut clients = Command::new(python);
    clients
        .arg(package("tests/clients/run.py"))
        .args(["--url", server.url()]);
    clients
        .arg("--ticket-file")
        .arg(&shipped)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run(&mut clients);

    let status = server.terminate();
    assert_eq!(
        status.code(),
        Some(0),
        "the server ended with {status} after SIGTERM"
    );
}
