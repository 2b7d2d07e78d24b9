//! vLLM's routes for adapters, and OpenAI's for deleting a model.

use std::fs;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tombola::ticket::Digest;

use crate::support::echo::{Server, refusal, ticket_file};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

impl Server {
    /// Posts JSON; returns the status and the text of the answer.
    async fn say(&self, path: &str, body: Value) -> (StatusCode, String) {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into()).unwrap();
        let (status, _, text) = self.send(request).await;
        (status, text)
    }

    async fn load_refused(&self, name: &str, path: &str) -> (u16, String, String) {
        let body = json!({"lora_name": name, "lora_path": path});
        let (status, text) = self.say(LOAD, body).await;
        refusal(status, &serde_json::from_str(&text).unwrap())
    }

    fn file(&self, name: &str) -> String {
        let path = self.tickets.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    async fn digest(&self, name: &str) -> Value {
        self.get(&format!("/v1/tickets/{name}")).await.1["digest"].take()
    }
}

#[tokio::test]
async fn a_file_of_the_folder_is_loaded_and_unloaded_as_by_vllm() {
    let server = Server::new();
    let file = ticket_file(7);
    let digest = json!(Digest::of(&file).to_string());
    fs::write(server.file("cats.safetensors"), &file).unwrap();
    fs::create_dir(server.file("staging")).unwrap();
    fs::write(server.file("staging/dogs.safetensors"), &file).unwrap();
    for (name, path) in [
        ("cats", server.file("cats.safetensors")),
        ("dogs", server.file("staging/../staging/dogs.safetensors")),
    ] {
        let body = json!({"lora_name": name, "lora_path": path});
        let said = server.say(LOAD, body.clone()).await;
        let success = format!("Success: LoRA adapter '{name}' added successfully.");
        assert_eq!(said, (StatusCode::OK, success));
        assert_eq!(server.digest(name).await, digest);
        let again = server.load_refused(name, &path).await;
        assert_eq!(
            again,
            (400, "lora_name".to_owned(), "invalid_value".to_owned())
        );
        let mut in_place = body;
        in_place["load_inplace"] = true.into();
        assert_eq!(server.say(LOAD, in_place).await.0, StatusCode::OK);
    }
    let body = json!({"lora_name": "cats"});
    let said = server.say(UNLOAD, body.clone()).await;
    let success = "Success: LoRA adapter 'cats' removed successfully.".to_owned();
    assert_eq!(said, (StatusCode::OK, success));
    // The file stays, and can be loaded again.
    assert!(fs::exists(server.file("cats.safetensors")).unwrap());
    let gone = json!({"model": "cats", "prompt": "a"});
    assert_eq!(server.refused("/v1/completions", gone).await.0, 404);
    assert_eq!(server.say(UNLOAD, body).await.0, StatusCode::NOT_FOUND);
    let body = json!({"lora_name": "cats", "lora_path": server.file("cats.safetensors")});
    assert_eq!(server.say(LOAD, body).await.0, StatusCode::OK);
}

#[tokio::test]
async fn only_paths_below_the_folder_are_loaded() {
    let server = Server::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("x.safetensors");
    fs::write(&target, ticket_file(7)).unwrap();
    let target = target.to_str().unwrap();
    std::os::unix::fs::symlink(target, server.file("link.safetensors")).unwrap();
    fs::create_dir_all(server.file("tenants/acme")).unwrap();
    fs::write(server.file("tenants/acme/own.safetensors"), ticket_file(7)).unwrap();
    let climb = server.file(&format!("../..{target}"));
    let refused = (400, "lora_path".to_owned(), "invalid_value".to_owned());
    for path in [
        target,
        "/etc/passwd",
        "/etc/no-such-file",
        "https://example.org/x.safetensors",
        "file:///etc/passwd",
        "",
        &climb,
        &server.file("link.safetensors"),
        &server.file("tenants/acme/own.safetensors"),
        &server.file("no-such.safetensors"),
        &server.file(""),
    ] {
        assert_eq!(server.load_refused("new", path).await, refused, "{path}");
    }
    // What is there, but is no ticket, says why.
    fs::write(server.file("bad.safetensors"), "no ticket").unwrap();
    let bad = server
        .load_refused("bad", &server.file("bad.safetensors"))
        .await;
    assert_eq!(bad, (422, "file".to_owned(), "invalid_ticket".to_owned()));
    let name = server
        .load_refused("../up", &server.file("bad.safetensors"))
        .await;
    assert_eq!(name.0, 400);
}

#[tokio::test]
async fn a_ticket_is_deleted_as_a_model_and_the_base_never() {
    let server = Server::new();
    let delete = async |path: &str| {
        let request = Request::delete(path).body(Body::empty()).unwrap();
        let (status, _, body) = server.send(request).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (status, answer) = delete("/v1/models/sql").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer,
        json!({"id": "sql", "object": "model", "deleted": true})
    );
    assert!(!fs::exists(server.file("sql.safetensors")).unwrap());
    let (status, answer) = delete("/v1/models/sql").await;
    assert_eq!(
        refusal(status, &answer),
        (404, "model".to_owned(), "model_not_found".to_owned())
    );
    let (status, answer) = delete("/v1/models/tiny").await;
    assert_eq!(
        refusal(status, &answer),
        (400, "model".to_owned(), "invalid_value".to_owned())
    );
    assert_eq!(server.get("/v1/models/tiny").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_long_name_is_not_repeated_in_full() {
    let server = Server::new();
    let body = json!({"lora_name": "n".repeat(3000)});
    let (status, text) = server.say(UNLOAD, body).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.len() < 500, "{text}");
}
