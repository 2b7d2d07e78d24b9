//! Health, models, the base and metrics.

use std::io::Write as _;
use std::process::{Command, Stdio};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tombola::ticket::Digest;

use crate::support::echo::{CONTEXT, SILENT, Server, json_request};

#[tokio::test]
async fn a_server_is_ready_once_its_engine_runs() {
    let (server, inbox) = Server::without_engine();
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    let (status, body) = server.get("/ready").await;
    assert_eq!(
        (status, &body["status"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("starting"))
    );
    server.run_engine(inbox);
    while !server.engine.is_running() {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/ready").await.0, StatusCode::OK);
}

#[tokio::test]
async fn models_are_the_base_and_its_tickets() {
    let server = Server::new();
    let (_, models) = server.get("/v1/models").await;
    assert_eq!(models["object"], "list");
    let facts: Vec<Value> = models["data"].as_array().unwrap().clone();
    let fields = |model: &Value| {
        assert!(model["created"].as_u64().unwrap() > 1_700_000_000);
        json!([
            model["id"],
            model["object"],
            model["root"],
            model["parent"],
            model["owned_by"]
        ])
    };
    let found: Vec<_> = facts.iter().map(fields).collect();
    let expected = [
        json!(["tiny", "model", "tiny", null, "tombola"]),
        json!(["sql", "model", "sql", "tiny", "tombola"]),
    ];
    assert_eq!(found, expected);
    assert_eq!(facts[1]["max_model_len"], CONTEXT);
    for model in facts {
        let path = format!("/v1/models/{}", model["id"].as_str().unwrap());
        assert_eq!(server.get(&path).await, (StatusCode::OK, model));
    }
}

#[tokio::test]
async fn the_base_is_verified_on_demand() {
    let server = Server::new();
    let (status, facts) = server.get("/v1/base").await;
    assert_eq!(status, StatusCode::OK);
    let loaded = Digest::of(b"loaded").to_string();
    let expected = json!({
        "object": "base", "name": "tiny", "fingerprint": Digest::of(b"tiny").to_string(),
        "dtype": "f32", "quantized": false, "weight_bytes": 256, "parameters": 1, "weights": 64,
        "adaptable_weights": 64,
        "max_model_len": CONTEXT, "loaded_digest": loaded,
    });
    assert_eq!(facts, expected);
    let (_, facts) = server.get("/v1/base?verify=true").await;
    assert_eq!(
        (&facts["resident_digest"], &facts["intact"]),
        (&json!(loaded), &json!(true))
    );
    let (status, answer) = server.get("/v1/base?verify=perhaps").await;
    assert_eq!(
        (status, &answer["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("verify"))
    );
}

#[tokio::test]
async fn metrics_follow_the_requests() {
    let server = Server::new();
    let body = json!({"model": "sql", "prompt": "abc", "max_tokens": 2, "n": 2});
    server.ok("/v1/completions", body).await;
    for (series, expected) in [
        ("tombola_prompt_tokens_total", 6.0),
        ("tombola_generation_tokens_total", 4.0),
        (
            "tombola_request_success_total{finished_reason=\"length\"}",
            2.0,
        ),
        ("tombola_time_to_first_token_seconds_count", 2.0),
        ("tombola_inter_token_latency_seconds_count", 2.0),
        ("tombola_e2e_request_latency_seconds_count", 2.0),
        ("tombola_request_prompt_tokens_sum", 6.0),
        ("tombola_request_generation_tokens_sum", 4.0),
        ("tombola_request_params_max_tokens_sum", 4.0),
        ("tombola_request_params_n_sum", 2.0),
        ("tombola_ticket_requests_total{ticket=\"sql\"}", 1.0),
        ("tombola_tickets", 1.0),
        ("tombola_tickets_resident", 1.0),
    ] {
        assert_eq!(server.metric(series).await, expected, "{series}");
    }
}

/// Prometheus' own linter, if it is installed.
#[tokio::test]
async fn promtool_finds_no_fault() {
    let server = Server::new();
    server
        .ok("/v1/completions", json!({"model": "sql", "prompt": "abc"}))
        .await;
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let (_, headers, text) = server.send(request).await;
    assert!(
        headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("promtool is not installed: its check is skipped");
        return;
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let found = promtool.wait_with_output().unwrap();
    let said = [found.stdout, found.stderr].concat();
    assert!(
        found.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

#[tokio::test]
async fn version_load_and_limits_are_told() {
    let server = Server::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(server.get("/version").await.1, json!({"version": version}));
    assert_eq!(server.get("/ping").await.1, json!({"status": "ok"}));
    let ping = Request::post("/ping").body(Body::empty()).unwrap();
    assert_eq!(server.send(ping).await.0, StatusCode::OK);
    assert_eq!(server.get("/load").await.1, json!({"server_load": 0}));
    let state = server.state.clone();
    let waiting = tokio::spawn(async move {
        let request = json_request("/v1/completions", json!({"prompt": SILENT}).to_string());
        tower::ServiceExt::oneshot(tombola::server::router(state), request).await
    });
    while server.seen.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/load").await.1, json!({"server_load": 1}));
    waiting.abort();
    server.wait_for_cancelled(1).await;
    assert_eq!(server.get("/load").await.1, json!({"server_load": 0}));
    let info = server.get("/server_info").await.1;
    assert_eq!(info["base"]["name"], "tiny");
    assert_eq!(info["limits"]["max_model_len"], CONTEXT);
    assert_eq!(
        (&info["version"], &info["keys"]),
        (&json!(version), &json!(false))
    );
    assert_eq!(info["tickets"]["count"], 1);
}
