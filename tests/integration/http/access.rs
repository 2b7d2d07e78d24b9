//! Who may do what: keys and scopes, the operator's port, foreign web pages, media types.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::access::{ApiKey, KeyDigest, KeyEntry, KeyFile, KeyRing, Scope, TenantLimits};
use tombola::server::{
    Access, AccessOptions, BrowserRules, Port, RouteFacts, admin_router, public_router,
    route_facts, router,
};
use tower::ServiceExt as _;

use crate::support::echo::{SILENT, Server, json_request, refusal, ticket_file};

const COMPLETIONS: &str = "/v1/completions";

/// A server with keys in a file.
pub struct Keyed {
    pub server: Server,
    pub ring: Arc<KeyRing>,
    folder: TempDir,
}

impl Keyed {
    pub fn new(tenant_limits: TenantLimits) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("keys.json");
        KeyFile::edit(&path, |_| Ok(())).unwrap();
        let ring = Arc::new(KeyRing::open(Some(path), None).unwrap());
        let server = Server::with_access(AccessOptions {
            keys: Some(Arc::clone(&ring)),
            tenant_limits,
            ..AccessOptions::default()
        });
        Self {
            server,
            ring,
            folder,
        }
    }

    /// Adds a key and returns its secret.
    pub fn key(&self, name: &str, tenant: Option<&str>, scopes: &[Scope]) -> String {
        let key = ApiKey::generate().unwrap();
        let entry = KeyEntry {
            name: name.to_owned(),
            sha256: KeyDigest::of(key.secret()),
            tenant: tenant.map(|tenant| tenant.parse().unwrap()),
            scopes: scopes.iter().copied().collect(),
            created: 0,
            expires: None,
        };
        let path = self.folder.path().join("keys.json");
        KeyFile::edit(&path, |file| file.add(entry)).unwrap();
        self.ring.refresh();
        key.secret().to_owned()
    }
}

