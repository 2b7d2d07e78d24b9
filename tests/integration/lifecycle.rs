//! Tickets that come, change and go while the real binary serves them: what other servers of
//! adapters get wrong.

use std::io::Write as _;
use std::net::TcpStream;

use tempfile::TempDir;
use tombola::ticket::{BaseManifest, DeltaDtype};

use crate::support::caller::Caller;
use crate::support::environment::utf8;
use crate::support::printable_base::PrintableBase;
use crate::support::server::Server;
use crate::support::tickets::{RandomDeltas, encode_ticket};

/// Longer than several KV blocks.
const PROMPT: &str = "It was the best of times, it was the worst of times, \
     it was the age of wisdom, it was the age of foolishness, \
     it was the epoch of belief, it was the epoch of incredulity, ";

/// A server of the printable base with an empty ticket folder.
fn serve(base: &PrintableBase, flags: &[&str]) -> (Server, TempDir) {
    let tickets = tempfile::tempdir().expect("a folder");
    let model = base.model();
    let mut args = vec!["--deterministic", "--model", &model];
    args.extend(["--tickets", utf8(tickets.path())]);
    args.extend(flags);
    (Server::start(&args), tickets)
}

fn publish(caller: Caller<'_>, name: &str, file: &[u8]) {
    let (status, answer) = caller.upload(name, file, true);
    assert!(matches!(status, 200 | 201), "{status}: {answer}");
}

/// The same name, another content: the KV blocks that the old one left behind are not its own.
#[test]
fn a_ticket_reloaded_under_its_name_answers_anew() {
    let base = PrintableBase::new();
    let (old, new) = (base.ticket(1), base.ticket(2));
    let (server, _tickets) = serve(&base, &[]);
    let caller = Caller::anyone(&server);
    publish(caller, "sql", &old);
    let before = caller.complete("sql", PROMPT, 40);
    assert_eq!(caller.complete("sql", PROMPT, 40), before);
    publish(caller, "sql", &new);
    let after = caller.complete("sql", PROMPT, 40);
    assert_ne!(after, before);
    // Another process, which never saw the old content, agrees.
    let (fresh, _tickets) = serve(&base, &[]);
    let witness = Caller::anyone(&fresh);
    publish(witness, "sql", &new);
    assert_eq!(witness.complete("sql", PROMPT, 40), after);
    publish(caller, "sql", &old);
    assert_eq!(caller.complete("sql", PROMPT, 40), before);
}

#[test]
fn a_request_outlives_the_deletion_and_the_replacement_of_its_ticket() {
    let base = PrintableBase::new();
    let (server, _tickets) = serve(&base, &[]);
    let caller = Caller::anyone(&server);
    publish(caller, "sql", &base.ticket(1));
    publish(caller, "new", &base.ticket(2));
    let newer = caller.complete("new", PROMPT, 300);
    let whole = caller.complete("sql", PROMPT, 300);
    assert_ne!(newer, whole);
    let replaced = caller.stream("sql", PROMPT, 300);
    publish(caller, "sql", &base.ticket(2));
    let deleted = caller.stream("sql", PROMPT, 300);
    let (status, answer) = caller.delete("/v1/tickets/sql");
    assert_eq!(status, 200, "{answer}");
    let body = crate::support::caller::greedy("sql", PROMPT, 1);
    let (status, answer) = caller.post("/v1/completions", &body);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (404, &"model_not_found".into())
    );
    assert_eq!(replaced.finish(), whole);
    assert_eq!(deleted.finish(), newer);
}

#[test]
fn two_names_of_one_content_share_its_memory_and_end_apart() {
    let base = PrintableBase::new();
    let (server, _tickets) = serve(&base, &[]);
    let caller = Caller::anyone(&server);
    let file = base.ticket(1);
    publish(caller, "one", &file);
    publish(caller, "two", &file);
    let answer = caller.complete("one", PROMPT, 20);
    assert_eq!(caller.complete("two", PROMPT, 20), answer);
    assert_eq!(caller.metric("tombola_tickets"), 2.0);
    assert_eq!(caller.metric("tombola_tickets_resident"), 1.0);
    assert_eq!(caller.delete("/v1/tickets/one").0, 200);
    assert_eq!(caller.complete("two", PROMPT, 20), answer);
    assert_eq!(caller.get("/v1/tickets/one").0, 404);
    assert_eq!(caller.metric("tombola_tickets_resident"), 1.0);
    assert_eq!(caller.delete("/v1/tickets/two").0, 200);
    assert_eq!(caller.metric("tombola_tickets"), 0.0);
}

/// A file for `base` whose parameters all have other names.
fn matching_nothing(base: &BaseManifest) -> Vec<u8> {
    let mut other = base.clone();
    other.parameters = base
        .parameters
        .iter()
        .map(|(name, parameter)| (format!("base_model.{name}"), parameter.clone()))
        .collect();
    let deltas = RandomDeltas {
        density: 0.1,
        largest: 0.5,
        dtype: DeltaDtype::F32,
    };
    let mut rng = rand::SeedableRng::seed_from_u64(1);
    let tensors = deltas.tensors(&other, &mut rng, |name, _| name.contains("mlp"));
    encode_ticket(&other, &tensors)
}

#[test]
fn a_ticket_that_matches_nothing_is_refused_at_the_upload() {
    let base = PrintableBase::new();
    let file = matching_nothing(&base.manifest);
    for flags in [&[][..], &["--allow-foreign-base"]] {
        let (server, tickets) = serve(&base, flags);
        let caller = Caller::anyone(&server);
        let (status, answer) = caller.upload("sql", &file, false);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(
            (status, &answer["error"]["code"]),
            (422, &"invalid_ticket".into())
        );
        assert!(
            message.contains("base_model.model.layers.0.mlp"),
            "{message}"
        );
        let body = crate::support::caller::greedy("sql", PROMPT, 1);
        assert_eq!(caller.post("/v1/completions", &body).0, 404);
        let mut files = std::fs::read_dir(tickets.path()).expect("the folder");
        let is_ticket = |name: &str| name.ends_with(".safetensors");
        assert!(!files.any(|file| is_ticket(utf8(file.unwrap().file_name().as_ref()))));
    }
}

/// Uploads that stall hold neither each other, nor requests, nor further uploads.
#[test]
fn an_upload_that_stalls_blocks_nobody() {
    let base = PrintableBase::new();
    let (server, _tickets) = serve(&base, &[]);
    let caller = Caller::anyone(&server);
    let address = server.url().trim_start_matches("http://");
    let head = "POST /v1/tickets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30000\r\n\
                Content-Type: multipart/form-data; boundary=LINE\r\n\r\n\
                --LINE\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc";
    let stalled = [(); 3].map(|()| {
        let mut connection = TcpStream::connect(address).expect("a connection");
        connection
            .write_all(head.as_bytes())
            .expect("half an upload");
        connection
    });
    publish(caller, "sql", &base.ticket(1));
    assert_eq!(caller.complete("sql", PROMPT, 5).len(), 5);
    assert_eq!(caller.delete("/v1/tickets/sql").0, 200);
    drop(stalled);
}
