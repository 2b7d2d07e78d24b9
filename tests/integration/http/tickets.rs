//! Uploads and deletions of tickets.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tombola::ticket::Digest;

use crate::support::echo::{MAX_TICKET_BYTES, Server, json_request, refusal, ticket_file};

const PATH: &str = "/v1/tickets";

/// A form of these fields, in this order; `file` has a file name, as clients send it.
pub fn form(fields: &[(&str, &[u8])]) -> Request<Body> {
    let mut body = Vec::new();
    for (name, content) in fields {
        let file = if *name == "file" {
            "; filename=\"t.safetensors\""
        } else {
            ""
        };
        let head =
            format!("--LINE\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--LINE--\r\n");
    raw_form(body)
}

fn raw_form(body: Vec<u8>) -> Request<Body> {
    let request = Request::post(PATH).header("content-type", "multipart/form-data; boundary=LINE");
    request.body(body.into()).unwrap()
}

impl Server {
    async fn upload(&self, request: Request<Body>) -> (StatusCode, Value) {
        let (status, _, body) = self.send(request).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    async fn upload_refused(&self, request: Request<Body>) -> (u16, String, String) {
        let (status, answer) = self.upload(request).await;
        refusal(status, &answer)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.tickets.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".tombola"))
            .collect();
        names.sort();
        names
    }
}

fn refused(status: u16, param: &str, code: &str) -> (u16, String, String) {
    (status, param.to_owned(), code.to_owned())
}

#[tokio::test]
async fn an_upload_is_served_at_once_in_any_order_of_its_fields() {
    let server = Server::new();
    let file = ticket_file(2);
    for (name, fields) in [
        ("first", [("name", &b"first"[..]), ("file", &file)]),
        ("second", [("file", &file), ("name", &b"second"[..])]),
    ] {
        let (status, mut facts) = server.upload(form(&fields)).await;
        assert_eq!(status, StatusCode::CREATED, "{facts}");
        let (_, mut shown) = server.get(&format!("{PATH}/{name}")).await;
        // Requests load and lease it meanwhile, under either name.
        for volatile in ["state", "leases"] {
            assert!(!facts[volatile].take().is_null());
            assert!(!shown[volatile].take().is_null());
        }
        assert_eq!(shown, facts);
        assert!(facts["created"].take().as_u64().unwrap() > 1_700_000_000);
        assert!(facts["resident_bytes"].take().as_u64().unwrap() > 0);
        let expected = json!({
            "object": "ticket", "name": name, "tenant": null,
            "digest": Digest::of(&file).to_string(),
            "created": null, "bytes": file.len(), "resident_bytes": null, "nonzeros": 4,
            "density": 0.0625,
            "base": {"name": "tiny", "fingerprint": Digest::of(b"tiny").to_string()},
            "license": "CC-BY-4.0", "training": null,
            "state": null, "leases": null, "pinned": false,
        });
        assert_eq!(facts, expected);
        server
            .ok("/v1/completions", json!({"model": name, "prompt": "a"}))
            .await;
        assert_eq!(
            server.last_request().ticket,
            Some((name.to_owned(), Digest::of(&file)))
        );
    }
    let (_, list) = server.get(PATH).await;
    let names: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(names, ["first", "second", "sql"]);
    assert_eq!(
        server.files(),
        ["first.safetensors", "second.safetensors", "sql.safetensors"]
    );
}

#[tokio::test]
async fn a_taken_name_is_409_unless_replaced() {
    let server = Server::new();
    let file = ticket_file(9);
    let fields = [("name", &b"sql"[..]), ("file", &file)];
    let exists = refused(409, "name", "ticket_exists");
    assert_eq!(server.upload_refused(form(&fields)).await, exists);
    let explicit = [fields[0], fields[1], ("replace", b"false")];
    assert_eq!(server.upload_refused(form(&explicit)).await, exists);
    let replace = [fields[0], ("replace", b"true"), fields[1]];
    assert_eq!(server.upload(form(&replace)).await.0, StatusCode::CREATED);
    server
        .ok("/v1/completions", json!({"model": "sql", "prompt": "a"}))
        .await;
    assert_eq!(server.last_request().ticket.unwrap().1, Digest::of(&file));
}

