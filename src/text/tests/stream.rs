use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::text::{StopSet, StreamOptions, TextStream, TokenDecoder};

#[test]
fn a_text_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Text>();
    shared::<TextStream>();
}

#[test]
fn a_continued_text_keeps_its_first_space() {
    let text = Arc::new(sentencepiece_text());
    let hi = text.encode("hi", false).unwrap()[0];
    assert_eq!(
        TokenDecoder::new(text.clone(), true).push(hi).as_deref(),
        Some("hi")
    );
    assert_eq!(
        TokenDecoder::continuing(text.clone(), true)
            .push(hi)
            .as_deref(),
        Some(" hi")
    );
    let mut after_special = TokenDecoder::new(text, true);
    assert_eq!(after_special.push(1), None);
    assert_eq!(after_special.push(hi).as_deref(), Some("hi"));
}

#[test]
fn a_character_of_several_tokens_comes_out_whole() {
    for text in [byte_level_text("smollm"), sentencepiece_text()] {
        let text = Arc::new(text);
        let mut ids = text.encode("🤗", false).unwrap();
        ids.retain(|&id| text.token_bytes(id) != b" ");
        assert_eq!(ids.len(), 4);
        let mut decoder = TokenDecoder::new(text.clone(), true);
        let steps: Vec<_> = ids.iter().map(|&id| decoder.push(id)).collect();
        assert_eq!(steps, [None, None, None, Some("🤗".to_owned())]);
        assert_eq!(decoder.finish(), None);
        for &id in &ids[..3] {
            assert_eq!(decoder.push(id), None);
        }
        assert_eq!(decoder.finish().as_deref(), Some("\u{FFFD}"));
    }
}

#[test]
fn ids_without_a_token_give_no_text() {
    let text = Arc::new(byte_level_text("smollm"));
    let size = text.vocab_size();
    assert_eq!(size, 263);
    assert_eq!(text.token_text(size as u32), "");
    assert_eq!(TokenDecoder::new(text.clone(), true).push(u32::MAX), None);
    let error = text.decode(&[0, 263], true).unwrap_err().to_string();
    assert_eq!(
        error,
        "token id 263 is not in the vocabulary: expected less than 263"
    );
}

/// Pushes all ids; returns the emitted text, and the stop string if any.
fn stream(text: &Arc<Text>, options: StreamOptions, ids: &[u32]) -> (String, Option<String>) {
    let mut stream = TextStream::new(text.clone(), options);
    let mut out = String::new();
    for &id in ids {
        let step = stream.push(id);
        out += &step.text_to_emit;
        if step.stopped.is_some() {
            return (out, step.stopped);
        }
    }
    let step = stream.finish();
    (out + &step.text_to_emit, step.stopped)
}

#[test]
fn a_stream_stops_across_tokens() {
    let text = Arc::new(byte_level_text("smollm"));
    let ids = text.encode("oh 🤗 he\n\nllo", false).unwrap();
    let run = |stop: &str, include| {
        let options = StreamOptions {
            stop: StopSet::new(vec![stop.into()]),
            include_stop_str_in_output: include,
            ..StreamOptions::default()
        };
        stream(&text, options, &ids)
    };
    assert_eq!(run("\n\n", false), ("oh 🤗 he".into(), Some("\n\n".into())));
    assert_eq!(run("🤗 h", false), ("oh ".into(), Some("🤗 h".into())));
    assert_eq!(run("🤗 h", true), ("oh 🤗 h".into(), Some("🤗 h".into())));
    assert_eq!(run("llo!", false), ("oh 🤗 he\n\nllo".into(), None));
}

#[test]
fn no_stop_string_ends_within_the_first_min_tokens() {
    let text = Arc::new(byte_level_text("smollm"));
    let ids = text.encode("ababab", false).unwrap();
    for (min_tokens, expected) in [
        (0, ""),
        (1, ""),
        (2, "ab"),
        (3, "ab"),
        (5, "abab"),
        (6, "ababab"),
    ] {
        let options = StreamOptions {
            stop: StopSet::new(vec!["ab".into()]),
            min_tokens,
            ..StreamOptions::default()
        };
        let (out, stopped) = stream(&text, options, &ids);
        assert_eq!(
            (out.as_str(), stopped.is_some()),
            (expected, min_tokens < 6),
            "{min_tokens}"
        );
    }
}

#[test]
fn an_unfinished_character_may_complete_a_stop_string_at_the_end() {
    let text = Arc::new(byte_level_text("smollm"));
    let ids = &text.encode("h🤗", false).unwrap()[..3];
    let options = StreamOptions {
        stop: StopSet::new(vec!["\u{FFFD}".into()]),
        ..StreamOptions::default()
    };
    assert_eq!(
        stream(&text, options, ids),
        ("h".into(), Some("\u{FFFD}".into()))
    );
}

proptest! {
    #[test]
    fn increments_concatenate_to_the_text_of_the_whole(
        ids in proptest::collection::vec(0u32..263, 0..40),
        skip in any::<bool>(),
    ) {
        for text in [byte_level_text("smollm"), sentencepiece_text()] {
            let text = Arc::new(text);
            let whole = text.decode(&ids, skip).unwrap();
            let mut decoder = TokenDecoder::new(text.clone(), skip);
            let mut joined: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
            prop_assert!(whole.starts_with(&joined));
            joined.extend(decoder.finish());
            prop_assert_eq!(&joined, &whole);
        }
    }

    #[test]
    fn byte_level_decoding_equals_that_of_the_tokenizer(
        ids in proptest::collection::vec(0u32..263, 0..40),
        skip in any::<bool>(),
    ) {
        let text = byte_level_text("smollm");
        let expected = text.tokenizer.decode(&ids, skip).unwrap();
        prop_assert_eq!(text.decode(&ids, skip).unwrap(), expected);
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(input in "\\PC{0,20}") {
        let byte_level = ["smollm", "llama-bpe"].map(byte_level_text);
        for text in byte_level.into_iter().chain([sentencepiece_text()]) {
            let ids = text.encode(&input, false).unwrap();
            prop_assert_eq!(&text.decode(&ids, false).unwrap(), &input);
            prop_assert_eq!(&text.tokenizer.decode(&ids, false).unwrap(), &input);
        }
    }
}
