//! The real binary with the default base: answers, signals and refusals to start.

use std::io::{self, BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::bases::{default_gguf_path, tiny_folder};
use crate::support::environment::{self, cache, golden_json, scratch, tombola, utf8};
use crate::support::server::{Server, agent, get, metric, post};

/// The golden answers through HTTP: base and ticket in turn, and both at once.
#[test]
fn base_and_ticket_answer_as_transformers_does() {
    let server = Server::start(&["--ticket-mode", "apply"]);
    answers_are_golden(&server);
    let swaps = metric(&server, "tombola_ticket_swaps_total");
    assert!(swaps >= 3.0, "{swaps}");
    assert!(server.terminate().success());
}

#[test]
fn base_and_ticket_in_one_batch_answer_as_transformers_does() {
    let server = Server::start(&["--ticket-mode", "overlay"]);
    answers_are_golden(&server);
    assert_eq!(metric(&server, "tombola_ticket_swaps_total"), 0.0);
    assert!(metric(&server, "tombola_overlay_nonzeros_total") > 0.0);
    assert!(server.terminate().success());
}

/// A quantised base answers like the dense one, in less than a byte per weight.
#[test]
fn a_quantised_base_and_its_tickets_answer_as_transformers_does() {
    let server = Server::start(&["--keep-quantized"]);
    assert!(
        server.banner.contains("(quantised, f32, "),
        "{}",
        server.banner
    );
    answers_are_golden(&server);
    let content = "Question: Which of these is a liquid at room temperature?\n\
                   A. iron\nB. water\nC. salt\nD. oxygen";
    let question = json!({
        "model": "arc", "temperature": 0, "max_tokens": 4,
        "messages": [{"role": "user", "content": content}],
    });
    let (status, answer) = post(&server, "/v1/chat/completions", question);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(metric(&server, "tombola_ticket_swaps_total"), 0.0);
    assert!(metric(&server, "tombola_overlay_nonzeros_total") > 0.0);
    let facts: Value = serde_json::from_str(&get(&server, "/v1/base?verify=true")).unwrap();
    assert_eq!(
        (&facts["quantized"], &facts["intact"]),
        (&json!(true), &json!(true))
    );
    let weights = facts["weights"].as_u64().unwrap();
    assert!(facts["weight_bytes"].as_u64().unwrap() < weights, "{facts}");
    assert!(server.terminate().success());
}

#[test]
fn a_quantised_base_cannot_take_tickets_applied() {
    let output = tombola()
        .args(["--port", "0", "--keep-quantized", "--ticket-mode", "apply"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains("--keep-quantized with --ticket-mode apply"),
        "{log}"
    );
}

fn answers_are_golden(server: &Server) {
    let base = golden_json("base.json");
    let sql = golden_json("sql.json");
    let chat = |model: &str, case: &Value| {
        let body = json!({
            "model": model, "messages": case["messages"], "temperature": 0,
            "max_tokens": case["greedy_ids"].as_array().unwrap().len(),
        });
        let (status, answer) = post(server, "/v1/chat/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let text = |case: &Value| case["greedy_text"].as_str().unwrap().to_owned();
    // Both files hold the same question.
    let (plain, tuned) = (&base["cases"][3], &sql["cases"][0]);
    assert_eq!(plain["messages"], tuned["messages"]);
    for _ in 0..2 {
        assert_eq!(chat("sql", tuned), text(tuned));
        assert_eq!(chat("smollm2-135m", plain), text(plain));
    }
    assert!(text(tuned).starts_with("SELECT"));
    std::thread::scope(|scope| {
        let answers: Vec<_> = (0..6)
            .map(|i| {
                let (model, case) = if i % 2 == 0 {
                    ("sql", tuned)
                } else {
                    ("smollm2-135m", plain)
                };
                let chat = &chat;
                (case, scope.spawn(move || chat(model, case)))
            })
            .collect();
        for (case, answer) in answers {
            assert_eq!(answer.join().unwrap(), text(case));
        }
    });
    let facts: Value = serde_json::from_str(&get(server, "/v1/base?verify=true")).unwrap();
    assert_eq!(facts["intact"], true, "{facts}");
}

/// The request of the printed command, as a shell parses it. The test sends it without curl.
#[test]
fn the_printed_command_works() {
    let server = Server::start(&["--dtype", "bf16"]);
    let line = server
        .banner
        .lines()
        .find(|line| line.starts_with("  curl "));
    let script = format!(
        "set -- {}; printf '%s\\n' \"$2\" \"$4\" \"$6\"",
        line.unwrap()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    let [url, header, body] = words.lines().collect::<Vec<_>>()[..] else {
        panic!("not three words: {words}");
    };
    let (name, value) = header.split_once(": ").unwrap();
    let request = agent().post(url).header(name, value);
    let answer: Value = request.send(body).unwrap().body_mut().read_json().unwrap();
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert!(
        content.unwrap_or_default().starts_with("SELECT"),
        "{answer}"
    );
    assert!(server.terminate().success());
}

/// The lines of a streamed completion after the first, which has arrived.
fn stream(server: &Server, body: Value) -> impl Iterator<Item = io::Result<String>> {
    let url = format!("{}/v1/completions", server.url());
    let response = agent().post(&url).send_json(body).expect("a stream");
    let mut lines = BufReader::new(response.into_body().into_reader()).lines();
    lines
        .next()
        .expect("a first line")
        .expect("a readable line");
    lines
}

/// After SIGTERM in the middle of a stream, the stream is finished and the process exits with 0.
#[test]
fn a_running_stream_survives_sigterm() {
    let server = Server::start(&["--drain-seconds", "60"]);
    let body = json!({
        "model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 100,
        "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let lines = stream(&server, body);
    server.signal("TERM");
    let rest: Vec<String> = lines.map(|line| line.expect("a further line")).collect();
    let events = rest
        .iter()
        .filter(|line| line.starts_with("data: {"))
        .count();
    assert!(events >= 90, "{events} events after the signal");
    assert_eq!(
        rest.iter().rfind(|line| !line.is_empty()).unwrap(),
        "data: [DONE]"
    );
    assert!(server.wait().0.success());
}

/// A stream that would run for minutes is cut off after `--drain-seconds`.
#[test]
fn the_drain_is_bounded() {
    let server = Server::start(&["--drain-seconds", "1"]);
    let body = json!({
        "model": "sql", "prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": true,
        "stream": true,
    });
    let lines = stream(&server, body);
    server.signal("TERM");
    let start = Instant::now();
    let reported = lines
        .map_while(Result::ok)
        .any(|line| line.contains("engine_stopped"));
    assert!(reported && start.elapsed() < Duration::from_secs(30));
    let (status, log) = server.wait();
    assert!(
        status.success() && log.contains("were cut off"),
        "{status}: {log}"
    );
}

/// A signal before the base is loaded ends the process at once.
#[test]
fn sigterm_ends_a_start_too() {
    let empty = tempfile::tempdir().unwrap();
    // A cache without the fingerprint, so that the start takes a while.
    let cache = empty.path().join("cache/models");
    std::fs::create_dir_all(&cache).unwrap();
    let gguf = default_gguf_path();
    std::os::unix::fs::symlink(&gguf, cache.join(gguf.file_name().unwrap())).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut child = tombola()
        .args(["--port", &address.port().to_string(), "--cache-dir"])
        .arg(empty.path().join("cache"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The server listens before it loads the base.
    while TcpStream::connect(address).is_err() {
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    environment::signal("TERM", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The error of a run that has to fail, in one line.
fn fails(args: &[&str]) -> String {
    let output = tombola()
        .args(args)
        .env("TOMBOLA_CACHE_DIR", scratch().path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{args:?} succeeded");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

#[test]
fn errors_at_the_start_are_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert!(fails(&["--port", &port]).contains(&port));
    assert!(fails(&["--port", "0", "--model", "no/such/place/at/all"]).contains("no/such/place"));
    let empty = tempfile::tempdir().unwrap();
    let folder = utf8(empty.path());
    assert!(fails(&["--port", "0", "--model", folder]).contains("config.json"));
    let tiny = tiny_folder("qwen2");
    assert!(fails(&["--port", "0", "--model", utf8(&tiny)]).contains("tokenizer.json"));
    let args = ["--port", "0", "--max-model-len", "9000", "--cache-dir"];
    let error = fails(&[&args[..], &[utf8(cache().path())]].concat());
    assert!(error.contains("9000") && error.contains("8192"), "{error}");
    for (flag, value) in [
        ("--max-num-seqs", "0"),
        ("--threads", "0"),
        ("--max-model-len", "0"),
        ("--kv-cache-mib", "17592186044416"),
        ("--served-model-name", ""),
        ("--dtype", "f8"),
        ("--device", "cuda"),
        ("--ticket-mode", "both"),
    ] {
        let mut command = tombola();
        let output = command.args(["--port", "0", flag, value]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && text.contains(flag),
            "{flag}: {text}"
        );
    }
    let huge = ["--port", "0", "--kv-cache-mib", "99999999", "--cache-dir"];
    let error = fails(&[&huge[..], &[utf8(cache().path())]].concat());
    assert!(error.contains("--kv-cache-mib"), "{error}");
    assert!(fails(&["ticket", "inspect", "Cargo.toml"]).contains("Cargo.toml"));
}

/// An idle server sleeps: it has no polling loop.
#[test]
fn an_idle_server_uses_no_processor() {
    let server = Server::start(&[]);
    // User and system time in ticks of 10 ms: fields 14 and 15. The name, in brackets, is field 2.
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        let fields = after_name.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    assert!(ticks() - before <= 3, "{} ticks in 3 s", ticks() - before);
}

/// The standard output of `tombola ticket …` with the tiny Qwen2 as the base.
fn ticket(args: &[&str]) -> String {
    let output = tombola()
        .arg("ticket")
        .args(args)
        .env("TOMBOLA_CACHE_DIR", scratch().path())
        .env("TOMBOLA_MODEL", tiny_folder("qwen2"))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {log}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_flat_file_becomes_a_ticket_that_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    let (flat, out) = (path("flat.safetensors"), path("tiny.safetensors"));
    // Row 0 column 2, row 1 column 0, and the last weight of a [112, 64] projection.
    let indices: Vec<u8> = [2i32, 64, 7167]
        .iter()
        .flat_map(|i| i.to_le_bytes())
        .collect();
    let deltas: Vec<u8> = [0.5f32, -0.25, 1.0]
        .iter()
        .flat_map(|d| d.to_le_bytes())
        .collect();
    let name = "model.layers.0.mlp.up_proj.weight";
    let view = |dtype, data| safetensors::tensor::TensorView::new(dtype, vec![3], data).unwrap();
    let tensors = [
        (
            format!("{name}.indices"),
            view(safetensors::Dtype::I32, &indices),
        ),
        (
            format!("{name}.deltas"),
            view(safetensors::Dtype::F32, &deltas),
        ),
    ];
    std::fs::write(&flat, safetensors::serialize(tensors, None).unwrap()).unwrap();
    ticket(&["import", &flat, "--name", "tiny", "--out", &out]);
    assert!(ticket(&["verify", &out]).starts_with("ok: `tiny` fits `qwen2`"));
    let facts: Value = serde_json::from_str(&ticket(&["inspect", &out, "--json"])).unwrap();
    assert_eq!(facts["nonzeros"], 3, "{facts}");
    // It is refused for another base, with both fingerprints.
    let other = tiny_folder("qwen3");
    let error = fails(&["ticket", "verify", &out, "--model", utf8(&other)]);
    assert!(error.contains("fc1e411add8f"), "{error}");
}