#[tokio::test]
async fn bad_uploads_are_refused_and_leave_nothing_behind() {
    let server = Server::new();
    let file = ticket_file(2);
    let huge = vec![b'x'; MAX_TICKET_BYTES as usize + 1];
    let long_name = vec![b'x'; 300];
    let invalid = |param: &str| refused(400, param, "invalid_value");
    let invalid_ticket = refused(422, "file", "invalid_ticket");
    let name = ("name", &b"new"[..]);
    for (fields, expected) in [
        (
            vec![name, ("file", &b"not a ticket"[..])],
            invalid_ticket.clone(),
        ),
        (
            vec![name, ("file", &file[..file.len() - 1])],
            invalid_ticket.clone(),
        ),
        (vec![name, ("file", &b""[..])], invalid_ticket),
        (
            vec![name, ("file", &huge[..])],
            refused(413, "", "request_too_large"),
        ),
        (
            vec![("name", &b"../new"[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (
            vec![("name", &b"new!"[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (
            vec![("name", &b""[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (
            vec![("name", &b"tiny"[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (
            vec![("name", &b"\xff"[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (
            vec![("name", &long_name[..]), ("file", &file[..])],
            invalid("name"),
        ),
        (vec![("file", &file[..])], invalid("name")),
        (vec![name], invalid("file")),
        (vec![], invalid("name")),
        (vec![name, name, ("file", &file[..])], invalid("name")),
        (
            vec![name, ("file", &file[..]), ("replace", b"maybe")],
            invalid("replace"),
        ),
        (
            vec![name, ("file", &file[..]), ("other", b"x")],
            invalid("other"),
        ),
    ] {
        let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            server.upload_refused(form(&fields)).await,
            expected,
            "{names:?}"
        );
    }
    assert_eq!(server.files(), ["sql.safetensors"]);
}

#[tokio::test]
async fn the_reason_of_a_refused_ticket_is_shown() {
    let server = Server::new();
    let (_, answer) = server
        .upload(form(&[("name", b"new"), ("file", b"\x80\x04pickle")]))
        .await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the ticket is refused: "), "{message}");
    assert!(message.len() > 30 && !message.contains('/'), "{message}");
}

#[tokio::test]
async fn bodies_that_are_not_forms_are_400() {
    let server = Server::new();
    let invalid_body = refused(400, "", "invalid_body");
    let json = server.upload_refused(json_request(PATH, "{}")).await;
    assert_eq!(json, refused(415, "", "unsupported_media_type"));
    let cut = b"--LINE\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc".to_vec();
    assert_eq!(server.upload_refused(raw_form(cut)).await, invalid_body);
    assert_eq!(server.files(), ["sql.safetensors"]);
}

#[tokio::test]
async fn a_deleted_ticket_is_gone_everywhere() {
    let server = Server::new();
    server
        .ok("/v1/completions", json!({"model": "sql", "prompt": "a"}))
        .await;
    let delete = || {
        Request::delete("/v1/tickets/sql")
            .body(Body::empty())
            .unwrap()
    };
    let (status, answer) = server.upload(delete()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer,
        json!({"object": "ticket", "name": "sql", "deleted": true})
    );
    assert_eq!(
        server.upload_refused(delete()).await,
        refused(404, "name", "ticket_not_found")
    );
    let body = json!({"model": "sql", "prompt": "a"});
    let gone = server.refused("/v1/completions", body).await;
    assert_eq!(gone, refused(404, "model", "model_not_found"));
    assert_eq!(
        server.get("/v1/models").await.1["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert!(server.files().is_empty());
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    assert!(!server.send(request).await.2.contains("ticket=\"sql\""));
}
