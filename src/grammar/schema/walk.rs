//! The walk over the subschemas that an output can depend on.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::super::GrammarError;
use super::keywords::{Keyword, TYPES, says_nothing};
use super::{formats, literals, pointer};

/// Maximum nesting of subschemas.
const MAX_DEPTH: usize = 64;
/// Maximum number of subschemas.
const MAX_SUBSCHEMAS: usize = 10_000;
/// Maximum number of properties of one object.
const MAX_PROPERTIES: usize = 1000;
/// Maximum number of patterns of one object, which are compared with each other.
const MAX_PATTERNS: usize = 40;
/// Maximum number of branches of one union, which are compared too.
const MAX_BRANCHES: usize = 500;
/// Maximum `minItems`, `maxItems`, `minLength`, `maxLength` and the like.
const MAX_COUNT: u64 = 100_000;

/// A schema, and how far it was walked.
pub struct Walk {
    /// The schema. Subschemas that were walked have no annotations left.
    pub document: Value,
    /// Subschemas that were walked, each with those that it applies.
    pub children: BTreeMap<String, Vec<String>>,
    /// Pointers of subschemas to walk, with their depth.
    pending: Vec<(String, usize)>,
    /// Pointers that were pending once.
    found: BTreeSet<String>,
    /// Pointers to what references point to, and to what holds it: unknown keywords there are kept.
    referred: BTreeSet<String>,
}

impl Walk {
    /// A walk that begins at the root.
    pub fn new(document: Value) -> Self {
        let mut referred = BTreeSet::new();
        add_targets(&document, &mut referred);
        Self {
            referred,
            document,
            children: BTreeMap::new(),
            pending: vec![(String::new(), 0)],
            found: BTreeSet::from([String::new()]),
        }
    }

    /// Walks all subschemas that the root applies.
    ///
    /// # Errors
    /// The first that cannot be honoured.
    pub fn run(&mut self) -> Result<(), GrammarError> {
        while let Some((place, depth)) = self.pending.pop() {
            let children = self.subschema(&place)?;
            for child in &children {
                if self.found.insert(child.clone()) {
                    self.pending.push((child.clone(), depth + 1));
                }
            }
            if depth > MAX_DEPTH {
                let problem = format!("subschemas nest deeper than {MAX_DEPTH}");
                return Err(GrammarError::schema(place, problem));
            }
            if self.found.len() > MAX_SUBSCHEMAS {
                let problem = format!("it has more than {MAX_SUBSCHEMAS} subschemas");
                return Err(GrammarError::schema("", problem));
            }
            self.children.insert(place, children);
        }
        Ok(())
    }

    /// Checks one subschema and drops what says nothing. Returns the subschemas that it applies.
    fn subschema(&mut self, place: &str) -> Result<Vec<String>, GrammarError> {
        let is_root = place.is_empty();
        let schema = match self.document.pointer_mut(place) {
            Some(Value::Object(schema)) => schema,
            Some(Value::Bool(_)) => return Ok(Vec::new()),
            _ => {
                let problem = "expected a schema: an object or a boolean";
                return Err(GrammarError::schema(place, problem));
            }
        };
        let mut children = Vec::new();
        let mut dropped = Vec::new();
        for (name, value) in schema.iter() {
            let at = pointer::child(place, name);
            match Keyword::of(name) {
                Keyword::Subschema => children.push(at),
                Keyword::SubschemaOrList if !value.is_array() => children.push(at),
                Keyword::List | Keyword::SubschemaOrList => {
                    let items = value.as_array().map_or(0, Vec::len);
                    expect(&at, value.is_array(), "an array of schemas")?;
                    at_most(&at, items, MAX_BRANCHES)?;
                    children.extend((0..items).map(|i| format!("{at}/{i}")));
                }
                Keyword::Map => {
                    let members = members(&at, value)?;
                    if name == "patternProperties" {
                        at_most(&at, members.len(), MAX_PATTERNS)?;
                    }
                    children.extend(members.keys().map(|name| pointer::child(&at, name)));
                }
                Keyword::Reference => children.push(reference(&at, value)?),
                Keyword::Assertion if is_unknown_format(name, value) => dropped.push(name.clone()),
                Keyword::Assertion => assertion(&at, name, value, schema)?,
                Keyword::Refused if says_nothing(name, value, schema) => dropped.push(name.clone()),
                Keyword::Refused => {
                    let problem = format!("`{name}` is not supported");
                    return Err(GrammarError::schema(at, problem));
                }
                Keyword::Definitions => {}
                Keyword::Annotation => {
                    if name == "$id" && !is_root {
                        let problem = "`$id` is supported at the root only";
                        return Err(GrammarError::schema(at, problem));
                    }
                    if !self.referred.contains(&at) {
                        dropped.push(name.clone());
                    }
                }
            }
        }
        for name in dropped {
            schema.shift_remove(&name);
        }
        bound_integers(schema);
        spell_format(schema);
        Ok(children)
    }
}

/// Adds the pointers of all references in a value, and those to what holds their targets.
fn add_targets(value: &Value, targets: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let reference = members.get("$ref").and_then(Value::as_str);
            if let Some(target) = reference.and_then(pointer::of_reference) {
                let ends = target.match_indices('/').map(|(end, _)| end).skip(1);
                targets.extend(ends.map(|end| target[..end].to_owned()));
                targets.insert(target);
            }
            members
                .values()
                .for_each(|value| add_targets(value, targets));
        }
        Value::Array(items) => items.iter().for_each(|value| add_targets(value, targets)),
        _ => {}
    }
}

