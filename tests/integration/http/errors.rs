//! Refusals and failures, in OpenAI's error shape.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::echo::{BREAKING, CAPACITY, DEADLY, SILENT, Server, json_request, refusal};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn invalid(param: &str) -> (u16, String, String) {
    (400, param.to_owned(), "invalid_value".to_owned())
}

fn unsupported(param: &str) -> (u16, String, String) {
    (400, param.to_owned(), "unsupported_parameter".to_owned())
}

#[tokio::test]
async fn values_out_of_range_are_refused_by_name() {
    let server = Server::new();
    for (param, value) in [
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e300)),
        ("top_p", json!(-0.1)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("best_of", json!(0)),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([257])),
        ("bad_words[1]", json!(["a", " "])),
        ("truncate_prompt_tokens", json!(0)),
        ("prompt_logprobs", json!(6)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("min_tokens", json!(17)),
        ("seed", json!("x")),
        ("stop", json!("")),
        ("stop", json!(["a", 1])),
        ("stop", json!(vec!["a"; 65])),
        ("stop_token_ids", json!([257])),
        ("logit_bias", json!({"257": 1})),
        ("logit_bias", json!({"a": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logprobs", json!(6)),
        ("logprobs", json!(true)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("user", json!(7)),
        ("model", json!(7)),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!(["a", ""])),
        ("prompt", json!(["a", [1]])),
        ("prompt", json!([1, "a"])),
        ("prompt", json!([-1])),
        ("prompt", json!([257])),
        ("prompt", json!({"a": 1})),
        ("prompt", json!(null)),
    ] {
        let mut body = json!({"prompt": "a"});
        let field = param.split('[').next().unwrap();
        body[field] = value.clone();
        assert_eq!(
            server.refused(COMPLETIONS, body).await,
            invalid(param),
            "{param}: {value}"
        );
    }
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unsupported_parameters_are_refused_not_ignored() {
    let server = Server::new();
    for (param, value) in [
        ("typical_p", json!(0.9)),
        ("lora_request", json!({"lora_name": "sql"})),
        ("mirostat", json!(2)),
        ("logits_processors", json!(["mine"])),
        ("functions", json!([{}])),
        ("function_call", json!({"name": "f"})),
        ("chat_template", json!("{{ messages }}")),
        ("use_beam_search", json!(true)),
    ] {
        let mut body = json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]});
        body[param] = value;
        for path in [COMPLETIONS, CHAT] {
            assert_eq!(server.refused(path, body.clone()).await, unsupported(param));
        }
    }
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    let body = json!({"messages": [{"role": "user", "content": image}]});
    assert_eq!(
        server.refused(CHAT, body).await,
        unsupported("messages[0].content[0].type")
    );
}

#[tokio::test]
async fn malformed_tools_and_grammars_are_refused_by_path() {
    let server = Server::new();
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let mut with = json!({"messages": [{"role": "user", "content": "a"}]});
    for (extra, param) in [
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"guided_json": {"properties": {"a": {"uniqueItems": true}}}}),
            "guided_json/properties/a/uniqueItems",
        ),
        (json!({"guided_regex": "("}), "guided_regex"),
        (
            json!({"tools": [&tool], "guided_regex": "a"}),
            "guided_regex",
        ),
        (
            json!({"chat_template_kwargs": {"messages": []}}),
            "chat_template_kwargs",
        ),
        (json!({"reasoning_effort": "heavy"}), "reasoning_effort"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ] {
        for (key, value) in extra.as_object().unwrap() {
            with[key] = value.clone();
        }
        assert_eq!(
            server.refused(CHAT, with.clone()).await,
            invalid(param),
            "{extra}"
        );
        for key in extra.as_object().unwrap().keys() {
            with.as_object_mut().unwrap().remove(key);
        }
    }
}

