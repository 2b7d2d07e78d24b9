//! What `POST /v1/completions` says of its prompts: echo, log-probabilities, token ids; and batches
//! of more prompts than the queue holds.

use serde_json::{Value, json};

use crate::support::echo::{CAPACITY, CONTEXT, Server};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn echo_puts_the_prompt_before_the_completion() {
    let server = Server::new();
    let body = json!({"prompt": ["hä", "b"], "echo": true, "n": 2, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    let texts: Vec<_> = (0..4).map(|i| &answer["choices"][i]["text"]).collect();
    assert_eq!(texts, ["häh", "häh", "bb", "bb"]);
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    // Token ids are shown as their text.
    let body = json!({"prompt": [104, 105], "echo": true, "max_tokens": 1});
    assert_eq!(server.ok(PATH, body).await["choices"][0]["text"], "hih");
}

#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt_from_its_second_token_on() {
    let server = Server::new();
    let body = json!({"prompt": "abc", "echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    let expected = json!({
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [null, -1.0, -1.0, -0.5],
        "tokens": ["a", "b", "c", "a"],
        "top_logprobs": [
            null, {"a": -0.25, "b": -1.0}, {"a": -0.25, "c": -1.0}, {"a": -0.5},
        ],
    });
    assert_eq!(answer["choices"][0]["logprobs"], expected);
    let request = server.last_request();
    assert_eq!(
        (request.scored, request.scored_top),
        (std::iter::once(1..3).collect(), 1)
    );
    // Also in a stream, before the first generated token.
    let body = json!({
        "prompt": "abc", "echo": true, "logprobs": 1, "max_tokens": 1, "stream": true,
    });
    let chunks = server.stream(PATH, body).await;
    let first = &chunks[0]["choices"][0];
    assert_eq!(
        (&first["text"], &first["logprobs"]),
        (&json!("abca"), &expected)
    );
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn no_token_is_generated_if_none_is_asked_for() {
    let server = Server::new();
    let body = json!({"prompt": "abc", "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.ok(PATH, body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("abc"), &json!("length"))
    );
    assert_eq!(
        choice["logprobs"]["token_logprobs"],
        json!([null, -1.0, -1.0])
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(server.state.metrics.server.generation_tokens.get(), 0);
    // Such a prompt may fill the context, and no more.
    let whole = |extra| json!({"prompt": "a".repeat(CONTEXT + extra), "max_tokens": 0});
    assert_eq!(server.ok(PATH, whole(0)).await["choices"][0]["text"], "");
    let (status, param, code) = server.refused(PATH, whole(1)).await;
    assert_eq!(
        (status, param, code),
        (
            400,
            "prompt".to_owned(),
            "context_length_exceeded".to_owned()
        )
    );
}

#[tokio::test]
async fn prompt_logprobs_are_vllms() {
    let server = Server::new();
    let body = json!({"prompt": "ab", "prompt_logprobs": 1, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    let expected = json!([null, {
        "97": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
        "98": {"logprob": -1.0, "rank": 2, "decoded_token": "b"},
    }]);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    // One token has no score, and `false` asks for none.
    let body = json!({"prompt": "a", "prompt_logprobs": 0, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    assert_eq!(answer["choices"][0]["prompt_logprobs"], json!([null]));
    let body = json!({"prompt": "a", "prompt_logprobs": false, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    assert!(answer["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn token_ids_are_returned_on_request() {
    let server = Server::new();
    let body = json!({"prompt": "ab", "return_token_ids": true, "max_tokens": 2});
    let choice = &server.ok(PATH, body.clone()).await["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
    assert_eq!(choice["token_ids"], json!([97, 98]));
    let mut streamed = body;
    streamed["stream"] = true.into();
    let chunks = server.stream(PATH, streamed).await;
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([97, 98]));
    assert!(chunks[1]["choices"][0].get("prompt_token_ids").is_none());
    let ids: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array())
        .flatten()
        .collect();
    assert_eq!(ids, [97, 98]);
    let body = json!({
        "prompt": "a", "logprobs": 1, "return_tokens_as_token_ids": true, "max_tokens": 1,
    });
    let logprobs = &server.ok(PATH, body).await["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:97"]));
    assert_eq!(logprobs["top_logprobs"], json!([{"token_id:97": -0.5}]));
}

#[tokio::test]
async fn the_best_choices_are_returned() {
    let server = Server::new();
    let body = json!({"prompt": ["a", "b"], "best_of": 3, "n": 2, "max_tokens": 1});
    let answer = server.ok(PATH, body).await;
    let choices = answer["choices"].as_array().unwrap();
    let told = |choice: &Value| {
        (
            choice["index"].as_u64(),
            choice["text"].as_str().map(str::to_owned),
        )
    };
    let told: Vec<_> = choices.iter().map(told).collect();
    let expected = [(0, "a"), (1, "a"), (2, "b"), (3, "b")];
    assert_eq!(
        told,
        expected.map(|(i, text)| (Some(i), Some(text.to_owned())))
    );
    assert_eq!(choices[0]["logprobs"], Value::Null);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    for body in [
        json!({"prompt": "a", "best_of": 1, "n": 2}),
        json!({"prompt": "a", "best_of": 2, "stream": true}),
    ] {
        assert_eq!(server.refused(PATH, body).await.1, "best_of");
    }
}

#[tokio::test]
async fn a_batch_of_any_size_is_answered_in_order() {
    let server = Server::new();
    let prompts: Vec<String> = (0..10 * CAPACITY).map(|i| format!("p{i}.")).collect();
    let body = json!({"prompt": &prompts, "n": 2});
    let answer = server.ok(PATH, body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2 * prompts.len());
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(
            (&choice["index"], &choice["text"]),
            (&json!(i), &json!(prompts[i / 2]))
        );
    }
    // Never more at once than half of a share of the queue, so that others get in.
    let body =
        json!({"prompt": &prompts, "stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.stream(PATH, body).await;
    let usage = &chunks.last().unwrap()["usage"];
    let tokens: usize = prompts.iter().map(String::len).sum();
    assert_eq!(usage["prompt_tokens"], tokens);
    assert_eq!(usage["completion_tokens"], tokens + prompts.len());
}

#[tokio::test]
async fn insertion_needs_a_base_that_was_made_for_it() {
    let server = Server::new();
    let body = json!({"prompt": "a", "suffix": "c"});
    let (status, answer) = server.post(PATH, body).await;
    assert_eq!(status, 400);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("no fill-in-the-middle tokens"),
        "{message}"
    );
    let body = json!({"prompt": [97], "suffix": "c"});
    assert_eq!(server.refused(PATH, body).await.1, "suffix");
}

#[tokio::test]
async fn unknown_fields_are_told() {
    let server = Server::new();
    let body = json!({"prompt": "a", "max_tokenz": 3, "tempreature": 1, "user": "me"});
    let request = crate::support::echo::json_request(PATH, body.to_string());
    let (status, headers, _) = server.send(request).await;
    assert_eq!(status, 200);
    assert_eq!(headers["x-ignored-fields"], "max_tokenz, tempreature");
    assert_eq!(server.state.metrics.server.ignored_fields.get(), 2);
    let request = crate::support::echo::json_request(PATH, json!({"prompt": "a"}).to_string());
    let (_, headers, _) = server.send(request).await;
    assert!(!headers.contains_key("x-ignored-fields"));
}
