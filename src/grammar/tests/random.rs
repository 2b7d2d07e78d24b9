//! Random schemas, and random outputs that their grammars allow: each output validates.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, json};

use super::*;

const SCHEMAS: u32 = 500;
const OUTPUTS_PER_SCHEMA: u64 = 3;
/// Tokens after which a random output is given up: recursive schemas have long ones.
const MAX_TOKENS: usize = 2000;

/// A random output that the grammar allows; `None` if it does not end.
fn random_output(grammar: &Grammar, seed: u64) -> Result<Option<String>, GrammarError> {
    let mut constraint = GRAMMARS.compile(grammar)?.start();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = Vec::new();
    for _ in 0..MAX_TOKENS {
        let mask = constraint.mask().unwrap();
        let allowed: Vec<u32> = (0..VOCAB_SIZE as u32)
            .filter(|&id| mask.allows(id))
            .collect();
        let closes = |id: &u32| matches!(TEXT.token_bytes(*id), b"\"" | b"]" | b"}" | b",");
        let closing: Vec<u32> = allowed.iter().copied().filter(closes).collect();
        if mask.may_end() && (allowed.is_empty() || rng.random_bool(0.5)) {
            return Ok(Some(String::from_utf8(bytes).unwrap()));
        }
        let among = match rng.random_bool(0.4) && !closing.is_empty() {
            true => &closing,
            false => &allowed,
        };
        let token = *among.choose(&mut rng).expect("an allowed token");
        bytes.extend_from_slice(TEXT.token_bytes(token));
        if constraint.accept(token).unwrap() {
            return Ok(Some(String::from_utf8(bytes).unwrap()));
        }
    }
    Ok(None)
}

/// Whether an output validates; `None` if it has a number that an f64 does not hold.
fn validates(schema: &Value, output: &str) -> Option<bool> {
    let value: Value = match serde_json::from_str(output) {
        Ok(value) => value,
        Err(error) if error.to_string().contains("number out of range") => return None,
        Err(error) => panic!("{schema}: {output:?}: {error}"),
    };
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema);
    Some(validator.unwrap().is_valid(&value))
}

fn with(
    mut schema: Value,
    members: impl IntoIterator<Item = (&'static str, Option<Value>)>,
) -> Value {
    let members = members.into_iter();
    let members = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    schema.as_object_mut().unwrap().extend(members);
    schema
}

/// A short text with what is special in JSON and in regular expressions.
fn text() -> impl Strategy<Value = String> {
    "[a-c\"\\\\/\n\u{e4}\u{1f980}{}:,. $^\\-]{0,4}"
}

fn literal() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1000i64..1000).prop_map(Value::from),
        (-1000i64..1000).prop_map(|n| json!(n as f64 / 8.0)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((text(), inner), 0..3).prop_map(|m| Value::Object(Map::from_iter(m))),
        ]
    })
}

fn number() -> impl Strategy<Value = Value> {
    let bound = || option::of((-2000i64..2000).prop_map(|n| n as f64 / 4.0));
    let kind = prop_oneof![Just("integer"), Just("number")];
    (kind, bound(), bound(), any::<[bool; 2]>()).prop_map(|(kind, a, b, [open_low, open_high])| {
        let (low, high) = match (a, b) {
            // Wide enough for an integer between them.
            (Some(a), Some(b)) => (Some(a.min(b)), Some(a.max(b) + 2.0)),
            bounds => bounds,
        };
        let low_name = if open_low {
            "exclusiveMinimum"
        } else {
            "minimum"
        };
        let high_name = if open_high {
            "exclusiveMaximum"
        } else {
            "maximum"
        };
        let bounds = [
            (low_name, low.map(Value::from)),
            (high_name, high.map(Value::from)),
        ];
        with(json!({"type": kind}), bounds)
    })
}

fn multiple() -> impl Strategy<Value = Value> {
    (1i64..30).prop_map(|n| json!({"type": "integer", "multipleOf": n}))
}

fn string() -> impl Strategy<Value = Value> {
    let lengths = (option::of(0u64..6), option::of(0u64..6)).prop_map(|(min, more)| {
        let max = more.map(|more| min.unwrap_or(0) + more);
        let bounds = [
            ("minLength", min.map(Value::from)),
            ("maxLength", max.map(Value::from)),
        ];
        with(json!({"type": "string"}), bounds)
    });
    let patterns = [
        "^[a-z]{2,5}$",
        "^\\d+$",
        "ab",
        "^(foo|b\"ar)$",
        "\\.txt$",
        "^[^a-z]*$",
        "^\\w+\\s\\w+$",
        "^.$",
        "\u{e4}+",
        "^[\\u00e4-\\u00ff]{2}$",
    ];
    let pattern = proptest::sample::select(patterns.to_vec());
    let formats = [
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uuid",
        "no-such-format",
    ];
    let format = proptest::sample::select(formats.to_vec());
    prop_oneof![
        2 => lengths,
        1 => pattern.prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        1 => format.prop_map(|format| json!({"type": "string", "format": format})),
    ]
}