#[tokio::test]
async fn malformed_conversations_are_refused_by_path() {
    let server = Server::new();
    for (messages, param) in [
        (json!(null), "messages"),
        (json!([]), "messages"),
        (json!("hi"), "messages"),
        (json!(["hi"]), "messages"),
        (json!([{"content": "hi"}]), "messages[0].role"),
        (json!([{"role": 1, "content": "hi"}]), "messages[0].role"),
        (
            json!([{"role": "user", "content": 1}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            "messages[0].content[0].text",
        ),
    ] {
        let body = json!({"messages": messages});
        assert_eq!(
            server.refused(CHAT, body).await,
            invalid(param),
            "{messages}"
        );
    }
    let user = json!([{"role": "user", "content": "a"}]);
    let body = json!({"messages": user, "top_logprobs": 2});
    assert_eq!(server.refused(CHAT, body).await, invalid("top_logprobs"));
}

#[tokio::test]
async fn requests_beyond_the_context_are_refused() {
    let server = Server::new();
    let exceeded = |param: &str| (400, param.to_owned(), "context_length_exceeded".to_owned());
    for body in [
        json!({"prompt": "a".repeat(64)}),
        json!({"prompt": "a".repeat(100)}),
        json!({"prompt": "a".repeat(60), "max_tokens": 5}),
        json!({"prompt": ["a", "a".repeat(64)]}),
    ] {
        assert_eq!(server.refused(COMPLETIONS, body).await, exceeded("prompt"));
    }
    let messages = json!([{"role": "user", "content": "a".repeat(58)}]);
    let answer = server.refused(CHAT, json!({"messages": messages})).await;
    assert_eq!(answer, exceeded("messages"));
    server
        .ok(
            COMPLETIONS,
            json!({"prompt": "a".repeat(60), "max_tokens": 4}),
        )
        .await;
}

#[tokio::test]
async fn unknown_names_are_404_and_wrong_methods_405_in_json() {
    let server = Server::new();
    let not_found = |code: &str, param: &str| (404, param.to_owned(), code.to_owned());
    let unknown_model = not_found("model_not_found", "model");
    for path in [COMPLETIONS, CHAT] {
        let body = json!({
            "model": "nope", "prompt": "a", "messages": [{"role": "user", "content": "a"}],
        });
        assert_eq!(server.refused(path, body).await, unknown_model);
    }
    let get = async |path: &str| {
        let (status, answer) = server.get(path).await;
        refusal(status, &answer)
    };
    assert_eq!(get("/v1/models/nope").await, unknown_model);
    assert_eq!(
        get("/v1/tickets/nope").await,
        not_found("ticket_not_found", "name")
    );
    assert_eq!(get("/v2/nothing").await, not_found("unknown_url", ""));
    assert_eq!(get("/").await, not_found("unknown_url", ""));
    for (method, path) in [(Method::GET, COMPLETIONS), (Method::PUT, "/v1/tickets")] {
        let request = Request::builder().method(method).uri(path);
        let (status, headers, body) = server.send(request.body(Body::empty()).unwrap()).await;
        let refusal = refusal(status, &serde_json::from_str(&body).unwrap());
        assert_eq!(
            refusal,
            (405, String::new(), "method_not_allowed".to_owned())
        );
        assert!(headers["allow"].to_str().unwrap().contains("POST"));
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_objects_are_400() {
    let server = Server::new();
    for body in ["", "{", "[]", "\"a\"", "{\"prompt\": }", "\u{0}"] {
        let request = json_request(COMPLETIONS, body);
        let (status, _, answer) = server.send(request).await;
        let refusal = refusal(status, &serde_json::from_str(&answer).unwrap());
        assert_eq!(
            refusal,
            (400, String::new(), "invalid_body".to_owned()),
            "{body}"
        );
    }
    let too_large = server
        .refused(COMPLETIONS, json!({"prompt": "a".repeat(5000)}))
        .await;
    assert_eq!(
        too_large,
        (413, String::new(), "request_too_large".to_owned())
    );
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after_and_empties_again() {
    let server = Server::new();
    let body = json!({"prompt": SILENT, "n": CAPACITY - 1});
    let state = server.state.clone();
    let waiting = tokio::spawn(async move {
        let server = tombola::server::router(state);
        let request = json_request(COMPLETIONS, body.to_string());
        tower::ServiceExt::oneshot(server, request).await
    });
    while server.seen.requests.lock().unwrap().len() < CAPACITY - 1 {
        tokio::task::yield_now().await;
    }
    let two = json!({"prompt": "a", "n": 2}).to_string();
    let request = json_request(COMPLETIONS, two);
    let (status, headers, answer) = server.send(request).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(refusal(status, &answer).2, "queue_full");
    // One place is free. The base's requests hold their share; a ticket's get in.
    let refused = server.refused(COMPLETIONS, json!({"prompt": "a"})).await;
    assert_eq!((refused.0, &*refused.2), (429, "queue_full"));
    let newcomer = json!({"prompt": "a", "model": "sql"});
    server.ok(COMPLETIONS, newcomer).await;
    let full = "tombola_requests_refused_total{reason=\"queue_full\"}";
    let share = "tombola_requests_refused_total{reason=\"share_full\"}";
    assert_eq!(
        (server.metric(full).await, server.metric(share).await),
        (1.0, 1.0)
    );
    // All places are free once the others have ended.
    waiting.abort();
    server.wait_for_cancelled(CAPACITY - 1).await;
    server.ok(COMPLETIONS, json!({"prompt": "a", "n": 2})).await;
    let aborted = "tombola_request_success_total{finished_reason=\"abort\"}";
    assert_eq!(server.metric(aborted).await, (CAPACITY - 1) as f64);
}

#[tokio::test]
async fn a_ticket_that_breaks_the_model_has_its_own_error_and_so_has_a_broken_base() {
    let server = Server::new();
    let prompt = format!("ab{BREAKING}");
    let broken = (422, String::new(), "broken_ticket".to_owned());
    let refused = server.refused(COMPLETIONS, json!({"prompt": prompt, "model": "sql"}));
    assert_eq!(refused.await, broken);
    let broken = (500, String::new(), "broken_base".to_owned());
    let refused = server.refused(COMPLETIONS, json!({"prompt": prompt}));
    assert_eq!(refused.await, broken);
    let body = json!({"prompt": prompt, "stream": true, "model": "sql"});
    let chunks = server.stream(COMPLETIONS, body).await;
    assert_eq!(chunks.last().unwrap()["error"]["code"], "broken_ticket");
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_engine_that_dies_is_an_error_not_an_end() {
    let server = Server::new();
    let prompt = format!("ab{DEADLY}");
    let stopped = (503, String::new(), "engine_stopped".to_owned());
    assert_eq!(
        server.refused(COMPLETIONS, json!({"prompt": prompt})).await,
        stopped
    );
    let chunks = server
        .stream(COMPLETIONS, json!({"prompt": prompt, "stream": true}))
        .await;
    assert_eq!(chunks.last().unwrap()["error"]["code"], "engine_stopped");
    server.engine.shutdown();
    while !server.engine.is_stopped() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        server.refused(COMPLETIONS, json!({"prompt": "a"})).await,
        stopped
    );
    assert_eq!(
        server.get("/health").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(
        server.get("/v1/base?verify=true").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn internal_errors_are_not_shown() {
    let server = Server::new();
    std::fs::write(server.tickets.path().join("sql.safetensors"), "changed").unwrap();
    let (status, answer) = server
        .post(COMPLETIONS, json!({"model": "sql", "prompt": "a"}))
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!answer.to_string().contains("safetensors"), "{answer}");
    // The base is still served.
    server.ok(COMPLETIONS, json!({"prompt": "a"})).await;
}
