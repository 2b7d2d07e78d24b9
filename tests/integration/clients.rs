//! The `openai` Python package as a client, in a virtual environment that this test creates. The
//! tests themselves are `tests/clients/test_*.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::environment::{package, utf8};
use crate::support::server::Server;

#[test]
fn the_openai_package_works_against_the_server() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let python = python_with_clients(&scratch.join("clients-venv"));

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

/// The Python of the virtual environment at `folder`, with the pinned clients. It is created again
/// if the pins have changed or the last installation was interrupted.
fn python_with_clients(folder: &Path) -> PathBuf {
    let python = folder.join("bin/python");
    let pins = package("tests/clients/requirements.txt");
    let wanted = fs::read_to_string(&pins).expect("the pins of the clients");
    let stamp = folder.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder));
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(&pins));
    fs::write(&stamp, wanted).expect("a writable stamp file");
    python
}

/// Runs `command`; panics with its output if it fails.
fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    print!("{stdout}");
}
