//! `POST /v1/embeddings`, over an engine whose vectors are the prompt's length, its last token, 0,
//! and whether the mean was asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::echo::{BREAKING, CAPACITY, CONTEXT, HIDDEN, SILENT, Server, json_request};
use crate::support::tokenizer::END;

const PATH: &str = "/v1/embeddings";

/// A request for vectors as the engine gives them.
fn plain(more: Value) -> Value {
    let mut body = json!({"normalize": false});
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

/// The vectors of an answer, in its order.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let vector = |entry: &Value| serde_json::from_value(entry["embedding"].clone()).unwrap();
    data.iter().map(vector).collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::new();
    let answer = server
        .ok(PATH, plain(json!({"model": "tiny", "input": "ab"})))
        .await;
    let expected = json!({
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [2.0, 98.0, 0.0, 0.0]}],
        "model": "tiny",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn an_input_is_one_or_several_prompts_of_text_or_tokens() {
    let server = Server::new();
    let (ab, c) = (vec![2.0, 98.0, 0.0, 0.0], vec![1.0, 99.0, 0.0, 0.0]);
    for (input, expected) in [
        (json!("ab"), vec![&ab]),
        (json!([97, 98]), vec![&ab]),
        (json!(["ab", "c"]), vec![&ab, &c]),
        (json!([[99], [97, 98]]), vec![&c, &ab]),
    ] {
        let answer = server.ok(PATH, plain(json!({"input": input}))).await;
        assert_eq!(vectors(&answer).iter().collect::<Vec<_>>(), expected);
        let indices = answer["data"].as_array().unwrap().iter();
        let indices: Vec<_> = indices.map(|entry| entry["index"].clone()).collect();
        assert_eq!(indices, (0..expected.len()).collect::<Vec<_>>());
        let tokens: f32 = expected.iter().map(|vector| vector[0]).sum();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens as usize);
    }
}

#[tokio::test]
async fn a_vector_is_pooled_cut_scaled_and_written_as_requested() {
    let server = Server::new();
    let ask = async |more: Value| server.ok(PATH, more).await;
    let mean = ask(plain(json!({"input": "ab", "pooling": "mean"}))).await;
    assert_eq!(vectors(&mean), [[2.0, 98.0, 0.0, 1.0]]);
    // Length 1 by default, after the cut.
    let length = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (more, size) in [(json!({}), HIDDEN), (json!({"dimensions": 2}), 2)] {
        let mut body = json!({"input": "ab"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let vector = vectors(&ask(body).await).remove(0);
        assert_eq!(vector.len(), size);
        assert!((length(&vector) - 1.0).abs() < 1e-6, "{vector:?}");
    }
    let cut = ask(plain(json!({"input": "ab", "dimensions": 1}))).await;
    assert_eq!(vectors(&cut), [[2.0]]);
    let bytes = ask(plain(json!({"input": "ab", "encoding_format": "base64"}))).await;
    let bytes = STANDARD
        .decode(bytes["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    let numbers: Vec<f32> = numbers.iter().copied().map(f32::from_le_bytes).collect();
    assert_eq!(numbers, [2.0, 98.0, 0.0, 0.0]);
}

#[tokio::test]
async fn a_batch_may_be_larger_than_the_queue() {
    let server = Server::new();
    let prompts: Vec<_> = (1..=3 * CAPACITY).map(|len| "a".repeat(len)).collect();
    let answer = server.ok(PATH, plain(json!({"input": prompts}))).await;
    let lengths = vectors(&answer)
        .into_iter()
        .map(|vector| vector[0] as usize);
    assert_eq!(
        lengths.collect::<Vec<_>>(),
        (1..=3 * CAPACITY).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_model_may_be_a_ticket() {
    let server = Server::new();
    let answer = server.ok(PATH, json!({"model": "sql", "input": "a"})).await;
    assert_eq!(answer["model"], "sql");
    let (alias, _) = server.last_request().ticket.unwrap();
    assert_eq!(alias, "sql");
}

#[tokio::test]
async fn a_prompt_fills_the_context_or_is_cut_to_its_end() {
    let server = Server::new();
    let long = "a".repeat(CONTEXT) + "b";
    let whole = json!({"input": &long[1..]});
    assert_eq!(
        server.ok(PATH, whole).await["usage"]["total_tokens"],
        CONTEXT
    );
    let refused = server.refused(PATH, json!({"input": long})).await;
    let expected = (
        400,
        "input".to_owned(),
        "context_length_exceeded".to_owned(),
    );
    assert_eq!(refused, expected);
    for (tokens, kept) in [(-1, CONTEXT), (3, 3)] {
        let body = plain(json!({"input": long, "truncate_prompt_tokens": tokens}));
        let vector = vectors(&server.ok(PATH, body).await).remove(0);
        assert_eq!(vector[..2], [kept as f32, 98.0]);
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_by_field() {
    let server = Server::new();
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["a", ""]}), "input"),
        (json!({"input": ["a", [97]]}), "input"),
        (json!({"input": [END + 1]}), "input"),
        (
            json!({"input": "a", "encoding_format": "hex"}),
            "encoding_format",
        ),
        (json!({"input": "a", "pooling": "max"}), "pooling"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (
            json!({"input": "a", "dimensions": HIDDEN + 1}),
            "dimensions",
        ),
        (
            json!({"input": "a", "truncate_prompt_tokens": 0}),
            "truncate_prompt_tokens",
        ),
        (json!({"input": "a", "user": 5}), "user"),
        (json!({"input": "a", "cache_salt": ""}), "cache_salt"),
        (json!({"input": "a", "model": "nope"}), "model"),
    ] {
        let (status, found, _) = server.refused(PATH, body.clone()).await;
        let expected = if param == "model" { 404 } else { 400 };
        assert_eq!((status, found.as_str()), (expected, param), "{body}");
    }
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_ticket_that_breaks_the_model_is_told_from_a_broken_base() {
    let server = Server::new();
    for (model, status, code) in [("sql", 422, "broken_ticket"), ("tiny", 500, "broken_base")] {
        let input = format!("a{BREAKING}");
        let refused = server
            .refused(PATH, json!({"model": model, "input": ["a", input]}))
            .await;
        assert_eq!((refused.0, refused.2.as_str()), (status, code));
    }
}

#[tokio::test]
async fn a_disconnect_cancels_what_still_runs() {
    let server = Server::new();
    let body = json!({"input": ["a", SILENT]}).to_string();
    let answer = server.send(json_request(PATH, body));
    let limit = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(limit, answer).await.is_err());
    server.wait_for_cancelled(1).await;
}

#[tokio::test]
async fn prompts_are_counted_and_unknown_fields_are_told() {
    let server = Server::new();
    let body = json!({"input": ["ab", "c"], "poolign": "mean"}).to_string();
    let (status, headers, _) = server.send(json_request(PATH, body)).await;
    assert_eq!(
        (status.as_u16(), &headers["x-ignored-fields"]),
        (200, &"poolign".parse().unwrap())
    );
    let success = "tombola_request_success_total{finished_reason=\"stop\"}";
    for (series, expected) in [
        ("tombola_prompt_tokens_total", 3.0),
        ("tombola_generation_tokens_total", 0.0),
        (success, 2.0),
    ] {
        assert_eq!(server.metric(series).await, expected, "{series}");
    }
}
