//! The real binary without a free file descriptor, and without room for its log.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rlimit::Resource;

use crate::support::caller::Caller;
use crate::support::environment::{scratch, tombola, utf8};
use crate::support::printable_base::PrintableBase;
use crate::support::server::Server;

/// Descriptors that are left to the server.
const LEFT: usize = 8;
/// Connections that take them.
const CONNECTIONS: usize = 3 * LEFT;
/// What the accept loop logs.
const WARNING: &str = "cannot accept connections";
/// Clock ticks per second in `/proc`.
const TICKS: u64 = 100;

/// Lets the process have as many more descriptors as that.
fn leave(process: u32, more: usize) {
    let open = fs::read_dir(format!("/proc/{process}/fd")).expect("a process");
    let limit = (open.count() + more) as u64;
    let process = process.try_into().expect("an id");
    let limited = rlimit::prlimit(process, Resource::NOFILE, Some((limit, limit)), None);
    limited.expect("a lower limit");
}

/// CPU time of a process, in clock ticks.
fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(')').expect("the name");
    // Of user and of system.
    let times = fields.split_whitespace().skip(11).take(2);
    times
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum()
}

/// A connection with an unfinished body, which the server does not close to make room.
fn unfinished(address: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).expect("a connection");
    let request = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\
                   Content-Type: application/json\r\n\r\n{";
    connection.write_all(request.as_bytes()).expect("room");
    connection
}

#[test]
fn a_server_without_descriptors_waits_for_them_and_serves_again() {
    let base = PrintableBase::new();
    let (tickets, model) = (tempfile::tempdir().expect("a folder"), base.model());
    let timeout = ["--client-timeout-seconds", "120"];
    let args = ["--model", &model, "--tickets", utf8(tickets.path())];
    let server = Server::start(&[&args[..], &timeout].concat());
    let caller = Caller::anyone(&server);
    let answer = caller.complete("tiny", "abc", 8);
    leave(server.id(), LEFT);
    let address = server.url().strip_prefix("http://").expect("a URL");
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| unfinished(address)).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !server.log().contains(WARNING) {
        assert!(Instant::now() < deadline, "no warning: {}", server.log());
        sleep(Duration::from_millis(20));
    }
    let before = cpu_ticks(server.id());
    sleep(Duration::from_secs(2));
    let spent = cpu_ticks(server.id()) - before;
    assert!(spent < TICKS / 2, "{spent} ticks of CPU time in 2 s");
    assert_eq!(server.log().matches(WARNING).count(), 1, "{}", server.log());
    drop(connections);
    assert_eq!(caller.complete("tiny", "abc", 8), answer);
    assert_eq!(caller.get_text("/health").0, 200);
}

/// A command of the binary whose standard error is on a full disk.
fn unlogged() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2> /dev/full"]);
    command.arg(tombola().get_program());
    command
}

#[test]
fn a_server_whose_log_is_full_serves() {
    let base = PrintableBase::new();
    let tickets = tempfile::tempdir().expect("a folder");
    let mut command = unlogged();
    command.args(["--port", "0", "--model", &base.model(), "--tickets"]);
    command
        .arg(tickets.path())
        .arg("--cache-dir")
        .arg(scratch().path());
    let server = Server::run(command);
    let caller = Caller::anyone(&server);
    assert_eq!(caller.upload("sql", &base.ticket(1), true).0, 201);
    assert_ne!(
        caller.complete("sql", "abc", 8),
        caller.complete("tiny", "abc", 8)
    );
    assert!(server.terminate().success());
}

#[test]
fn an_error_that_cannot_be_printed_has_its_status() {
    let status = unlogged().args(["--model", "/no/such/base"]).status();
    assert_eq!(status.expect("an end").code(), Some(1));
}
