//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::bases::default_text;
use crate::support::echo::{CONTEXT, Server, json_request};
use crate::support::tokenizer::END;

const TOKENIZE: &str = "/tokenize";
const DETOKENIZE: &str = "/detokenize";

#[tokio::test]
async fn a_prompt_is_tokenised_as_vllm_answers() {
    let server = Server::new();
    let answer = server.ok(TOKENIZE, json!({"prompt": "aä"})).await;
    let expected = json!({
        "count": 3, "max_model_len": CONTEXT, "tokens": [97, 195, 164], "token_strs": null,
    });
    assert_eq!(answer, expected);
    let body = json!({
        "model": "sql", "prompt": "a b<|end|>", "add_special_tokens": false,
        "return_token_strs": true,
    });
    let answer = server.ok(TOKENIZE, body).await;
    assert_eq!(answer["tokens"], json!([97, 32, 98, END]));
    assert_eq!(answer["token_strs"], json!(["a", "Ġ", "b", "<|end|>"]));
    let nothing = server.ok(TOKENIZE, json!({"prompt": ""})).await;
    assert_eq!(
        (&nothing["count"], &nothing["tokens"]),
        (&json!(0), &json!([]))
    );
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_counted() {
    let server = Server::new();
    let prompt = "a".repeat(3 * CONTEXT);
    let answer = server.ok(TOKENIZE, json!({"prompt": prompt})).await;
    assert_eq!(answer["count"], 3 * CONTEXT);
}

#[tokio::test]
async fn messages_are_tokenised_as_the_chat_renders_them() {
    let server = Server::new();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let answer = server.ok(TOKENIZE, json!({"messages": messages})).await;
    let text = server
        .ok(DETOKENIZE, json!({"tokens": answer["tokens"]}))
        .await;
    assert_eq!(text, json!({"prompt": "<user>hi"}));
    let chat = server
        .ok("/v1/chat/completions", json!({"messages": messages}))
        .await;
    assert_eq!(chat["usage"]["prompt_tokens"], answer["count"]);
}

#[tokio::test]
async fn token_ids_become_text_with_their_special_tokens() {
    let server = Server::new();
    for (tokens, text) in [
        (json!([104, 195, 164, END]), "hä<|end|>"),
        // Half a character.
        (json!([104, 195]), "h\u{fffd}"),
        (json!([]), ""),
    ] {
        let answer = server.ok(DETOKENIZE, json!({"tokens": tokens})).await;
        assert_eq!(answer, json!({"prompt": text}));
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_by_field() {
    let server = Server::new();
    let message = json!([{"role": "user", "content": "hi"}]);
    for (path, body, param) in [
        (TOKENIZE, json!({}), "prompt"),
        (TOKENIZE, json!({"prompt": ["a"]}), "prompt"),
        (TOKENIZE, json!({"messages": []}), "messages"),
        (
            TOKENIZE,
            json!({"prompt": "a", "messages": message}),
            "messages",
        ),
        (
            TOKENIZE,
            json!({"prompt": "a", "return_token_strs": 1}),
            "return_token_strs",
        ),
        (
            TOKENIZE,
            json!({"messages": message, "add_special_tokens": true}),
            "add_special_tokens",
        ),
        (
            TOKENIZE,
            json!({"prompt": "a", "chat_template": "{{ x }}"}),
            "chat_template",
        ),
        (TOKENIZE, json!({"prompt": "a", "model": "nope"}), "model"),
        (DETOKENIZE, json!({}), "tokens"),
        (DETOKENIZE, json!({"tokens": "a"}), "tokens"),
        (DETOKENIZE, json!({"tokens": [-1]}), "tokens"),
        (DETOKENIZE, json!({"tokens": [97, END + 1]}), "tokens[1]"),
        (
            DETOKENIZE,
            json!({"tokens": [97], "model": "nope"}),
            "model",
        ),
    ] {
        let (status, found, _) = server.refused(path, body.clone()).await;
        let expected = if param == "model" { 404 } else { 400 };
        assert_eq!((status, found.as_str()), (expected, param), "{body}");
    }
    let (_, answer) = server.post(DETOKENIZE, json!({"tokens": [300]})).await;
    assert_eq!(
        answer["error"]["message"],
        "`tokens[0]` is 300; the vocabulary has 257 tokens"
    );
}

#[tokio::test]
async fn unknown_fields_are_told() {
    let server = Server::new();
    for (path, body) in [
        (
            TOKENIZE,
            json!({"prompt": "a", "add_special_tokenz": false}),
        ),
        (
            DETOKENIZE,
            json!({"tokens": [97], "add_special_tokenz": false}),
        ),
    ] {
        let (status, headers, _) = server.send(json_request(path, body.to_string())).await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-ignored-fields"], "add_special_tokenz");
    }
}

#[tokio::test]
async fn the_tokenizer_tells_what_it_is() {
    let server = Server::new();
    let (status, facts) = server.get("/tokenizer_info").await;
    assert_eq!(status, 200);
    let expected = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "eos_token": "<|end|>",
        "eos_token_ids": [END],
        "special_tokens": [{"id": END, "text": "<|end|>"}],
        "vocab_size": END + 1,
        "max_model_len": CONTEXT,
    });
    assert_eq!(facts, expected);
}

#[tokio::test]
async fn the_default_base_tokenises_as_transformers_does() {
    let (server, _inbox) = Server::with_text(Arc::new(default_text()));
    let golden: Value = serde_json::from_str(include_str!("../../golden/base.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let ids = &case["prompt_ids"];
        // A longer conversation is refused, a longer text is not.
        if !case["messages"].is_null() && ids.as_array().unwrap().len() < CONTEXT {
            let body = json!({"messages": case["messages"]});
            assert_eq!(server.ok(TOKENIZE, body).await["tokens"], *ids);
        }
        let body = json!({"prompt": case["rendered"], "return_token_strs": true});
        let answer = server.ok(TOKENIZE, body).await;
        assert_eq!(answer["tokens"], *ids);
        assert_eq!(
            answer["token_strs"].as_array().unwrap().len(),
            answer["count"]
        );
        let text = server.ok(DETOKENIZE, json!({"tokens": ids})).await;
        assert_eq!(text["prompt"], case["rendered"]);
    }
    let (_, facts) = server.get("/tokenizer_info").await;
    assert_eq!(facts["tokenizer_class"], "GPT2TokenizerFast");
    assert_eq!(
        (&facts["vocab_size"], &facts["eos_token"]),
        (&json!(49152), &json!("<|im_end|>"))
    );
}
