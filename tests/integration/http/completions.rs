//! `POST /v1/completions`.

use serde_json::{Value, json};

use crate::support::echo::{CACHED, Server};

const PATH: &str = "/v1/completions";

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices
        .iter()
        .map(|c| c["text"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::new();
    let mut answer = server
        .ok(PATH, json!({"model": "tiny", "prompt": "hällo"}))
        .await;
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("cmpl-"));
    let fingerprint = answer["system_fingerprint"].take();
    assert!(fingerprint.as_str().unwrap().starts_with("fp_"));
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    // Six bytes, and the token that ended the text.
    let expected = json!({
        "id": null, "object": "text_completion", "created": null, "system_fingerprint": null,
        "model": "tiny",
        "choices": [{"text": "hällo", "index": 0, "logprobs": null, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": CACHED},
        },
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn a_request_has_one_or_several_prompts_of_text_or_tokens() {
    let server = Server::new();
    for (prompt, expected) in [
        (json!("ab"), vec!["ab"]),
        (json!([97, 98]), vec!["ab"]),
        (json!(["ab", "c"]), vec!["ab", "c"]),
        (json!([[97, 98], [99]]), vec!["ab", "c"]),
    ] {
        let answer = server.ok(PATH, json!({"prompt": prompt})).await;
        assert_eq!(texts(&answer), expected, "{prompt}");
        assert_eq!(answer["model"], "tiny", "the base is the default");
        let tokens = expected.concat().len();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens);
        assert_eq!(
            answer["usage"]["completion_tokens"],
            tokens + expected.len()
        );
    }
}

#[tokio::test]
async fn choices_are_ordered_by_prompt_and_their_seeds_differ() {
    let server = Server::new();
    let body = json!({"prompt": ["a", "b"], "n": 2, "seed": 7});
    let answer = server.ok(PATH, body).await;
    assert_eq!(texts(&answer), ["a", "a", "b", "b"]);
    let indices: Vec<_> = (0..4)
        .map(|i| answer["choices"][i]["index"].clone())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    // A prompt counts once, however many completions it has.
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    let requests = server.seen.requests.lock().unwrap();
    let seeds: Vec<_> = requests.iter().map(|r| r.params.seed.unwrap()).collect();
    assert_eq!(seeds, [7, 8, 7, 8]);
}

#[tokio::test]
async fn every_parameter_reaches_the_engine() {
    let server = Server::new();
    let body = json!({
        "prompt": "abc", "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9,
        "top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -1.0,
        "frequency_penalty": 2.0, "seed": -1, "stop_token_ids": [98], "ignore_eos": true,
        "logprobs": 3, "logit_bias": {"65": -100, "66": 1.5}, "user": "me", "metadata": {"a": 1},
        "allowed_token_ids": [99, 97, 99], "bad_words": ["no"],
    });
    server.ok(PATH, body).await;
    let params = server.last_request().params;
    assert_eq!((params.max_tokens, params.min_tokens), (9, 2));
    assert_eq!(
        (params.temperature, params.top_p, params.min_p),
        (0.5, 0.9, 0.25)
    );
    assert_eq!((params.top_k, params.repetition_penalty), (Some(5), 1.5));
    assert_eq!(
        (params.presence_penalty, params.frequency_penalty),
        (-1.0, 2.0)
    );
    assert_eq!((params.seed, params.ignore_eos), (Some(u64::MAX), true));
    assert_eq!(
        (&*params.stop_token_ids, params.logprobs),
        (&[98][..], Some(3))
    );
    assert_eq!(*params.logit_bias, [(65, -100.0), (66, 1.5)]);
    assert_eq!(params.allowed_token_ids.as_deref(), Some(&[97, 99][..]));
    // At the start of a text; the tiny tokenizer has no word with a space.
    assert_eq!(*params.bad_words, [vec![110, 111]]);
}

#[tokio::test]
async fn defaults_and_nulls_are_openais() {
    let server = Server::new();
    let body = json!({
        "prompt": "a", "max_tokens": null, "stop": null, "suffix": null, "logprobs": null,
        "top_k": -1, "best_of": 1, "echo": false, "stream": null, "stream_options": null,
    });
    server.ok(PATH, body).await;
    assert_eq!(server.last_request().params, Default::default());
    // The default is cut to the rest of the context; an explicit number is not.
    server.ok(PATH, json!({"prompt": "a".repeat(60)})).await;
    assert_eq!(server.last_request().params.max_tokens, 4);
}

#[tokio::test]
async fn max_tokens_and_stop_tokens_end_a_text() {
    let server = Server::new();
    let ends = async |body: Value| {
        let answer = server.ok(PATH, body).await;
        let choice = &answer["choices"][0];
        let usage = answer["usage"]["completion_tokens"].clone();
        (
            choice["text"].clone(),
            choice["finish_reason"].clone(),
            usage,
        )
    };
    let length = ends(json!({"prompt": "abcd", "max_tokens": 2})).await;
    assert_eq!(length, (json!("ab"), json!("length"), json!(2)));
    // Cut inside a character, whose bytes so far become a replacement character.
    let cut = ends(json!({"prompt": "aä", "max_tokens": 2})).await;
    assert_eq!(cut, (json!("a\u{fffd}"), json!("length"), json!(2)));
    let hidden = ends(json!({"prompt": "abcd", "stop_token_ids": [99]})).await;
    assert_eq!(hidden, (json!("ab"), json!("stop"), json!(3)));
    let body = json!({
        "prompt": "abcd", "stop_token_ids": [99], "include_stop_str_in_output": true,
    });
    assert_eq!(ends(body).await, (json!("abc"), json!("stop"), json!(3)));
}

#[tokio::test]
async fn a_stop_string_ends_a_text_and_surplus_tokens_are_not_counted() {
    let server = Server::new();
    let prompt = "one two~";
    for (stop, include, expected) in [
        (json!("xx"), false, ""),
        (json!(["never", "xxx"]), true, "xxx"),
    ] {
        let body = json!({
            "prompt": prompt, "stop": stop, "include_stop_str_in_output": include,
        });
        let answer = server.ok(PATH, body).await;
        assert_eq!(texts(&answer), [expected]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let tokens = if include { 3 } else { 2 };
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
    }
    // The endless sequences were cancelled, though the server answered with success.
    server.wait_for_cancelled(2).await;
    assert_eq!(
        server
            .metric("tombola_request_success_total{finished_reason=\"stop\"}")
            .await,
        2.0
    );
    assert_eq!(
        server
            .metric("tombola_request_success_total{finished_reason=\"abort\"}")
            .await,
        0.0
    );
    assert_eq!(server.metric("tombola_generation_tokens_total").await, 5.0);
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let server = Server::new();
    let answer = server
        .ok(PATH, json!({"prompt": "aä", "logprobs": 2}))
        .await;
    let expected = json!({
        // Both halves of the `ä` begin where it does.
        "text_offset": [0, 1, 1, 2],
        "token_logprobs": [-0.5, -0.5, -0.5, -0.5],
        "tokens": ["a", "\u{fffd}", "\u{fffd}", "<|end|>"],
        "top_logprobs": [
            {"a": -0.5, "b": -9999.0}, {"\u{fffd}": -0.5, "b": -9999.0},
            {"\u{fffd}": -0.5, "b": -9999.0}, {"<|end|>": -0.5, "b": -9999.0},
        ],
    });
    assert_eq!(answer["choices"][0]["logprobs"], expected);
    // No alternatives requested: the chosen token alone.
    let answer = server.ok(PATH, json!({"prompt": "a", "logprobs": 0})).await;
    assert_eq!(
        answer["choices"][0]["logprobs"]["top_logprobs"][0],
        json!({"a": -0.5})
    );
}

#[tokio::test]
async fn a_stream_gives_the_same_text_in_chunks() {
    let server = Server::new();
    let chunks = server
        .stream(PATH, json!({"prompt": "hä", "stream": true}))
        .await;
    let texts: Vec<_> = chunks
        .iter()
        .map(|c| c["choices"][0]["text"].as_str().unwrap())
        .collect();
    // A character is never split between chunks.
    assert_eq!(texts, ["h", "ä", ""]);
    let mut first = chunks[0].clone();
    for key in ["id", "created", "system_fingerprint"] {
        assert!(chunks.iter().all(|c| c[key] == first[key]));
        first[key].take();
    }
    let expected = json!({
        "id": null, "object": "text_completion", "created": null, "system_fingerprint": null,
        "model": "tiny",
        "choices": [{"text": "h", "index": 0, "logprobs": null, "finish_reason": null}],
    });
    assert_eq!(first, expected);
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_reports_usage_last_if_requested() {
    let server = Server::new();
    let body = json!({
        "prompt": ["ab", "c"], "n": 2, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let chunks = server.stream(PATH, body).await;
    let (last, others) = chunks.split_last().unwrap();
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13,
        // One of "ab", none of "c", whose last token is always computed.
        "prompt_tokens_details": {"cached_tokens": 1},
    });
    assert_eq!(last["usage"], usage);
    assert_eq!(last["choices"], json!([]));
    for chunk in others {
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
    }
    let mut texts = [const { String::new() }; 4];
    for chunk in others {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(texts, ["ab", "ab", "c", "c"]);
}

#[tokio::test]
async fn streamed_logprobs_cover_every_token_once() {
    let server = Server::new();
    let body = json!({"prompt": "aä", "stream": true, "logprobs": 0});
    let chunks = server.stream(PATH, body).await;
    let logprobs = chunks.iter().map(|c| &c["choices"][0]["logprobs"]);
    let offsets: Vec<_> = logprobs
        .filter_map(|l| l["text_offset"].as_array())
        .flatten()
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [0, 1, 1, 2]);
}

#[tokio::test]
async fn a_model_may_be_a_ticket() {
    let server = Server::new();
    let answer = server
        .ok(PATH, json!({"model": "sql", "prompt": "a"}))
        .await;
    assert_eq!(answer["model"], "sql");
    let (alias, digest) = server.last_request().ticket.unwrap();
    assert_eq!(alias, "sql");
    assert_eq!(
        Some(digest),
        server.state.registry.get(None, "sql").map(|t| t.digest())
    );
    server
        .ok(PATH, json!({"model": "tiny", "prompt": "a"}))
        .await;
    assert!(server.last_request().ticket.is_none());
    assert_eq!(
        server
            .metric("tombola_ticket_requests_total{ticket=\"sql\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_prompt_is_cut_to_its_last_tokens_if_asked() {
    let server = Server::new();
    let long = format!("{}abc", "x".repeat(500));
    let ids: Vec<u32> = long.bytes().map(u32::from).collect();
    for prompt in [json!(long), json!(ids), json!("abc")] {
        let body = json!({"prompt": prompt, "truncate_prompt_tokens": 3});
        let answer = server.ok("/v1/completions", body).await;
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
        // The engine of the test answers with the prompt.
        assert_eq!(answer["choices"][0]["text"], "abc");
    }
    for wrong in [0, 64] {
        let body = json!({"prompt": "abc", "truncate_prompt_tokens": wrong});
        let (status, param, _) = server.refused("/v1/completions", body).await;
        assert_eq!((status, param.as_str()), (400, "truncate_prompt_tokens"));
    }
}