fn leaf() -> BoxedStrategy<Value> {
    prop_oneof![
        1 => Just(json!({})),
        1 => Just(json!({"type": "null"})),
        1 => Just(json!({"type": "boolean", "description": "d"})),
        3 => number(),
        1 => multiple(),
        4 => string(),
        2 => vec(literal(), 1..4).prop_map(|values| json!({"enum": values})),
        1 => literal().prop_map(|value| json!({"const": value})),
        1 => (0..2).prop_map(|i| json!({"$ref": format!("#/$defs/d{i}")})),
        1 => Just(json!({"type": ["string", "null"], "maxLength": 3, "minimum": 3})),
    ]
    .boxed()
}

fn array(items: impl Strategy<Value = Value> + Clone) -> impl Strategy<Value = Value> {
    let rest = prop_oneof![
        3 => items.clone().prop_map(Some),
        1 => Just(Some(json!(false))),
        1 => Just(None),
    ];
    let prefix = option::weighted(0.3, vec(items, 1..3));
    (rest, prefix, option::of(0u64..3), option::of(0u64..3)).prop_map(
        |(rest, prefix, min, more)| {
            let prefix_len = prefix.as_ref().map_or(0, Vec::len) as u64;
            let min = match &rest {
                Some(Value::Bool(false)) => min.map(|min| min.min(prefix_len)),
                _ => min,
            };
            let max = more.map(|more| min.unwrap_or(0) + more);
            let members = [
                ("items", rest),
                ("prefixItems", prefix.map(Value::from)),
                ("minItems", min.map(Value::from)),
                ("maxItems", max.map(Value::from)),
            ];
            with(json!({"type": "array"}), members)
        },
    )
}

fn object(values: impl Strategy<Value = Value> + Clone) -> impl Strategy<Value = Value> {
    let properties = vec((text(), values.clone()), 0..4);
    let rest = prop_oneof![
        2 => Just(Some(json!(false))),
        1 => values.clone().prop_map(Some),
        1 => Just(None),
    ];
    let patterns = option::weighted(0.2, values.prop_map(|value| json!({"^x-": value})));
    (properties, rest, patterns, btree_set(0usize..4, 0..3)).prop_map(
        |(properties, rest, patterns, chosen)| {
            let properties = Map::from_iter(properties);
            let required = properties.keys().enumerate();
            let required = required.filter(|(i, _)| chosen.contains(i));
            let required: Vec<&String> = required.map(|(_, name)| name).collect();
            let members = [
                ("required", (!required.is_empty()).then(|| json!(required))),
                ("properties", Some(Value::Object(properties))),
                ("additionalProperties", rest),
                ("patternProperties", patterns),
            ];
            with(json!({"type": "object"}), members)
        },
    )
}

fn subschema() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 16, 4, |inner| {
        let options = vec(inner.clone(), 1..4);
        prop_oneof![
            3 => object(inner.clone()),
            2 => array(inner.clone()),
            1 => options.prop_map(|options| json!({"anyOf": options})),
            1 => (object(inner.clone()), object(inner)).prop_map(|(a, b)| json!({"allOf": [a, b]})),
        ]
    })
}

fn root() -> impl Strategy<Value = Value> {
    let definitions = || prop_oneof![3 => leaf(), 1 => object(leaf()), 1 => array(leaf())];
    (subschema(), definitions(), definitions())
        .prop_map(|(root, d0, d1)| with(root, [("$defs", Some(json!({"d0": d0, "d1": d1})))]))
}

#[test]
fn every_output_of_a_random_schema_validates() {
    let config = ProptestConfig::with_cases(SCHEMAS);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let (refused, ended, outputs) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let run = |schema: Value| {
        for seed in 0..OUTPUTS_PER_SCHEMA {
            let output = match random_output(&Grammar::JsonSchema(schema.clone()), seed) {
                Ok(output) => output,
                Err(error) => {
                    assert!(
                        matches!(error, GrammarError::Schema { .. }),
                        "{schema}: {error}"
                    );
                    refused.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
            };
            outputs.fetch_add(1, Ordering::Relaxed);
            if let Some(output) = output {
                ended.fetch_add(1, Ordering::Relaxed);
                let valid = validates(&schema, &output).unwrap_or(true);
                prop_assert!(valid, "{} allows {:?}", schema, output);
            }
        }
        Ok(())
    };
    runner.run(&root(), run).unwrap();
    // Few are refused: those that nothing satisfies, and unions that cannot be compiled.
    let (refused, ended, outputs) = (
        refused.into_inner(),
        ended.into_inner(),
        outputs.into_inner(),
    );
    println!("{refused} of {SCHEMAS} schemas refused, {ended} of {outputs} outputs ended");
    assert!(refused < SCHEMAS as usize / 5 && ended * 10 > outputs * 9);
}

#[test]
fn every_output_of_a_format_validates() {
    let mut invalid = Vec::new();
    for format in [
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uuid",
    ] {
        let value = json!({"type": "string", "format": format});
        for seed in 0..200 {
            let output = random_output(&schema(value.clone()), seed).unwrap();
            let output = output.filter(|output| validates(&value, output) == Some(false));
            invalid.extend(output.map(|output| (format, output)));
        }
    }
    assert!(invalid.is_empty(), "{invalid:?}");
}
