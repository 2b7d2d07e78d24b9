//! The text layer, with the default base's tokenizer and with a trained SentencePiece model.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use proptest::prelude::*;
use serde::Deserialize;
use tombola::text::{ChatMessage, StreamOptions, Text, TextStream, TokenDecoder};

use crate::support::bases::default_text;

static TEXT: LazyLock<Arc<Text>> = LazyLock::new(|| Arc::new(default_text()));

/// A case of `base.json` or `sql.json`, as written by transformers.
#[derive(Deserialize)]
struct Case {
    messages: Option<Vec<ChatMessage>>,
    rendered: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

fn cases() -> Vec<Case> {
    [
        include_str!("../golden/base.json"),
        include_str!("../golden/sql.json"),
    ]
    .into_iter()
    .flat_map(|json| {
        serde_json::from_str::<Golden>(json)
            .expect("golden cases")
            .cases
    })
    .collect()
}

#[test]
fn prompts_are_rendered_and_encoded_like_in_transformers() {
    for case in cases() {
        if let Some(messages) = &case.messages {
            assert_eq!(TEXT.render_chat(messages, true).unwrap(), case.rendered);
        }
        for add_special_tokens in [false, true] {
            let ids = TEXT.encode(&case.rendered, add_special_tokens).unwrap();
            assert_eq!(ids, case.prompt_ids, "{}", case.rendered);
        }
        assert_eq!(TEXT.decode(&case.prompt_ids, false).unwrap(), case.rendered);
    }
}

/// The expected ids are those of the `tokenizers` package with SmolLM2's pipeline. The spaces show
/// whether digits are split before words.
#[test]
fn each_digit_is_a_word() {
    for (text, ids) in [
        ("x =  12", vec![104, 446, 256, 33, 34]),
        ("a\n\n 3  \n45 b", vec![81, 8866, 35, 32057, 36, 37, 278]),
        ("\t1", vec![197, 33]),
        ("<|im_start|> 7<|im_end|>", vec![1, 216, 39, 2]),
    ] {
        assert_eq!(TEXT.encode(text, false).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn answers_are_decoded_like_in_transformers() {
    for case in cases() {
        assert_eq!(
            TEXT.decode(&case.greedy_ids, true).unwrap(),
            case.greedy_text
        );
        let mut stream = TextStream::new(TEXT.clone(), StreamOptions::default());
        let mut text: String = case
            .greedy_ids
            .iter()
            .map(|&id| stream.push(id).text_to_emit)
            .collect();
        text += &stream.finish().text_to_emit;
        assert_eq!(text, case.greedy_text);
    }
}

#[test]
fn the_default_base_ends_its_turn_with_im_end() {
    assert_eq!(TEXT.eos_token_ids(), [2]);
    assert_eq!(TEXT.token_text(2), "<|im_end|>");
    assert_eq!(TEXT.vocab_size(), 49_152);
}

proptest! {
    #[test]
    fn increments_add_up_to_the_whole_text(
        ids in proptest::collection::vec(0u32..49_152, 0..60),
        skip in any::<bool>(),
    ) {
        let mut decoder = TokenDecoder::new(TEXT.clone(), skip);
        let mut joined: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
        joined.extend(decoder.finish());
        prop_assert_eq!(joined, TEXT.decode(&ids, skip).unwrap());
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(input in "\\PC{0,60}") {
        let ids = TEXT.encode(&input, false).unwrap();
        prop_assert_eq!(TEXT.decode(&ids, false).unwrap(), input);
    }
}

/// A small SentencePiece model, and the encodings of some texts by the sentencepiece package.
#[derive(Deserialize)]
struct SentencePiece {
    tokens: Vec<String>,
    scores: Vec<f32>,
    token_type: Vec<i32>,
    cases: Vec<SentencePieceCase>,
}

#[derive(Deserialize)]
struct SentencePieceCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn sentencepiece_encodings_equal_those_of_its_package() {
    let golden: SentencePiece =
        serde_json::from_str(include_str!("../golden/sentencepiece.json")).expect("golden cases");
    let list = |items: &mut dyn Iterator<Item = Value>| Value::Array(items.collect());
    let metadata = [
        ("model", Value::String("llama".into())),
        (
            "tokens",
            list(&mut golden.tokens.into_iter().map(Value::String)),
        ),
        (
            "scores",
            list(&mut golden.scores.into_iter().map(Value::F32)),
        ),
        (
            "token_type",
            list(&mut golden.token_type.into_iter().map(Value::I32)),
        ),
        ("unknown_token_id", Value::U32(0)),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
    ];
    let text = Text::from_gguf(&Content {
        magic: VersionedMagic::GgufV3,
        metadata: metadata
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
            .into(),
        tensor_infos: HashMap::new(),
        tensor_data_offset: 0,
    })
    .expect("a tokenizer");
    for case in golden.cases {
        assert_eq!(
            text.encode(&case.text, false).unwrap(),
            case.ids,
            "{}",
            case.text
        );
        assert_eq!(text.decode(&case.ids, true).unwrap(), case.decoded);
        let with_bos = [vec![1], case.ids].concat();
        assert_eq!(text.encode(&case.text, true).unwrap(), with_bos);
        assert_eq!(text.decode(&with_bos, true).unwrap(), case.decoded);
    }
}
