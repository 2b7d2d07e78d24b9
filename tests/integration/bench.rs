//! `tombola bench`: load on the real server, costs and devices.

use std::process::Output;

use serde_json::Value;

use crate::support::environment::{cache, tombola};
use crate::support::server::Server;

fn bench_serve(args: &[&str]) -> Output {
    bench("serve", args)
}

fn bench(subcommand: &str, args: &[&str]) -> Output {
    let mut command = tombola();
    command.args(["bench", subcommand, "--cache-dir"]);
    command.arg(cache().path()).args(args);
    command.output().expect("it runs")
}

/// The JSON report of `bench serve`.
fn report(args: &[&str]) -> Value {
    let output = bench_serve(&[args, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_server_is_measured_in_closed_and_open_loops() {
    let server = Server::start(&["--ticket-mode", "overlay"]);
    let requests = "--requests 6 --prompt-tokens 20 --max-tokens 5";
    let mut work = vec!["--url", server.url()];
    work.extend(requests.split(' '));
    let closed = report(&[&work[..], &["--adapters", "sql", "--concurrency", "3"]].concat());
    let arrivals = "--adapters sql,smollm2-135m --popularity zipf --rate 40";
    let open = report(&[&work[..], &arrivals.split(' ').collect::<Vec<_>>()].concat());
    for measured in [&closed, &open] {
        let report = &measured["report"];
        // The server's own count confirms the requested lengths of prompts and answers.
        assert_eq!(report["wrong_counts"], 0, "{measured}");
        assert_eq!(
            (&report["failed"], &report["requests"]),
            (&0.into(), &6.into())
        );
        let number = |name: &str| report[name].as_f64().unwrap();
        let tokens = number("tokens_per_second") * number("seconds");
        assert!((tokens - 30.0).abs() < 1e-6, "{tokens}");
        let at = |name: &str| report["ttft_ms"][name].as_f64().unwrap();
        assert!(0.0 < at("p50") && at("p50") <= at("p95") && at("p95") <= at("p99"));
        assert!(at("p99") <= report["request_ms"]["p99"].as_f64().unwrap());
        assert!(report["inter_token_ms"]["p50"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        (&closed["concurrency"], &closed["rate"]),
        (&3.into(), &Value::Null)
    );
    assert_eq!(
        (&open["concurrency"], &open["rate"]),
        (&Value::Null, &40.0.into())
    );
    let table = bench_serve(&work);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(
        table.contains("time to first token") && table.contains("p99"),
        "{table}"
    );
    // A missing adapter is reported before the clock starts.
    let unknown = bench_serve(&[&work[..], &["--adapters", "sql,nobody"]].concat());
    let errors = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        !unknown.status.success() && errors.contains("nobody"),
        "{errors}"
    );
    assert!(server.terminate().success());
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let fails = |args: &[&str], why: &str| {
        let output = bench_serve(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(why),
            "{args:?}: {errors}"
        );
    };
    // No server listens on the discard port.
    fails(&["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9");
    fails(&["--kind", "other"], "openai");
    fails(&["--rate", "0"], "above 0");
    fails(&["--rate", "3", "--concurrency", "2"], "--rate");
    fails(&["--tokenizer", "no/such/tokenizer.json"], "--tokenizer");
}

#[test]
fn costs_are_measured_and_printed() {
    let json = bench("costs", &["--dtype", "bf16", "--json"]);
    let errors = String::from_utf8_lossy(&json.stderr);
    assert!(json.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    assert!(
        positive(&report["seconds"]) && report["dtype"] == "bf16",
        "{report}"
    );
    let costs = &report["costs"];
    let steps = costs["steps"].as_array().expect("steps");
    assert!(
        steps.len() >= 2 && steps.iter().all(|step| positive(&step["ms"])),
        "{report}"
    );
    let rows: Vec<u64> = steps
        .iter()
        .map(|step| step["rows"].as_u64().unwrap())
        .collect();
    assert!(rows.is_sorted() && rows[0] == 1, "{report}");
    // On a busy machine a small ticket may seem to cost as much as a large one: the cost per
    // nonzero is then 0.
    let costs_something =
        |cost: &Value| positive(&cost["ns_per_nonzero"]) || positive(&cost["fixed_ms"]);
    for what in ["apply", "revert", "layout"] {
        assert!(costs_something(&costs[what]), "{what}: {report}");
    }
    let overlays = costs["overlays"].as_array().expect("overlays");
    assert!(
        !overlays.is_empty() && overlays.iter().all(costs_something),
        "{report}"
    );
    for ticket in report["tickets"].as_array().expect("tickets") {
        assert!(
            positive(&ticket["swap_ms"]) && positive(&ticket["overlay_ms"]),
            "{report}"
        );
        assert!(positive(&ticket["applied_after_steps"]), "{report}");
    }
    let table = bench("costs", &["--dtype", "bf16"]);
    let table = String::from_utf8_lossy(&table.stdout);
    for line in ["step           1 row", "overlay", "10 %: swap"] {
        assert!(table.contains(line), "{table}");
    }
}

#[test]
fn a_device_is_measured_with_a_synthetic_base() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let path = json.to_str().unwrap();
    let device = ["--shape", "tiny", "--device", "cpu", "--dtype", "bf16"];
    let runs = ["--context", "20", "--repeats", "2", "--json", path];
    let output = bench("device", &[device, runs].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(
        (&figures["dtype"], &figures["device"]),
        (&"bf16".into(), &"the CPU".into())
    );
    for (what, rows) in [("steps", 7), ("swaps", 3), ("overlays", 6)] {
        assert_eq!(figures[what].as_array().unwrap().len(), rows, "{what}");
    }
    for step in figures["steps"].as_array().unwrap() {
        assert!(step["ms"].as_f64().unwrap() > 0.0 && step["of_floor"].as_f64().unwrap() > 0.0);
    }
    let chosen = figures["chosen_ms"].as_object().unwrap();
    assert!(
        chosen.len() == 5 && table.contains("| greedy | "),
        "{table}"
    );
    // One row per step and per overlay.
    assert_eq!(table.matches(" rows | ").count(), 7 + 6, "{table}");
    let unknown = bench("device", &["--shape", "9b"]);
    assert_eq!(unknown.status.code(), Some(2));
}
