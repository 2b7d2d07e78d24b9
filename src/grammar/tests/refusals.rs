//! Grammars that are refused, with the place and the problem.

use serde_json::json;

use super::*;

/// The schema is refused at this pointer, for a reason that contains these words.
fn refused(value: Value, pointer: &str, words: &str) {
    let error = refusal(&schema(value.clone()));
    let GrammarError::Schema {
        pointer: found,
        problem,
    } = &error
    else {
        panic!("{value}: {error}");
    };
    assert_eq!(found, pointer, "{value}: {error}");
    assert!(problem.contains(words), "{value}: {error}");
}

#[test]
fn keywords_that_cannot_be_honoured_are_refused_by_their_pointer() {
    let property = |name: &str, value: Value| {
        let mut subschema = serde_json::Map::new();
        subschema.insert(name.to_owned(), value);
        subschema.insert("then".to_owned(), json!({}));
        json!({"type": "object", "properties": {"a/b": subschema}})
    };
    for (name, value) in [
        ("not", json!({"type": "null"})),
        ("if", json!({"type": "null"})),
        ("contains", json!({"type": "null"})),
        ("uniqueItems", json!(true)),
        ("propertyNames", json!({"pattern": "^a"})),
        ("dependentRequired", json!({"a": ["b"]})),
        ("dependentSchemas", json!({"a": {}})),
        ("dependencies", json!({"a": ["b"]})),
        ("unevaluatedItems", json!(false)),
        ("unevaluatedProperties", json!(false)),
        ("$dynamicRef", json!("#a")),
        ("$recursiveRef", json!("#")),
    ] {
        let pointer = format!("/properties/a~1b/{name}");
        refused(
            property(name, value),
            &pointer,
            &format!("`{name}` is not supported"),
        );
    }
}

#[test]
fn keywords_that_say_nothing_are_dropped() {
    let grammar = schema(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x/y",
        "title": "t", "deprecated": true, "x-guidance": {"lenient": true}, "x-order": [1],
        "default": {"a": 1}, "examples": [1], "$comment": "c", "contentSchema": {"not": {}},
        "type": "integer", "format": "int32", "uniqueItems": false, "not": false, "if": {},
        "unevaluatedProperties": true, "propertyNames": {}, "dependentRequired": {},
        "$defs": {"unused": {"not": {}}}, "minContains": 2, "discriminator": {"propertyName": "a"},
    }));
    expect(&grammar, &["12", "-3"], &["1.5", "\"a\"", "{}"]);
    let unknown = schema(json!({"type": "string", "format": "card-number"}));
    expect(&unknown, &["\"a\""], &["1"]);
}

#[test]
fn malformed_schemas_are_refused_by_their_pointer() {
    let a = |a: Value| json!({"type": "object", "properties": {"a": a}});
    refused(json!(false), "", "no output");
    refused(json!([1]), "", "expected a schema");
    refused(a(json!(7)), "/properties/a", "expected a schema");
    refused(
        json!({"properties": [1]}),
        "/properties",
        "expected an object",
    );
    refused(json!({"anyOf": {}}), "/anyOf", "an array of schemas");
    refused(json!({"anyOf": [true, 1]}), "/anyOf/1", "expected a schema");
    refused(
        a(json!({"type": "int"})),
        "/properties/a/type",
        "types of JSON Schema",
    );
    refused(
        a(json!({"type": []})),
        "/properties/a/type",
        "types of JSON Schema",
    );
    refused(json!({"enum": []}), "/enum", "at least one value");
    refused(json!({"required": ["a", 1]}), "/required", "names");
    refused(json!({"minLength": -1}), "/minLength", "integer");
    refused(json!({"maxItems": 1e9}), "/maxItems", "integer");
    refused(json!({"minimum": "3"}), "/minimum", "a number");
    refused(json!({"pattern": 3}), "/pattern", "a string");
}

#[test]
fn references_stay_within_the_schema() {
    let words = "only references within the schema";
    refused(
        json!({"items": {"$ref": "https://x/y"}}),
        "/items/$ref",
        words,
    );
    refused(json!({"items": {"$ref": "#name"}}), "/items/$ref", words);
    refused(json!({"items": {"$ref": 3}}), "/items/$ref", words);
    refused(
        json!({"$ref": "#/$defs/none"}),
        "/$defs/none",
        "expected a schema",
    );
    refused(
        json!({"items": {"$id": "https://x/y"}}),
        "/items/$id",
        "at the root only",
    );
    let referred = json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"not": {}}}}});
    refused(referred, "/$defs/a/items/not", "not supported");
}

#[test]
fn literals_that_no_output_could_spell_are_refused() {
    refused(
        json!({"const": 9_007_199_254_740_993_u64}),
        "/const",
        "2^53",
    );
    refused(json!({"enum": [1, {"a": -1e300}]}), "/enum/1/a", "2^53");
    refused(
        json!({"type": "integer", "maximum": 1e17}),
        "/maximum",
        "2^53",
    );
    refused(json!({"enum": ["a", "\u{1}"]}), "/enum/1", "U+0001");
}

