//! Unions whose branches exclude each other: `oneOf` that may be read as `anyOf`.
//!
//! llguidance proves this too, but does not look through references, and generated schemas refer to
//! the branches of their discriminated unions.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::keywords::TYPES;
use super::pointer;

/// References that lead from a branch to its schema.
const MAX_HOPS: usize = 8;
/// Maximum number of branches, each of which is compared with each other.
const MAX_BRANCHES: usize = 200;

/// The subschemas with a `oneOf` that may be read as `anyOf`, among those at these places: none if
/// something refers to a branch, since its pointer would change.
pub fn unions<'a>(
    document: &Value,
    places: impl Iterator<Item = &'a String> + Clone,
) -> BTreeSet<String> {
    let schema = |place: &String| document.pointer(place)?.as_object();
    let refers_to_branch = |place| {
        let target = schema(place)?.get("$ref")?.as_str()?;
        Some(target.contains("/oneOf/"))
    };
    if places
        .clone()
        .any(|place| refers_to_branch(place) == Some(true))
    {
        return BTreeSet::new();
    }
    let is_exclusive = |place: &&String| {
        let union = schema(place).filter(|schema| !schema.contains_key("anyOf"));
        let branches = union.and_then(|schema| schema.get("oneOf")?.as_array());
        branches.is_some_and(|branches| exclude_each_other(document, branches))
    };
    places.filter(is_exclusive).cloned().collect()
}

/// Whether no value satisfies two of these branches.
fn exclude_each_other(document: &Value, branches: &[Value]) -> bool {
    if branches.len() > MAX_BRANCHES {
        return false;
    }
    let resolved: Vec<&Value> = branches.iter().map(|b| resolve(document, b)).collect();
    let mut pairs = resolved.iter().enumerate();
    pairs.all(|(i, a)| {
        resolved[i + 1..]
            .iter()
            .all(|b| are_disjoint(document, a, b))
    })
}

/// The schema that a schema refers to, or the schema itself. What stands beside a reference only
/// narrows it.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..MAX_HOPS {
        let target = schema.get("$ref").and_then(Value::as_str);
        let target = target.and_then(pointer::of_reference);
        match target.and_then(|target| document.pointer(&target)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Whether it is plain that no value satisfies both schemas.
fn are_disjoint(document: &Value, a: &Value, b: &Value) -> bool {
    if a == &Value::Bool(false) || b == &Value::Bool(false) {
        return true;
    }
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return false;
    };
    types(a).is_disjoint(&types(b)) || literals_differ(a, b) || {
        let both = [a, b].map(|schema| types(schema) == BTreeSet::from(["object"]));
        both == [true, true] && tags_differ(document, a, b)
    }
}

/// Types of the values that may satisfy a schema; `number` stands for integers too.
fn types(schema: &Map<String, Value>) -> BTreeSet<&str> {
    let name = |name: &'_ str| TYPES.into_iter().find(|known| *known == name);
    let named: Vec<&str> = match (schema.get("type"), literals(schema)) {
        (Some(Value::String(one)), _) => name(one).into_iter().collect(),
        (Some(Value::Array(names)), _) => {
            let names = names.iter().filter_map(Value::as_str);
            names.filter_map(name).collect()
        }
        (_, Some(literals)) => literals.iter().map(type_of).collect(),
        _ => TYPES.to_vec(),
    };
    let mut types: BTreeSet<&str> = named.into_iter().collect();
    if types.remove("integer") {
        types.insert("number");
    }
    types
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The only values that may satisfy a schema, if it lists them.
fn literals(schema: &Map<String, Value>) -> Option<&[Value]> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values),
        _ => None,
    }
}

/// Whether both schemas list their values, and none is on both lists.
fn literals_differ(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let (Some(a), Some(b)) = (literals(a), literals(b)) else {
        return false;
    };
    // Lists and objects may hold numbers that are equal and written differently.
    let simple = |value: &Value| !value.is_array() && !value.is_object();
    let equal = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    a.iter().chain(b).all(simple) && !a.iter().any(|a| b.iter().any(|b| equal(a, b)))
}

/// Whether two schemas of objects require a property that cannot have the same value in both.
fn tags_differ(document: &Value, a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let required = |schema: &Map<String, Value>, name: &Value| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.contains(name))
    };
    let property = |schema: &Map<String, Value>, name: &Value| {
        let property = schema.get("properties")?.get(name.as_str()?)?;
        resolve(document, property).as_object().cloned()
    };
    let names = a.get("required").and_then(Value::as_array);
    let mut common = names.into_iter().flatten().filter(|name| required(b, name));
    common.any(|name| match (property(a, name), property(b, name)) {
        (Some(a), Some(b)) => literals_differ(&a, &b),
        _ => false,
    })
}
