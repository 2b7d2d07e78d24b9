//! `POST /v1/chat/completions`.

use serde_json::{Value, json};

use crate::support::echo::{CACHED, CONTEXT, Server};

const PATH: &str = "/v1/chat/completions";

fn ask(content: Value, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": content}]});
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::new();
    let mut answer = server
        .ok(PATH, ask(json!("hi"), json!({"model": "sql"})))
        .await;
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"));
    let fingerprint = answer["system_fingerprint"].take();
    assert!(fingerprint.as_str().unwrap().starts_with("fp_"));
    assert!(answer["created"].take().is_u64());
    let expected = json!({
        "id": null, "object": "chat.completion", "created": null, "system_fingerprint": null,
        "model": "sql",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "<user>hi", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 8, "completion_tokens": 9, "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": CACHED},
        },
    });
    assert_eq!(answer, expected);
    // The default is the rest of the context.
    assert_eq!(server.last_request().params.max_tokens, CONTEXT - 8);
}

#[tokio::test]
async fn content_may_come_in_text_parts() {
    let server = Server::new();
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let answer = server.ok(PATH, ask(parts, json!({}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "<user>a\nb");
}

#[tokio::test]
async fn both_names_of_max_tokens_work() {
    let server = Server::new();
    for (more, expected) in [
        (json!({"max_tokens": 3}), 3),
        (json!({"max_completion_tokens": 4}), 4),
        (json!({"max_tokens": 3, "max_completion_tokens": 4}), 4),
    ] {
        let answer = server.ok(PATH, ask(json!("hi"), more)).await;
        assert_eq!(answer["usage"]["completion_tokens"], expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = Server::new();
    let body = ask(json!("hi"), json!({"stream": true, "max_tokens": 2}));
    let chunks = server.stream(PATH, body).await;
    let deltas: Vec<_> = chunks
        .iter()
        .map(|c| c["choices"][0]["delta"].clone())
        .collect();
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "<"}),
        json!({"content": "u"}),
        json!({}),
    ];
    assert_eq!(deltas, expected);
    for (i, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none());
        let reason = if i == 3 { json!("length") } else { Value::Null };
        assert_eq!(chunk["choices"][0]["finish_reason"], reason);
    }
}

#[tokio::test]
async fn each_choice_of_a_stream_has_its_role_and_usage_comes_last() {
    let server = Server::new();
    let more = json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}});
    let chunks = server.stream(PATH, ask(json!("hi"), more)).await;
    let roles = chunks
        .iter()
        .filter(|c| c["choices"][0]["delta"]["role"] == "assistant");
    assert_eq!(roles.count(), 2);
    let last = chunks.last().unwrap();
    let usage = json!({
        "prompt_tokens": 8, "completion_tokens": 18, "total_tokens": 26,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    });
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage));
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let server = Server::new();
    let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 1});
    let answer = server.ok(PATH, ask(json!("hi"), more)).await;
    let expected = json!({
        "content": [{
            "token": "<", "logprob": -0.5, "bytes": [60],
            "top_logprobs": [
                {"token": "<", "logprob": -0.5, "bytes": [60]},
                {"token": "b", "logprob": -9999.0, "bytes": [98]},
            ],
        }],
        "refusal": null,
    });
    assert_eq!(answer["choices"][0]["logprobs"], expected);
    let more = json!({"logprobs": true, "stream": true});
    let chunks = server.stream(PATH, ask(json!("hi"), more)).await;
    let tokens = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(tokens.flatten().count(), 9);
}
