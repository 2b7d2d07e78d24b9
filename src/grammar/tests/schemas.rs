//! Schemas that are honoured: one test per kind of keyword, with what is hard about it.

use serde_json::json;

use super::*;

#[test]
fn objects_follow_their_schema() {
    let grammar = schema(json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": false,
    }));
    expect(
        &grammar,
        &[r#"{"name": "Ada", "age": 36}"#, r#"{"name":"","age":0}"#],
        &[
            r#"{"name":"Ada"}"#,
            r#"{"age":1,"name":""}"#,
            r#"{"name":"","age":-1}"#,
            "{}",
        ],
    );
    let empty = json!({"type": "object", "properties": {}, "additionalProperties": false});
    expect(&schema(empty), &["{}", "{ }"], &[r#"{"a":1}"#, "[]"]);
}

#[test]
fn additional_properties_follow_theirs_and_cannot_pass_for_listed_ones() {
    let grammar = schema(json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}, "\"q\"\n": {"type": "null"}},
        "additionalProperties": {"type": "string"},
    }));
    expect(
        &grammar,
        &[
            r#"{"a":1,"b":"x"}"#,
            r#"{"\"q\"\n":null,"a ":"x"}"#,
            r#"{"b":"x"}"#,
        ],
        &[
            r#"{"a":"x"}"#,
            r#"{"\u0061":"x"}"#,
            r#"{"b":1}"#,
            r#"{"\"q\"\n":"x"}"#,
        ],
    );
    let patterns = schema(json!({
        "type": "object",
        "patternProperties": {"^n": {"type": "integer"}, "s$": {"type": "string"}, "^x": false},
        "additionalProperties": false,
    }));
    let error = refusal(&patterns).to_string();
    assert!(error.contains("not disjoint"), "{error}");
    let patterns = schema(json!({
        "type": "object",
        "patternProperties": {"^n": {"type": "integer"}, "^s": {"type": "string"}, "^x": false},
        "additionalProperties": {"type": "null"},
    }));
    expect(
        &patterns,
        &[r#"{"n1":1,"s":"a","m":null}"#],
        &[r#"{"n1":"a"}"#, r#"{"x":null}"#, r#"{"s":null}"#],
    );
}

#[test]
fn many_properties_are_taken_in_their_order() {
    let names: Vec<String> = (0..200).map(|i| format!("p{i}")).collect();
    let properties = names
        .iter()
        .map(|name| (name.clone(), json!({"type": "integer"})));
    let grammar = schema(json!({
        "type": "object",
        "properties": Value::Object(properties.collect()),
        "required": ["p7", "p190"],
        "additionalProperties": false,
    }));
    let all: Vec<String> = names.iter().map(|name| format!("\"{name}\":1")).collect();
    expect(
        &grammar,
        &[
            &format!("{{{}}}", all.join(",")),
            r#"{"p7":1,"p100":2,"p190":3}"#,
        ],
        &[
            r#"{"p7":1}"#,
            r#"{"p190":1,"p7":1}"#,
            r#"{"p7":1,"p190":1,"p200":1}"#,
        ],
    );
}

#[test]
fn strings_count_characters() {
    let grammar = schema(json!({"type": "string", "minLength": 2, "maxLength": 3}));
    expect(
        &grammar,
        &[r#""ab""#, r#""äöü""#, r#""🦀🦀""#, r#""\n\"\\""#],
        &[r#""a""#, r#""🦀""#, r#""abcd""#, r#""\n""#],
    );
}

#[test]
fn patterns_search_and_formats_match() {
    let pattern = |pattern: &str| schema(json!({"type": "string", "pattern": pattern}));
    expect(
        &pattern("b+"),
        &[r#""abbc""#, r#""b""#],
        &[r#""ac""#, r#""""#],
    );
    expect(&pattern("^\"\\\\$"), &[r#""\"\\""#], &[r#""a""#]);
    expect(
        &pattern("^\\d{2}/\\w+$"),
        &[r#""12/a_B""#],
        &[r#""12/ä""#, r#""1/a""#],
    );
    let format = |format: &str| schema(json!({"type": "string", "format": format}));
    expect(
        &format("date"),
        &[r#""2024-02-29""#, r#""2000-02-29""#, r#""1999-12-31""#],
        &[
            r#""2023-02-29""#,
            r#""1900-02-29""#,
            r#""2024-04-31""#,
            r#""24-1-1""#,
        ],
    );
    expect(
        &format("date-time"),
        &[
            r#""2024-02-29T23:59:59.5+01:00""#,
            r#""2023-01-01T00:00:00Z""#,
        ],
        &[
            r#""2023-02-29T00:00:00Z""#,
            r#""2023-01-01T24:00:00Z""#,
            r#""2023-01-01""#,
        ],
    );
    expect(
        &format("uuid"),
        &[r#""123e4567-e89b-12d3-a456-426614174000""#],
        &[r#""123e4567e89b12d3a456426614174000""#],
    );
    expect(&format("email"), &[r#""a.b@c.de""#], &[r#""a""#, r#""@c""#]);
}

#[test]
fn numbers_stay_within_their_bounds() {
    let number = |bounds: Value| schema(bounds);
    expect(
        &number(json!({"type": "integer", "minimum": -12, "exclusiveMaximum": 105})),
        &["-12", "-1", "0", "7", "104"],
        &["-13", "105", "1000", "1.5", "01", "1e1"],
    );
    expect(
        &number(json!({"type": "number", "exclusiveMinimum": -0.5, "maximum": 2.25})),
        &["-0.4", "0", "2.25", "1.999"],
        &["-0.5", "2.26", "3", "-1"],
    );
    expect(
        &number(json!({"type": "integer", "multipleOf": 7})),
        &["0", "-14", "49"],
        &["8", "1"],
    );
    expect(
        &number(json!({"type": "number"})),
        &["-1.5e-7", "0"],
        &[".5", "1.", "+1", "NaN"],
    );
    let largest = "9007199254740991";
    expect(
        &number(json!({"type": "integer"})),
        &[largest, "-1"],
        &["9007199254740992"],
    );
    let draft4 = json!({"type": "integer", "minimum": 3, "exclusiveMinimum": true});
    expect(&number(draft4), &["4"], &["3"]);
}

#[test]
fn literals_are_spelled_exactly() {
    let values = json!({"enum": ["a\"b\\c\n", "ä🦀", 1.5, -3, null, true, [1, "x"], {"k": {}}]});
    expect(
        &schema(values),
        &[
            r#""a\"b\\c\n""#,
            r#""ä🦀""#,
            "1.5",
            "-3",
            "null",
            "true",
            r#"[1, "x"]"#,
            r#"{"k": {}}"#,
        ],
        &[r#""a""#, "1", "false", "[1]", "{}", r#""\u00e4🦀""#],
    );
    expect(
        &schema(json!({"const": "x", "type": "string"})),
        &[r#""x""#],
        &[r#""y""#],
    );
    let both = json!({"enum": ["ab", "b", 3], "type": "string", "maxLength": 1});
    expect(&schema(both), &[r#""b""#], &["3", r#""ab""#]);
}

#[test]
fn arrays_follow_their_items() {
    let items =
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3});
    expect(
        &schema(items),
        &["[1]", "[1, 2, 3]"],
        &["[]", "[1,2,3,4]", "[\"a\"]", "[1,]"],
    );
    let tuple = json!({
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": false, "minItems": 2,
    });
    expect(
        &schema(tuple),
        &["[\"a\",1]"],
        &["[\"a\"]", "[\"a\",1,2]", "[1,\"a\"]"],
    );
    let old = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
        "items": [{"type": "string"}], "additionalItems": {"type": "null"},
    });
    expect(
        &schema(old),
        &["[]", "[\"a\",null,null]"],
        &["[null]", "[\"a\",1]"],
    );
    let many = json!({"type": "array", "items": {"type": "boolean"}, "minItems": 200});
    let trues = |count: usize| format!("[{}]", vec!["true"; count].join(","));
    expect(&schema(many), &[&trues(200)], &[&trues(199)]);
}

#[test]
fn unions_and_intersections_hold() {
    let nullable = json!({"type": ["string", "null"], "maxLength": 1});
    expect(&schema(nullable), &["null", r#""a""#], &[r#""ab""#, "1"]);
    let any =
        json!({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"const": 1}}, false]});
    expect(&schema(any), &["5", "[1,1]"], &["[2]", "null"]);
    let all = json!({
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"a": {"minimum": 3}, "b": {"const": 1}}},
        ],
        "required": ["b"],
    });
    expect(
        &schema(all),
        &[r#"{"a":3,"b":1}"#],
        &[r#"{"a":2,"b":1}"#, r#"{"a":3}"#, r#"{"b":1}"#],
    );
    let one = json!({"oneOf": [{"type": "integer"}, {"type": "string"}]});
    expect(&schema(one), &["1", r#""a""#], &["null"]);
}

/// The form of generated schemas: branches by reference, told apart by a tag.
#[test]
fn discriminated_unions_are_honoured() {
    let shape = |tag: &str, more: Value| {
        json!({
            "type": "object", "required": ["kind", "next"], "additionalProperties": false,
            "properties": {"kind": {"const": tag, "type": "string"}, "next": more},
        })
    };
    let any = json!({
        "oneOf": [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Node"}],
        "discriminator": {"propertyName": "kind"},
    });
    let mut grammar = any.clone();
    grammar["$defs"] =
        json!({"Leaf": shape("leaf", json!({"type": "null"})), "Node": shape("node", any)});
    expect(
        &schema(grammar.clone()),
        &[
            r#"{"kind":"leaf","next":null}"#,
            r#"{"kind":"node","next":{"kind":"node","next":{"kind":"leaf","next":null}}}"#,
        ],
        &[r#"{"kind":"node","next":null}"#, r#"{"kind":"leaf"}"#],
    );
    // Nothing tells these apart.
    grammar["$defs"]["Node"]["properties"]["kind"] = json!({"enum": ["node", "leaf"]});
    let error = refusal(&schema(grammar)).to_string();
    assert!(error.contains("oneOf"), "{error}");
}

#[test]
fn recursive_schemas_nest() {
    let list = json!({
        "$ref": "#/$defs/list",
        "$defs": {"list": {
            "type": "object", "required": ["v"], "additionalProperties": false,
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/list"}},
        }},
    });
    let nested = |depth: usize| {
        format!(
            "{}{{\"v\":0}}{}",
            "{\"v\":1,\"next\":".repeat(depth),
            "}".repeat(depth)
        )
    };
    expect(
        &schema(list),
        &[&nested(0), &nested(60)],
        &[r#"{"v":1,"next":{}}"#],
    );
    let tree = json!({"type": "array", "items": {"$ref": "#"}});
    expect(&schema(tree), &["[]", "[[],[[]]]"], &["[1]", "[[]"]);
    let escaped = json!({"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"const": 1}}});
    expect(&schema(escaped), &["1"], &["2"]);
}

#[test]
fn schemas_that_require_themselves_are_refused() {
    let requires = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]});
    for (value, place) in [
        (requires.clone(), ""),
        (
            json!({"items": {"$ref": "#/$defs/l"}, "$defs": {"l": {"$ref": "#/$defs/l"}}}),
            "/$defs/l",
        ),
        (
            json!({"type": "array", "minItems": 1, "items": {"$ref": "#"}}),
            "",
        ),
    ] {
        let error = refusal(&schema(value.clone()));
        let GrammarError::Schema { pointer, problem } = &error else {
            panic!("{value}: {error}");
        };
        assert!(
            pointer.starts_with(place) && problem.contains("requires itself"),
            "{value}: {error}"
        );
    }
    let mut optional = requires;
    optional["properties"]["a"] = json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]});
    expect(&schema(optional), &[r#"{"a":{"a":null}}"#], &["{}"]);
}
