//! The prefix cache through the real binary: what a caller learns of it, and who shares it.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::engine::eventually;
use crate::support::environment::utf8;
use crate::support::printable_base::PrintableBase;
use crate::support::server::{Server, agent, metric, post};

/// 100 tokens of one character each: six full blocks, and a bit.
const PROMPT: &str = "It was the best of times, it was the worst of times, \
     it was the age of wisdom, it was the age of foo";

/// Tokens of the prompt's full blocks.
const CACHED: u64 = 96;

/// A server of the printable base with an empty ticket folder.
fn serve(base: &PrintableBase, flags: &[&str]) -> (Server, TempDir) {
    let tickets = tempfile::tempdir().expect("a folder");
    let model = base.model();
    let args = ["--deterministic", "--model", &model, "--tickets"];
    let args = [&args[..], &[utf8(tickets.path())], flags].concat();
    (Server::start(&args), tickets)
}

/// A greedy completion of a few tokens, with `more` fields.
fn complete(server: &Server, model: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "logprobs": 1,
        "ignore_eos": true,
    });
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    let (status, answer) = post(server, "/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The number of cached tokens that an answer reports.
fn cached(answer: &Value) -> u64 {
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    cached.as_u64().expect("a count")
}

/// Uploads a ticket as `sql`, in place of the one of that name.
fn publish(server: &Server, file: &[u8]) {
    const LINE: &str = "--------tombola";
    let field = |name: &str, more: &str| {
        format!("--{LINE}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n")
    };
    let form = [
        format!("{}sql\r\n", field("name", "")).as_bytes(),
        format!("{}true\r\n", field("replace", "")).as_bytes(),
        field("file", "; filename=\"t\"").as_bytes(),
        file,
        format!("\r\n--{LINE}--\r\n").as_bytes(),
    ]
    .concat();
    let content = format!("multipart/form-data; boundary={LINE}");
    let request = agent().post(format!("{}/v1/tickets", server.url()));
    let request = request.header("content-type", content);
    let status = request.send(&form[..]).expect("an answer").status();
    assert!(status.is_success(), "{status}");
}

#[test]
fn an_answer_reports_the_cached_tokens_of_its_prompt() {
    let base = PrintableBase::new();
    let (server, _tickets) = serve(&base, &[]);
    let cold = complete(&server, "tiny", &json!({}));
    let warm = complete(&server, "tiny", &json!({}));
    assert_eq!((cached(&cold), cached(&warm)), (0, CACHED));
    assert_eq!(cold["choices"], warm["choices"]);
    assert_eq!(metric(&server, "tombola_prefix_cache_queries_total"), 200.0);
    assert_eq!(metric(&server, "tombola_prefix_cache_hits_total"), 96.0);
    // A prompt counts once, though only the first of its choices computes it.
    let salted = json!({"n": 3, "cache_salt": "mine"});
    assert_eq!(cached(&complete(&server, "tiny", &salted)), 0);
    assert_eq!(cached(&complete(&server, "tiny", &salted)), CACHED);
    let stream = json!({
        "model": "tiny", "prompt": PROMPT, "max_tokens": 2, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let url = format!("{}/v1/completions", server.url());
    let mut answer = agent().post(&url).send_json(stream).expect("an answer");
    let events = answer.body_mut().read_to_string().expect("text");
    let usage = events
        .lines()
        .rev()
        .find(|line| line.contains("cached_tokens"));
    let usage = usage
        .and_then(|line| line.strip_prefix("data: "))
        .expect("usage");
    assert_eq!(cached(&serde_json::from_str(usage).expect("JSON")), CACHED);
    // Cached blocks are not in use.
    eventually("no block is in use", || {
        metric(&server, "tombola_kv_cache_usage_perc") == 0.0
    });
    assert!(server.terminate().success());
}

#[test]
fn a_replaced_ticket_never_meets_the_blocks_of_the_old_one() {
    let base = PrintableBase::new();
    let (server, _tickets) = serve(&base, &[]);
    let (old, new) = (base.ticket(1), base.ticket(2));
    let answers: Vec<Value> = [&old, &old, &new, &new, &old]
        .map(|file| {
            publish(&server, file);
            complete(&server, "sql", &json!({}))
        })
        .into();
    let hits: Vec<u64> = answers.iter().map(cached).collect();
    assert_eq!(hits, [0, CACHED, 0, CACHED, CACHED]);
    // A server without the cache answers the same.
    let (plain, _tickets) = serve(&base, &["--no-enable-prefix-caching"]);
    for (file, answer) in [(&old, &answers[4]), (&new, &answers[3])] {
        publish(&plain, file);
        let want = complete(&plain, "sql", &json!({}));
        assert_eq!(cached(&want), 0);
        assert_eq!(answer["choices"], want["choices"]);
    }
    assert_ne!(answers[1]["choices"], answers[2]["choices"]);
    assert_eq!(metric(&plain, "tombola_prefix_cache_queries_total"), 0.0);
}