#[test]
fn properties_that_cannot_be_counted_are_refused() {
    let counted = |min: u64| json!({"type": "object", "required": ["a"], "minProperties": min});
    refused(counted(3), "/minProperties", "cannot be counted");
    expect(&schema(counted(2)), &[r#"{"a":1,"b":2}"#], &[r#"{"a":1}"#]);
}

#[test]
fn what_llguidance_refuses_is_located() {
    let a =
        |a: Value| json!({"type": "object", "properties": {"b": {}, "a": a}, "required": ["a"]});
    let lookahead = json!({"type": "array", "items": {"type": "string", "pattern": "(?=a)b"}});
    refused(a(lookahead), "/properties/a/items", "look");
    let none = json!({"type": "integer", "minimum": 3, "maximum": 2});
    refused(a(none), "/properties/a", "");
    let overlap = json!({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]});
    refused(
        a(json!({"$ref": "#/$defs/o", "$defs": {}})),
        "/$defs/o",
        "expected a schema",
    );
    let mut referred = a(json!({"$ref": "#/$defs/o"}));
    referred["$defs"] = json!({"o": overlap});
    refused(referred, "/$defs/o", "oneOf");
    let closed = json!({"type": "object", "required": ["c"], "additionalProperties": false});
    refused(a(closed), "/properties/a", "c");
}

#[test]
fn malformed_grammars_are_refused() {
    let message = |grammar: &Grammar| refusal(grammar).to_string();
    let regex = |text: &str| message(&Grammar::Regex(text.to_owned()));
    assert!(regex("(").starts_with("the regular expression is not valid: "));
    assert!(regex("(?=a)b").contains("look"), "{}", regex("(?=a)b"));
    assert!(regex("").contains("empty text only"), "{}", regex(""));
    let choice = |texts: &[&str]| {
        message(&Grammar::Choice(
            texts.iter().map(|&text| text.to_owned()).collect(),
        ))
    };
    assert_eq!(choice(&[]), "the choice is not valid: it has no texts");
    assert!(choice(&[""]).contains("empty text only"));
    let lark = |text: &str| message(&Grammar::Lark(text.to_owned()));
    assert!(lark("start: b").starts_with("the Lark grammar is not valid: "));
    assert!(lark("root ::= b").starts_with("the GBNF grammar is not valid: "));
    assert!(lark("").starts_with("the Lark grammar is not valid: "));
}

#[test]
fn large_grammars_are_refused() {
    let large = |grammar: &Grammar| {
        let message = refusal(grammar).to_string();
        assert!(message.contains("too large"), "{message}");
    };
    large(&Grammar::Regex("a".repeat(300_000)));
    large(&Grammar::Regex("(".repeat(200) + &")".repeat(200)));
    large(&Grammar::Lark(format!(
        "start: {}a{}",
        "(".repeat(200),
        ")".repeat(200)
    )));
    large(&Grammar::Choice(vec!["a".to_owned(); 5000]));
    large(&schema(json!({"const": "a".repeat(300_000)})));
    let mut deep = json!({});
    for _ in 0..70 {
        deep = json!({"items": deep});
    }
    let pointer = "/items".repeat(65);
    refused(deep, &pointer, "deeper than 64");
    let rules = |count: usize| {
        (1..count)
            .map(|i| format!("r{i}: r{}\n", i + 1))
            .collect::<String>()
    };
    large(&Grammar::Lark(format!(
        "start: r1\n{}r3000: \"a\"",
        rules(3000)
    )));
    let patterns = (0..41).map(|i| (format!("^{i}-"), json!({})));
    let wide = json!({"patternProperties": Value::Object(patterns.collect())});
    refused(wide, "/patternProperties", "41 members");
    let wide = json!({"anyOf": vec![json!({}); 501]});
    refused(wide, "/anyOf", "501 members");
    let names = (0..1001).map(|i| (format!("p{i}"), json!({})));
    let wide = json!({"properties": Value::Object(names.collect())});
    refused(wide, "/properties", "1001 members");
}

/// What takes most stack and time to compile, within the bounds, compiles or is refused.
#[test]
fn the_largest_grammars_do_no_harm() {
    let chain: String = (1..1900).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let lark = Grammar::Lark(format!("start: r1\n{chain}r1900: \"a\""));
    expect(&lark, &["a"], &["b"]);
    let terminals: String = (1..1900)
        .map(|i| format!("T{i}: T{} | \"{i}\"\n", i + 1))
        .collect();
    let lark = Grammar::Lark(format!("start: T1\n{terminals}T1900: \"a\""));
    let _ = GRAMMARS.compile(&lark);
    let names = (0..1000).map(|i| (format!("p{i}"), json!({"type": "boolean"})));
    let wide = json!({"type": "object", "properties": Value::Object(names.collect())});
    expect(
        &schema(wide),
        &["{\"p3\":true,\"p999\":false}"],
        &["{\"p3\":null}"],
    );
    for regex in [
        "a".repeat(100_000),
        "(?:a?b?)".repeat(10_000),
        "(((a{1,1000}){1,1000}){1,1000}){1,1000}".to_owned(),
        "[ab]|".repeat(20_000) + "c",
        "(?:".repeat(99) + &")*".repeat(99),
        ".*a.{1000}b".to_owned(),
    ] {
        let Ok(compiled) = GRAMMARS.compile(&Grammar::Regex(regex)) else {
            continue;
        };
        let mut constraint = compiled.start();
        for token in TEXT.encode("aaaaaaaa", false).unwrap() {
            match constraint.mask() {
                Ok(mask) if mask.allows(token) => {}
                _ => break,
            }
            let _ = constraint.accept(token);
        }
    }
    let mut deep = json!({});
    for _ in 0..60 {
        deep = json!({"anyOf": [{"type": "null"}], "items": deep, "type": ["array", "null"]});
    }
    let _ = GRAMMARS.compile(&schema(deep));
}
