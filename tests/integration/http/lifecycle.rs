//! Conditional writes, names by digest, pages and pins of tickets.

use axum::body::Body;
use axum::http::request::Builder;
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tombola::ticket::Digest;

use super::tickets::form;
use crate::support::echo::{Server, refusal, ticket_file};

const SQL: &str = "/v1/tickets/sql";

impl Server {
    async fn request(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
        let (status, headers, body) = self.send(request).await;
        (status, headers, serde_json::from_str(&body).unwrap())
    }

    /// Uploads a content as `sql` under a condition; returns status and code.
    async fn write(&self, content: u8, (header, value): (&str, &str)) -> (u16, String) {
        let file = ticket_file(content);
        let mut upload = form(&[("name", b"sql"), ("file", &file)]);
        let name: axum::http::HeaderName = header.parse().unwrap();
        upload.headers_mut().insert(name, value.parse().unwrap());
        self.outcome(upload).await
    }

    async fn outcome(&self, request: Request<Body>) -> (u16, String) {
        let (status, _, answer) = self.request(request).await;
        if status.is_success() {
            return (status.as_u16(), String::new());
        }
        let (status, _, code) = refusal(status, &answer);
        (status, code)
    }
}

fn empty(request: Builder) -> Request<Body> {
    request.body(Body::empty()).unwrap()
}

fn tag(content: u8) -> String {
    format!("\"{}\"", Digest::of(&ticket_file(content)))
}

#[tokio::test]
async fn writes_happen_only_to_the_content_that_they_name() {
    let server = Server::new();
    let failed = (412, "precondition_failed".to_owned());
    let written = (201, String::new());
    assert_eq!(server.write(2, ("if-none-match", "*")).await, failed);
    assert_eq!(server.write(2, ("if-match", &tag(2))).await, failed);
    assert_eq!(server.write(2, ("if-match", &tag(1))).await, written);
    let (_, headers, facts) = server.request(empty(Request::get(SQL))).await;
    assert_eq!(headers["etag"], tag(2));
    assert_eq!(tag(2), format!("\"{}\"", facts["digest"].as_str().unwrap()));
    // Of two writers that read the first content, the second is told so.
    assert_eq!(server.write(3, ("if-match", &tag(1))).await, failed);
    let invalid = (400, "invalid_value".to_owned());
    assert_eq!(server.write(3, ("if-match", "sql")).await, invalid);
    let delete = |tag: String| empty(Request::delete(SQL).header("if-match", tag));
    assert_eq!(server.outcome(delete(tag(1))).await, failed);
    let model = Request::delete("/v1/models/sql").header("if-match", tag(1));
    assert_eq!(server.outcome(empty(model)).await, failed);
    assert_eq!(server.outcome(delete(tag(2))).await, (200, String::new()));
    assert_eq!(server.write(2, ("if-match", "*")).await, failed);
    assert_eq!(server.write(2, ("if-none-match", "*")).await, written);
}

#[tokio::test]
async fn a_request_may_name_the_content_that_it_wants() {
    let server = Server::new();
    let digest = Digest::of(&ticket_file(1));
    let hex = digest.to_string();
    for model in [
        &hex,
        &format!("sha256:{hex}"),
        &format!("sql@{}", &hex[..6]),
    ] {
        let body = json!({"model": model, "prompt": "a"});
        let answer = server.ok("/v1/completions", body).await;
        assert_eq!(answer["model"], model.as_str());
        let seen = server.last_request().ticket;
        assert_eq!(seen, Some(("sql".to_owned(), digest)));
    }
    assert_eq!(server.write(2, ("if-match", "*")).await.0, 201);
    for model in [hex.clone(), format!("sql@{}", &hex[..6])] {
        let body = json!({"model": model, "prompt": "a"});
        let (status, _, code) = server.refused("/v1/completions", body).await;
        assert_eq!((status, code.as_str()), (404, "model_not_found"));
    }
}

#[tokio::test]
async fn lists_come_in_pages_without_the_training_metadata() {
    let server = Server::new();
    for name in ["a", "b", "Zed"] {
        let file = ticket_file(2);
        let upload = form(&[("name", name.as_bytes()), ("file", &file)]);
        assert_eq!(server.outcome(upload).await.0, 201);
    }
    let page = async |query: &str| {
        let (status, page) = server.get(&format!("/v1/tickets{query}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let data = page["data"].as_array().unwrap().clone();
        assert!(data.iter().all(|ticket| ticket.get("training").is_none()));
        let names = data.iter().map(|t| t["name"].as_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), page["has_more"].clone())
    };
    assert_eq!(page("").await.0, ["a", "b", "sql", "Zed"]);
    let (names, more) = page("?limit=3").await;
    assert_eq!((names.join(" "), more), ("a b sql".to_owned(), json!(true)));
    let (names, more) = page("?limit=3&after=sql").await;
    assert_eq!((names.join(" "), more), ("Zed".to_owned(), json!(false)));
    let one = server.get("/v1/tickets/a").await.1;
    assert!(one.get("training").is_some());
    for query in ["limit=0", "limit=1001", "limit=x", "tenant=.."] {
        let (status, _) = server.get(&format!("/v1/tickets?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test]
async fn a_pinned_ticket_is_loaded_and_the_gauges_show_it() {
    let server = Server::new();
    let pin = format!("{SQL}/pin");
    let (status, _, facts) = server.request(empty(Request::put(&pin))).await;
    assert_eq!(status, StatusCode::OK, "{facts}");
    let shown = |facts: &Value| (facts["state"].clone(), facts["pinned"].clone());
    assert_eq!(shown(&facts), (json!("host"), json!(true)));
    assert_eq!(server.metric("tombola_tickets_pinned").await, 1.0);
    assert!(server.metric("tombola_ticket_memory_bytes").await > 0.0);
    let (_, _, facts) = server.request(empty(Request::delete(&pin))).await;
    assert_eq!(shown(&facts), (json!("host"), json!(false)));
    let unknown = Request::put("/v1/tickets/other/pin");
    let (status, code) = server.outcome(empty(unknown)).await;
    assert_eq!((status, code.as_str()), (404, "ticket_not_found"));
}
