//! Tenants: what each sees and owns, its limits, and the audit lines of what it does.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tombola::access::{Scope, TenantLimits};

use super::access::{Keyed, send};
use crate::support::echo::{json_request, ticket_file};

const ALL_OF_A_TENANT: &[Scope] = &[
    Scope::Infer,
    Scope::TicketsRead,
    Scope::TicketsWrite,
    Scope::Metrics,
];

fn upload(name: &str, file: &[u8]) -> Request<Body> {
    let mut body = Vec::new();
    for (field, content) in [
        ("name", name.as_bytes()),
        ("replace", b"true"),
        ("file", file),
    ] {
        let head = format!("--LINE\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--LINE--\r\n");
    let request = Request::post("/v1/tickets");
    let request = request.header("content-type", "multipart/form-data; boundary=LINE");
    request.body(body.into()).unwrap()
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

fn delete(path: &str) -> Request<Body> {
    Request::delete(path).body(Body::empty()).unwrap()
}

fn complete(model: &str) -> Request<Body> {
    let body = json!({"model": model, "prompt": "a", "max_tokens": 1});
    json_request("/v1/completions", body.to_string())
}

fn names(list: &Value, key: &str) -> Vec<String> {
    let data = list["data"].as_array().expect("a list");
    let names = data
        .iter()
        .map(|entry| entry[key].as_str().unwrap().to_owned());
    names.collect()
}

#[tokio::test]
async fn another_tenants_ticket_is_as_if_absent() {
    let keyed = Keyed::new(TenantLimits::default());
    let server = &keyed.server;
    let acme = keyed.key("acme", Some("acme"), ALL_OF_A_TENANT);
    let other = keyed.key("other", Some("other"), ALL_OF_A_TENANT);
    let (status, answer) = send(server, &acme, upload("private", &ticket_file(7))).await;
    assert_eq!(status.as_u16(), 201, "{answer}");
    let digest = answer["digest"].as_str().unwrap().to_owned();
    assert_eq!(
        send(server, &acme, complete("private")).await.0.as_u16(),
        200
    );
    assert_eq!(
        send(server, &acme, get("/v1/tickets/private"))
            .await
            .0
            .as_u16(),
        200
    );
    let at = format!("private@{}", &digest[..8]);
    for name in ["private", &at, &digest] {
        for request in [
            complete(name),
            get(&format!("/v1/tickets/{name}")),
            get(&format!("/v1/models/{name}")),
            delete(&format!("/v1/tickets/{name}")),
        ] {
            let what = format!("{} {}", request.method(), request.uri());
            let (status, answer) = send(server, &other, request).await;
            assert_eq!(status.as_u16(), 404, "{what}: {answer}");
        }
    }
    let (_, tickets) = send(server, &other, get("/v1/tickets")).await;
    assert_eq!(names(&tickets, "name"), ["sql"]);
    let (_, models) = send(server, &other, get("/v1/models")).await;
    assert_eq!(names(&models, "id"), ["tiny", "sql"]);
    let (_, tickets) = send(server, &acme, get("/v1/tickets")).await;
    assert!(names(&tickets, "name").contains(&"private".to_owned()));
    // The public ticket is everyone's to use and the operator's to change.
    assert_eq!(send(server, &other, complete("sql")).await.0.as_u16(), 200);
    let refused = send(server, &other, delete("/v1/tickets/sql")).await.0;
    assert!([403, 404].contains(&refused.as_u16()), "{refused}");
    assert_eq!(send(server, &acme, complete("sql")).await.0.as_u16(), 200);
}

#[tokio::test]
async fn metrics_name_a_tenants_tickets_to_it_and_the_operator_alone() {
    let keyed = Keyed::new(TenantLimits::default());
    let server = &keyed.server;
    let acme = keyed.key("acme", Some("acme"), ALL_OF_A_TENANT);
    let other = keyed.key("other", Some("other"), ALL_OF_A_TENANT);
    let operator = keyed.key("ops", None, &[Scope::Metrics]);
    send(server, &acme, upload("private", &ticket_file(7))).await;
    for model in ["private", "sql"] {
        assert_eq!(send(server, &acme, complete(model)).await.0.as_u16(), 200);
    }
    let series = async |key: &str| {
        let request = Request::get("/metrics").header("authorization", format!("Bearer {key}"));
        let (_, _, text) = server.send(request.body(Body::empty()).unwrap()).await;
        assert!(
            text.contains("tombola_ticket_requests_total{ticket=\"sql\"} 1"),
            "{text}"
        );
        text
    };
    let private = "tombola_ticket_requests_total{tenant=\"acme\",ticket=\"private\"} 1";
    assert!(series(&acme).await.contains(private));
    assert!(series(&operator).await.contains(private));
    let text = series(&other).await;
    assert!(
        !text.contains("acme") && !text.contains("private"),
        "{text}"
    );
}

#[tokio::test]
async fn a_tenant_owns_as_many_tickets_as_it_may() {
    let keyed = Keyed::new(TenantLimits {
        max_tickets: Some(1),
        ..TenantLimits::default()
    });
    let server = &keyed.server;
    let acme = keyed.key("acme", Some("acme"), ALL_OF_A_TENANT);
    let status = async |request| {
        let (status, answer) = send(server, &acme, request).await;
        let code = answer["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (status.as_u16(), code)
    };
    let created = (201, String::new());
    let refused = (403, "tenant_limit".to_owned());
    assert_eq!(status(upload("first", &ticket_file(1))).await, created);
    assert_eq!(status(upload("second", &ticket_file(2))).await, refused);
    // A replacement takes no further place, and a deletion gives one back.
    assert_eq!(status(upload("first", &ticket_file(3))).await, created);
    assert_eq!(status(delete("/v1/tickets/first")).await.0, 200);
    assert_eq!(status(upload("second", &ticket_file(2))).await, created);
}

/// Lines of a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_administrative_action_leaves_an_audit_line() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("audit=info")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // For the whole process: whether a line is of interest is cached beyond this thread. Only this
    // test's tickets have such names.
    tracing::subscriber::set_global_default(subscriber).expect("no other test sets one");
    let keyed = Keyed::new(TenantLimits::default());
    let server = &keyed.server;
    let acme = keyed.key("acme-ci", Some("acme"), ALL_OF_A_TENANT);
    let reader = keyed.key("reader", None, &[Scope::Infer]);
    let (_, ticket) = send(server, &acme, upload("audited-mine", &ticket_file(7))).await;
    send(server, &reader, delete("/v1/tickets/audited-public")).await;
    server.send(delete("/v1/tickets/audited-public")).await;
    let pin = Request::put("/v1/tickets/audited%2Dmine/pin");
    send(server, &acme, pin.body(Body::empty()).unwrap()).await;
    send(server, &acme, delete("/v1/tickets/audited-mine")).await;
    // Reading is no administrative action; to have the base hashed is one.
    send(server, &acme, get("/v1/tickets")).await;
    send(server, &acme, get("/v1/base?verify=true")).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let verify = "action=\"verify\" outcome=\"refused\" status=403";
    let verify = text.lines().filter(|line| line.contains(verify));
    assert_eq!(
        verify.filter(|line| line.contains("acme-ci")).count(),
        1,
        "{text}"
    );
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("audited-"))
        .collect();
    let digest = format!("digest=\"{}\"", ticket["digest"].as_str().unwrap());
    let [upload, delete] = ["action=\"upload\"", "action=\"delete\""];
    let [done, refused] = ["outcome=\"done\"", "outcome=\"refused\""];
    let (mine, public) = ("ticket=\"audited-mine\"", "ticket=\"audited-public\"");
    let acme = ["key=\"acme-ci\"", "tenant=\"acme\"", mine, &digest];
    let expected = [
        [&[upload, done, "status=201"], &acme[..]].concat(),
        vec![
            delete,
            refused,
            "code=\"forbidden\"",
            "key=\"reader\"",
            public,
        ],
        vec![delete, refused, "code=\"invalid_api_key\"", public],
        [&["action=\"pin\"", refused], &acme[..3]].concat(),
        [&[delete, done, "status=200"], &acme[..]].concat(),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, words) in lines.iter().zip(expected) {
        for word in words {
            assert!(line.contains(word), "{word} is missing: {line}");
        }
    }
}

#[tokio::test]
async fn a_loaded_copy_and_an_unloaded_file_count_as_the_tenants_tickets() {
    let keyed = Keyed::new(TenantLimits {
        max_tickets: Some(1),
        ..TenantLimits::default()
    });
    let server = &keyed.server;
    let acme = keyed.key("acme", Some("acme"), ALL_OF_A_TENANT);
    let outcome = async |request| {
        let (status, answer) = send(server, &acme, request).await;
        let code = answer["error"]["code"].as_str().unwrap_or_default();
        (status.as_u16(), code.to_owned())
    };
    let say = |path: &str, body: Value| json_request(path, body.to_string());
    let load = |name: &str| {
        let body = json!({"lora_name": name, "lora_path": "a.safetensors"});
        say("/v1/load_lora_adapter", body)
    };
    let (status, _) = outcome(upload("a", &ticket_file(7))).await;
    assert_eq!(status, 201);
    let over = (403, "tenant_limit".to_owned());
    assert_eq!(outcome(load("b")).await, over);
    let mut unload = say("/v1/unload_lora_adapter", json!({"lora_name": "a"}));
    let bearer = format!("Bearer {acme}").parse().unwrap();
    unload.headers_mut().insert("authorization", bearer);
    // The answer is text.
    let (status, _, said) = server.send(unload).await;
    assert_eq!(status.as_u16(), 200, "{said}");
    assert_eq!(outcome(load("b")).await, over);
    assert_eq!(outcome(upload("b", &ticket_file(8))).await, over);
    assert_eq!(outcome(delete("/v1/tickets/a")).await.0, 200);
    assert_eq!(outcome(upload("b", &ticket_file(8))).await.0, 201);
    let long = json!({"lora_name": "c", "lora_path": "c".repeat(65 << 10)});
    assert_eq!(outcome(say("/v1/load_lora_adapter", long)).await.0, 413);
}

#[tokio::test]
async fn a_tenant_sees_the_use_of_its_own_tickets_alone() {
    let keyed = Keyed::new(TenantLimits::default());
    let server = &keyed.server;
    let [north, south] = ["north", "south"].map(|t| keyed.key(t, Some(t), ALL_OF_A_TENANT));
    let operator = keyed.key("ops", None, &[Scope::TicketsRead]);
    for key in [&north, &south] {
        assert_eq!(
            send(server, key, upload("own", &ticket_file(7)))
                .await
                .0
                .as_u16(),
            201
        );
    }
    for model in ["own", "sql"] {
        assert_eq!(send(server, &north, complete(model)).await.0.as_u16(), 200);
    }
    let state = async |key: &str, name: &str| {
        let (_, mut ticket) = send(server, key, get(&format!("/v1/tickets/{name}"))).await;
        assert_eq!(ticket["leases"].is_null(), ticket["pinned"].is_null());
        ticket["state"].take()
    };
    assert_eq!(state(&north, "own").await, "host");
    assert_eq!(state(&south, "own").await, "disk");
    assert_eq!(state(&operator, "sql").await, "host");
    for key in [&north, &south] {
        assert_eq!(state(key, "sql").await, Value::Null);
        let (_, list) = send(server, key, get("/v1/tickets")).await;
        let public = list["data"].as_array().unwrap().iter();
        let mut public = public.filter(|ticket| ticket["tenant"].is_null());
        assert!(public.all(|ticket| ticket.get("state").is_none()), "{list}");
    }
}