/// Sends `request` with a key; returns the status and the body.
pub async fn send(server: &Server, key: &str, mut request: Request<Body>) -> (StatusCode, Value) {
    let value = format!("Bearer {key}").parse().unwrap();
    request.headers_mut().insert("authorization", value);
    let (status, _, body) = server.send(request).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// A request to a route of the table.
fn request_to(route: &RouteFacts) -> Request<Body> {
    let path = route.path.replace("{name}", "sql").replace("{*id}", "tiny");
    let request = Request::builder().method(&route.method).uri(path);
    if route.method != Method::POST {
        return request.body(Body::empty()).unwrap();
    }
    let form = route.path == "/v1/tickets";
    let kind = if form {
        "multipart/form-data; boundary=LINE"
    } else {
        "application/json"
    };
    request
        .header("content-type", kind)
        .body("{}".into())
        .unwrap()
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_default()
}

async fn ask(router: Router, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (parts.status, parts.headers, body)
}

#[tokio::test]
async fn every_route_requires_a_key_with_its_scope() {
    let keyed = Keyed::new(TenantLimits::default());
    let server = &keyed.server;
    let keys = Scope::ALL.map(|scope| {
        let name = scope.name().replace(':', "-");
        (scope, keyed.key(&name, None, &[scope]))
    });
    let mut open = BTreeSet::new();
    for route in route_facts() {
        let name = format!("{} {}", route.method, route.path);
        let (status, headers, answer) = ask(router(server.state.clone()), request_to(&route)).await;
        if route.access == Access::Open {
            assert_eq!(status, StatusCode::OK, "{name}");
            open.insert(route.path);
            continue;
        }
        let refused = refusal(status, &answer);
        assert_eq!(
            refused,
            (401, String::new(), "invalid_api_key".to_owned()),
            "{name}"
        );
        assert_eq!(headers["www-authenticate"], "Bearer realm=\"tombola\"");
        for (scope, key) in &keys {
            let (status, answer) = send(server, key, request_to(&route)).await;
            let allowed = match route.access {
                Access::Scope(wanted) => *scope == wanted || *scope == Scope::Admin,
                Access::AnyKey | Access::Open => true,
            };
            if allowed {
                assert!(
                    ![401, 403].contains(&status.as_u16()),
                    "{scope} for {name}: {answer}"
                );
            } else {
                assert_eq!(
                    (status.as_u16(), code(&answer)),
                    (403, "forbidden"),
                    "{name}"
                );
                let message = answer["error"]["message"].as_str().unwrap();
                let Access::Scope(wanted) = route.access else {
                    unreachable!()
                };
                assert!(message.contains(&format!("`{wanted}`")), "{message}");
            }
        }
    }
    assert_eq!(open, BTreeSet::from(["/health", "/ping", "/ready"]));
    let verify = || {
        Request::get("/v1/base?verify=true")
            .body(Body::empty())
            .unwrap()
    };
    for (scope, key) in &keys {
        let status = send(server, key, verify()).await.0;
        assert_eq!(
            status == StatusCode::OK,
            *scope == Scope::Admin,
            "{scope}: {status}"
        );
    }
}

#[tokio::test]
async fn what_is_not_a_route_tells_nothing_without_a_key() {
    let keyed = Keyed::new(TenantLimits::default());
    let key = keyed.key("infer", None, &[Scope::Infer]);
    for (method, path, status) in [
        (Method::GET, "/v2/nothing", 404),
        (Method::PUT, "/v1/tickets", 405),
        (Method::GET, "/v1/../metrics", 404),
    ] {
        let request = || {
            let request = Request::builder().method(&method).uri(path);
            request.body(Body::empty()).unwrap()
        };
        assert_eq!(
            keyed.server.send(request()).await.0,
            StatusCode::UNAUTHORIZED
        );
        let answer = send(&keyed.server, &key, request()).await;
        assert_eq!(answer.0.as_u16(), status, "{path}: {}", answer.1);
    }
}

#[tokio::test]
async fn keys_that_are_not_accepted_are_401_with_the_reason() {
    let keyed = Keyed::new(TenantLimits::default());
    let key = keyed.key("web", None, &[Scope::Infer]);
    let models = |value: &str| {
        let request = Request::get("/v1/models").header("authorization", value);
        request.body(Body::empty()).unwrap()
    };
    for value in [format!("Bearer {key}"), format!("bearer  {key} ")] {
        assert_eq!(
            keyed.server.send(models(&value)).await.0,
            StatusCode::OK,
            "{value}"
        );
    }
    for (value, error) in [
        (format!("Bearer {key}x"), "invalid_token"),
        ("Bearer ".to_owned(), "invalid_request"),
        (key.clone(), "invalid_request"),
        (format!("Basic {key}"), "invalid_request"),
    ] {
        let (status, headers, body) = keyed.server.send(models(&value)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{value}");
        let challenge = headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains(error), "{challenge}");
        assert!(!body.contains(&key), "{body}");
    }
    let path = keyed.folder.path().join("keys.json");
    KeyFile::edit(&path, |file| file.revoke("web")).unwrap();
    keyed.ring.refresh();
    let revoked = keyed.server.send(models(&format!("Bearer {key}"))).await.0;
    assert_eq!(revoked, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_key_in_the_header_of_anthropics_clients_counts_too() {
    let keyed = Keyed::new(TenantLimits::default());
    let key = keyed.key("web", None, &[Scope::Infer]);
    let models = async |headers: &[(&str, &str)]| {
        let request = headers.iter().fold(
            Request::get("/v1/models").header("host", "localhost"),
            |request, (name, value)| request.header(*name, *value),
        );
        let answer = keyed.server.send(request.body(Body::empty()).unwrap());
        answer.await.0.as_u16()
    };
    let bearer = format!("Bearer {key}");
    assert_eq!(models(&[("x-api-key", &key)]).await, 200);
    assert_eq!(models(&[("x-api-key", &bearer)]).await, 401);
    assert_eq!(models(&[("x-api-key", "tb-no")]).await, 401);
    let twice = [("x-api-key", &*key), ("x-api-key", &key)];
    assert_eq!(models(&twice).await, 401);
    // `Authorization` alone counts if it is there.
    let both = [("x-api-key", "tb-no"), ("authorization", &*bearer)];
    assert_eq!(models(&both).await, 200);
    let both = [("x-api-key", &*key), ("authorization", "Bearer tb-no")];
    assert_eq!(models(&both).await, 401);
}

/// The requests by which a web page can replace a ticket of a local server.
#[tokio::test]
async fn a_foreign_web_page_can_neither_upload_nor_complete() {
    let server = Server::new();
    let upload = |headers: &[(&str, &str)]| {
        let mut body = b"--LINE\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nsql\r\n\
            --LINE\r\nContent-Disposition: form-data; name=\"replace\"\r\n\r\ntrue\r\n\
            --LINE\r\nContent-Disposition: form-data; name=\"file\"; filename=\"t\"\r\n\r\n"
            .to_vec();
        body.extend(ticket_file(7));
        body.extend(b"\r\n--LINE--\r\n");
        let request = headers
            .iter()
            .fold(Request::post("/v1/tickets"), |r, (name, value)| {
                r.header(*name, *value)
            })
            .header("content-type", "multipart/form-data; boundary=LINE");
        request.body(Body::from(body)).unwrap()
    };
    let before = std::fs::read(server.tickets.path().join("sql.safetensors")).unwrap();
    for headers in [
        &[
            ("host", "evil.example:8000"),
            ("origin", "https://evil.example"),
        ][..],
        &[
            ("host", "127.0.0.1:8000"),
            ("origin", "https://evil.example"),
        ],
        &[("host", "127.0.0.1:8000"), ("origin", "null")],
        &[("host", "evil.example:8000")],
        &[("host", "127.0.0.1:8000"), ("sec-fetch-site", "cross-site")],
    ] {
        let (status, _, body) = server.send(upload(headers)).await;
        let answer = serde_json::from_str(&body).unwrap();
        let expected = (403, String::new(), "foreign_origin".to_owned());
        assert_eq!(refusal(status, &answer), expected, "{headers:?}");
        let delete = headers
            .iter()
            .fold(Request::delete("/v1/tickets/sql"), |r, (name, value)| {
                r.header(*name, *value)
            });
        let status = server.send(delete.body(Body::empty()).unwrap()).await.0;
        assert_eq!(status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    let file = server.tickets.path().join("sql.safetensors");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let own = [
        ("host", "localhost:8000"),
        ("origin", "http://localhost:8000"),
    ];
    let (status, _, body) = server.send(upload(&own)).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}

#[tokio::test]
async fn bodies_of_another_media_type_are_415_with_the_way_out() {
    let server = Server::new();
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        for path in [COMPLETIONS, "/v1/chat/completions"] {
            let mut request = Request::post(path);
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            let body = json!({"prompt": "a"}).to_string();
            let (status, _, body) = server.send(request.body(body.into()).unwrap()).await;
            let answer: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (status.as_u16(), code(&answer)),
                (415, "unsupported_media_type")
            );
            assert!(
                body.contains("-H 'Content-Type: application/json'"),
                "{body}"
            );
        }
    }
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_preflight_request_is_answered_for_allowed_origins_alone() {
    let browsers = BrowserRules::new(
        [127, 0, 0, 1].into(),
        &[],
        &["https://app.example".to_owned()],
    );
    let server = Server::with_access(AccessOptions {
        browsers: browsers.unwrap(),
        ..AccessOptions::default()
    });
    let preflight = |origin: &str| {
        Request::options(COMPLETIONS)
            .header("host", "localhost:8000")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "content-type, authorization",
            )
            .body(Body::empty())
            .unwrap()
    };
    for origin in ["https://app.example", "http://localhost:3000"] {
        let (status, headers, _) = server.send(preflight(origin)).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        assert_eq!(headers["access-control-allow-origin"], origin);
        let methods = headers["access-control-allow-methods"].to_str().unwrap();
        for method in ["GET", "POST", "PUT", "DELETE"] {
            assert!(methods.contains(method), "{method}: {methods}");
        }
        let allowed = headers["access-control-allow-headers"].to_str().unwrap();
        assert!(allowed.contains("authorization"), "{allowed}");
        let mut request = json_request(COMPLETIONS, json!({"prompt": "a"}).to_string());
        let origin = origin.parse().unwrap();
        request.headers_mut().insert("origin", origin);
        let (status, headers, body) = server.send(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(headers.contains_key("access-control-allow-origin"));
        assert_eq!(headers["vary"], "Origin");
        let exposed = headers["access-control-expose-headers"].to_str().unwrap();
        for header in ["x-request-id", "x-ignored-fields", "Retry-After"] {
            assert!(exposed.contains(header), "{header}: {exposed}");
        }
    }
    let (status, headers, _) = server.send(preflight("https://evil.example")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_valid_key_frees_the_host_but_not_the_origin() {
    let keyed = Keyed::new(TenantLimits::default());
    let key = keyed.key("web", None, &[Scope::Infer]);
    let models = |host: &str, origin: Option<&str>| {
        let mut request = Request::get("/v1/models").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.body(Body::empty()).unwrap()
    };
    let status = async |request| send(&keyed.server, &key, request).await.0.as_u16();
    assert_eq!(status(models("api.example", None)).await, 200);
    assert_eq!(
        status(models("api.example", Some("https://api.example"))).await,
        200
    );
    assert_eq!(
        status(models("api.example", Some("https://evil.example"))).await,
        403
    );
    let (without, ..) = keyed.server.send(models("api.example", None)).await;
    assert_eq!(without, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_operators_routes_leave_the_public_port_for_their_own() {
    let server = Server::new();
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for route in route_facts() {
        let ports = [
            (Port::Public, public_router(server.state.clone())),
            (Port::Admin, admin_router(server.state.clone())),
        ];
        for (port, router) in ports {
            let (status, _, answer) = ask(router, request_to(&route)).await;
            let absent = ["unknown_url", "method_not_allowed"].contains(&code(&answer));
            let expected = route.port != Port::Both && route.port != port;
            assert_eq!(absent, expected, "{route:?} on {port:?}: {status} {answer}");
        }
    }
    let verify = "/v1/base?verify=true";
    let public = ask(public_router(server.state.clone()), get(verify)).await;
    assert_eq!((public.0.as_u16(), code(&public.2)), (404, "unknown_url"));
    let admin = ask(admin_router(server.state.clone()), get(verify)).await;
    assert_eq!(admin.0, StatusCode::OK);
}

#[tokio::test]
async fn a_tenant_with_too_many_requests_is_429_and_another_is_not() {
    let keyed = Keyed::new(TenantLimits {
        max_requests: Some(1),
        max_queued_tokens: Some(40),
        ..TenantLimits::default()
    });
    let server = &keyed.server;
    let acme = keyed.key("acme", Some("acme"), &[Scope::Infer]);
    let other = keyed.key("other", Some("other"), &[Scope::Infer]);
    let body = |prompt: &str, max_tokens: usize| {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens});
        json_request(COMPLETIONS, body.to_string())
    };
    let mut silent = body(SILENT, 4);
    let value = format!("Bearer {acme}").parse().unwrap();
    silent.headers_mut().insert("authorization", value);
    let waiting = tokio::spawn(router(server.state.clone()).oneshot(silent));
    while server.seen.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let (status, answer) = send(server, &acme, body("a", 4)).await;
    assert_eq!(
        (status.as_u16(), code(&answer)),
        (429, "tenant_limit"),
        "{answer}"
    );
    assert_eq!(send(server, &other, body("a", 4)).await.0, StatusCode::OK);
    waiting.abort();
    server.wait_for_cancelled(1).await;
    assert_eq!(send(server, &acme, body("a", 4)).await.0, StatusCode::OK);
    let (status, answer) = send(server, &acme, body("a", 40)).await;
    assert_eq!(
        (status.as_u16(), code(&answer)),
        (400, "invalid_value"),
        "{answer}"
    );
    let refused = "tombola_requests_refused_total{reason=\"tenant_limit\"}";
    let admin = keyed.key("admin", None, &[Scope::Admin]);
    let metrics = Request::get("/metrics").header("authorization", format!("Bearer {admin}"));
    let (_, _, text) = server.send(metrics.body(Body::empty()).unwrap()).await;
    assert!(
        text.lines().any(|line| line == format!("{refused} 1")),
        "{text}"
    );
}
