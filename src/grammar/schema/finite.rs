//! Schemas that no finite JSON satisfies, because they require themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::super::GrammarError;
use super::pointer;

/// Rounds after which the rest is taken for finite.
const MAX_ROUNDS: usize = 100;

/// Checks that finite JSON satisfies each subschema. `children` are the subschemas by pointer, each
/// with those that it applies.
///
/// # Errors
/// A subschema requires itself.
pub fn check(
    document: &Value,
    children: &BTreeMap<String, Vec<String>>,
) -> Result<(), GrammarError> {
    let mut finite = BTreeSet::new();
    for round in 0.. {
        if round == MAX_ROUNDS {
            return Ok(());
        }
        let before = finite.len();
        // Children come after their parents, so that most rounds see them first.
        for place in children.keys().rev() {
            if !finite.contains(place.as_str()) && is_finite(document, place, &finite) {
                finite.insert(place.clone());
            }
        }
        if finite.len() == before {
            break;
        }
    }
    let infinite = |place: &&String| !finite.contains(place.as_str());
    for start in children.keys().filter(infinite) {
        // Follows the requirements until one is met again; `false` requires nothing.
        let (mut place, mut seen) = (start, BTreeSet::new());
        while seen.insert(place) {
            match children[place].iter().find(infinite) {
                Some(child) => place = child,
                None => break,
            }
        }
        if !children[place].is_empty() {
            let problem = "no finite JSON satisfies it: it requires itself";
            return Err(GrammarError::schema(place, problem));
        }
    }
    Ok(())
}

/// Whether finite JSON satisfies the schema at a pointer, if it satisfies the schemas in `finite`
/// and no others. Too often true, if keywords contradict each other.
fn is_finite(document: &Value, place: &str, finite: &BTreeSet<String>) -> bool {
    let Some(Value::Object(schema)) = document.pointer(place) else {
        return document.pointer(place) == Some(&Value::Bool(true));
    };
    let is_in = |pointer: &str| finite.contains(pointer);
    let referred = schema.get("$ref").and_then(Value::as_str);
    if let Some(target) = referred.and_then(pointer::of_reference)
        && !is_in(&target)
    {
        return false;
    }
    let branches = |name: &str| {
        let count = schema.get(name).and_then(Value::as_array)?.len();
        let at = pointer::child(place, name);
        Some((0..count).map(move |i| format!("{at}/{i}")))
    };
    let all = branches("allOf").is_none_or(|mut all| all.all(|branch| is_in(&branch)));
    let some = |name| branches(name).is_none_or(|mut any| any.any(|branch| is_in(&branch)));
    all && some("anyOf") && some("oneOf") && own_values(schema, place, &is_in)
}

/// Whether finite JSON satisfies a schema's own keywords.
fn own_values(schema: &Map<String, Value>, place: &str, is_in: &impl Fn(&str) -> bool) -> bool {
    let is_literal = schema.contains_key("const") || schema.contains_key("enum");
    let allows = |name: &str| match schema.get("type") {
        Some(Value::Array(names)) => names.iter().any(|found| found == name),
        Some(found) => found == name,
        None => true,
    };
    let scalars = ["null", "boolean", "number", "integer", "string"];
    is_literal
        || scalars.into_iter().any(allows)
        || (allows("object") && requires_finite(schema, place, is_in))
        || (allows("array") && lists_finite(schema, place, is_in))
}

/// Whether the required properties may be finite.
fn requires_finite(
    schema: &Map<String, Value>,
    place: &str,
    is_in: &impl Fn(&str) -> bool,
) -> bool {
    let at = pointer::child(place, "properties");
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array);
    let mut names = required.into_iter().flatten().filter_map(Value::as_str);
    names.all(|name| {
        let listed = properties.is_some_and(|properties| properties.contains_key(name));
        !listed || is_in(&pointer::child(&at, name))
    })
}

/// Whether the required elements may be finite.
fn lists_finite(schema: &Map<String, Value>, place: &str, is_in: &impl Fn(&str) -> bool) -> bool {
    let min = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let list = |name: &str| schema.get(name).and_then(Value::as_array).map(Vec::len);
    let (name, listed) = match (list("items"), list("prefixItems")) {
        (Some(count), _) => ("items", count),
        (None, count) => ("prefixItems", count.unwrap_or(0)),
    };
    let at = pointer::child(place, name);
    let mut first = (0..listed.min(min)).map(|i| format!("{at}/{i}"));
    let rest = match name {
        "items" => "additionalItems",
        _ => "items",
    };
    first.all(|item| is_in(&item))
        && (min <= listed || !schema.contains_key(rest) || is_in(&pointer::child(place, rest)))
}