fn is_unknown_format(name: &str, value: &Value) -> bool {
    name == "format" && !formats::HONOURED.iter().any(|format| value == format)
}

/// Fails at `place` unless the condition holds.
fn expect(place: &str, holds: bool, what: &str) -> Result<(), GrammarError> {
    match holds {
        true => Ok(()),
        false => Err(GrammarError::schema(place, format!("expected {what}"))),
    }
}

/// Fails at `place` if it has more than `most` members.
fn at_most(place: &str, found: usize, most: usize) -> Result<(), GrammarError> {
    match found <= most {
        true => Ok(()),
        false => {
            let problem = format!("it has {found} members, at most {most} are allowed");
            Err(GrammarError::schema(place, problem))
        }
    }
}

/// The members of a map of subschemas.
fn members<'a>(place: &str, value: &'a Value) -> Result<&'a Map<String, Value>, GrammarError> {
    let members = value.as_object();
    let members = members.ok_or_else(|| GrammarError::schema(place, "expected an object"))?;
    at_most(place, members.len(), MAX_PROPERTIES)?;
    Ok(members)
}

/// The pointer that a reference stands for.
fn reference(place: &str, value: &Value) -> Result<String, GrammarError> {
    let target = value.as_str().and_then(pointer::of_reference);
    target.ok_or_else(|| {
        let problem = "only references within the schema are supported: `#` or `#/…`";
        GrammarError::schema(place, problem)
    })
}

/// Checks the value of an assertion.
fn assertion(
    place: &str,
    name: &str,
    value: &Value,
    schema: &Map<String, Value>,
) -> Result<(), GrammarError> {
    match name {
        "const" => literals::check(place, value),
        "enum" => {
            let values = value.as_array().filter(|values| !values.is_empty());
            expect(place, values.is_some(), "at least one value")?;
            literals::check(place, value)
        }
        "type" => {
            let known = |name: &Value| TYPES.iter().any(|known| name == known);
            let names = value.as_array();
            let names_are_known = names.map(|names| !names.is_empty() && names.iter().all(known));
            let what = "one or several of the types of JSON Schema";
            expect(place, names_are_known.unwrap_or_else(|| known(value)), what)
        }
        "required" => {
            let names = value.as_array();
            let are_names = names.is_some_and(|names| names.iter().all(Value::is_string));
            expect(place, are_names, "an array of names")?;
            let count = names.map_or(0, Vec::len);
            expect(place, count <= MAX_PROPERTIES, "fewer names")
        }
        "minProperties" => min_properties(place, value, schema),
        "minItems" | "maxItems" | "minLength" | "maxLength" | "maxProperties" => {
            count(place, value).map(|_| ())
        }
        "minimum" | "maximum" | "multipleOf" => {
            expect(place, value.is_number(), "a number")?;
            literals::check_number(place, value)
        }
        "exclusiveMinimum" | "exclusiveMaximum" => {
            expect(place, value.is_number() || value.is_boolean(), "a number")?;
            literals::check_number(place, value)
        }
        _ => expect(place, value.is_string(), "a string"),
    }
}

/// Replaces a format by its pattern, if it has one.
fn spell_format(schema: &mut Map<String, Value>) {
    let format = schema.get("format").and_then(Value::as_str);
    let Some(pattern) = format.and_then(formats::pattern) else {
        return;
    };
    schema.shift_remove("format");
    if !schema.contains_key("pattern") {
        schema.insert("pattern".to_owned(), pattern.into());
    } else if let Some(all) = schema.entry("allOf").or_insert(json!([])).as_array_mut() {
        all.push(json!({"pattern": pattern}));
    }
}

/// Bounds integers, and multiples of a number, to those that every reader of JSON takes exactly.
fn bound_integers(schema: &mut Map<String, Value>) {
    let has_type = |name: &str| match schema.get("type") {
        Some(Value::Array(names)) => names.iter().any(|found| found == name),
        found => found.is_some_and(|found| found == name),
    };
    let integers_only = has_type("integer") && !has_type("number");
    if !integers_only && !schema.contains_key("multipleOf") {
        return;
    }
    let largest = literals::INEXACT_FROM as i64 - 1;
    for (inclusive, exclusive, bound) in [
        ("minimum", "exclusiveMinimum", -largest),
        ("maximum", "exclusiveMaximum", largest),
    ] {
        let is_open = schema.get(exclusive).is_none_or(|value| !value.is_number());
        if is_open && !schema.contains_key(inclusive) {
            schema.insert(inclusive.to_owned(), bound.into());
        }
    }
}

/// A count within bounds.
fn count(place: &str, value: &Value) -> Result<u64, GrammarError> {
    let count = value.as_u64().filter(|&count| count <= MAX_COUNT);
    count.ok_or_else(|| {
        GrammarError::schema(place, format!("expected an integer from 0 to {MAX_COUNT}"))
    })
}

/// Checks `minProperties`: an output may repeat names that the schema does not list, and a repeated
/// name is one property.
fn min_properties(
    place: &str,
    value: &Value,
    schema: &Map<String, Value>,
) -> Result<(), GrammarError> {
    let required = schema.get("required").and_then(Value::as_array);
    let most = required.map_or(0, Vec::len) as u64 + 1;
    if count(place, value)? > most {
        let problem =
            format!("more than {most} properties, one more than are required, cannot be counted");
        return Err(GrammarError::schema(place, problem));
    }
    Ok(())
}
