//! Each kind of grammar, the vocabulary and the cache.

use serde_json::json;

use super::*;

fn choice(texts: &[&str]) -> Grammar {
    Grammar::Choice(texts.iter().map(|&text| text.to_owned()).collect())
}

#[test]
fn an_object_is_any_json_object() {
    expect(
        &Grammar::JsonObject,
        &[
            "{}",
            r#"{"a": [1, -2.5e3, null, true], "b": {"ä\n": "\"\\"}}"#,
            "{\n  \"a\": 1\n}",
        ],
        &[
            "[]",
            "1",
            "",
            "{",
            r#"{"a"}"#,
            r#"{"a":01}"#,
            "{}{",
            "  {}",
            "{\t}",
            "{    }",
        ],
    );
}

#[test]
fn a_regular_expression_matches_the_whole_text() {
    let regex = |regex: &str| Grammar::Regex(regex.to_owned());
    for same in [r"\d{3}-\d{4}", r"^\d{3}-\d{4}$"] {
        expect(
            &regex(same),
            &["555-1234"],
            &["555-123", "a555-1234", "555-12345", ""],
        );
    }
    expect(&regex(r"a|b\$"), &["a", "b$"], &["b", r"b\$"]);
    expect(
        &regex("(yes|no)( /maybe)?\n"),
        &["yes\n", "no /maybe\n"],
        &["yes"],
    );
    expect(&regex("[äöü]+"), &["äüö"], &["a", ""]);
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let grammar = choice(&["yes", "yes!", "no/\\(\n", "\"", "größer", "🦀"]);
    expect(
        &grammar,
        &["yes", "yes!", "no/\\(\n", "\"", "größer", "🦀"],
        &["", "y", "yes!yes", "no", "YES"],
    );
}

#[test]
fn lark_and_gbnf_are_told_apart() {
    let lark = "start: \"a\" b+\nb: /[0-9]/ | \"x\"";
    let gbnf = "root ::= \"a\" b+\nb ::= [0-9] | \"x\"";
    for text in [lark, gbnf] {
        expect(
            &Grammar::Lark(text.to_owned()),
            &["a1", "ax2x"],
            &["a", "1", "ab"],
        );
    }
}

#[test]
fn special_tokens_match_no_text() {
    let any = Grammar::Regex("(?s:.)*".to_owned());
    let mask = GRAMMARS.compile(&any).unwrap().start().mask().unwrap();
    let special = [0, END];
    let allowed = (0..VOCAB_SIZE as u32).filter(|&id| mask.allows(id));
    let allowed: Vec<u32> = allowed.collect();
    assert!(!allowed.iter().any(|id| special.contains(id)));
    assert!(allowed.iter().all(|&id| (id as usize) < TEXT.vocab_size()));
    // No text begins with a continuation byte.
    assert!(allowed.len() > 128 && mask.may_end());
    let spelled = choice(&["</s>"]);
    assert!(accepts(&spelled, "<") || GRAMMARS.compile(&spelled).is_ok());
    let first = GRAMMARS.compile(&spelled).unwrap().start().mask().unwrap();
    assert!(!first.allows(END) && !first.may_end());
}

#[test]
fn sequences_of_one_grammar_share_no_state() {
    let compiled = GRAMMARS.compile(&choice(&["1a", "2b"])).unwrap();
    let (mut first, mut second) = (compiled.start(), compiled.start());
    let id = |text: &str| TEXT.encode(text, false).unwrap()[0];
    assert!(first.mask().unwrap().allows(id("1")) && second.mask().unwrap().allows(id("2")));
    assert_eq!(first.accept(id("1")), Ok(false));
    assert_eq!(second.accept(id("2")), Ok(false));
    assert!(!first.mask().unwrap().allows(id("b")) && second.mask().unwrap().allows(id("b")));
    assert_eq!(
        (first.accept(id("a")), second.accept(id("b"))),
        (Ok(true), Ok(true))
    );
}

#[test]
fn equal_grammars_are_compiled_once() {
    let grammars = Grammars::new(&TEXT, VOCAB_SIZE, &[END]).unwrap();
    let compile = |grammar: &Grammar| grammars.compile(grammar).unwrap();
    let first = compile(&schema(json!({"type": "integer"})));
    assert!(std::sync::Arc::ptr_eq(
        &first,
        &compile(&schema(json!({"type": "integer"})))
    ));
    compile(&schema(json!({"type": "string"})));
    compile(&choice(&["ab", "c"]));
    compile(&choice(&["a", "bc"]));
    compile(&Grammar::Regex("ab".to_owned()));
    assert_eq!(grammars.cached(), 5);
    assert!(grammars.compile(&Grammar::Regex("(".to_owned())).is_err());
    assert_eq!(grammars.cached(), 5);
}
