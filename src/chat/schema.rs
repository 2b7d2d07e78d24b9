//! What a tool's schema says about one parameter. Dialects that write values without quotes need
//! it to tell `"42"` from `42`.

use serde_json::{Map, Value};

/// JSON types that a parameter may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Types(Option<Vec<String>>);

impl Types {
    /// The types of a parameter. One that the schema does not name is a text.
    pub fn of(parameters: &Value, name: &str) -> Self {
        match parameters["properties"].get(name) {
            Some(schema) => Self(declared(parameters, schema)),
            None => Self(Some(vec!["string".to_owned()])),
        }
    }

    /// Whether every value is a text.
    pub fn only_text(&self) -> bool {
        matches!(&self.0, Some(types) if types.iter().all(|kind| kind == "string"))
    }

    /// Whether a value may be a text by its declaration.
    pub fn name_text(&self) -> bool {
        let types = self.0.as_ref();
        types.is_some_and(|types| types.iter().any(|kind| kind == "string"))
    }

    /// The value of a raw text: JSON or a literal of Python, if its type is allowed; else the text.
    pub fn read(&self, raw: &str) -> Value {
        let value = match raw.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            json => match serde_json::from_str(json) {
                Ok(value) => value,
                Err(_) => return Value::from(raw),
            },
        };
        if self.allows(&value) {
            value
        } else {
            Value::from(raw)
        }
    }

    fn allows(&self, value: &Value) -> bool {
        let Some(types) = &self.0 else {
            return true;
        };
        let matches = |kind: &str| match value {
            Value::Null => kind == "null",
            Value::Bool(_) => kind == "boolean",
            Value::Number(number) => kind == "number" || (kind == "integer" && !number.is_f64()),
            Value::String(_) => kind == "string",
            Value::Array(_) => kind == "array",
            Value::Object(_) => kind == "object",
        };
        // A value of another type than declared is still better than its text, unless a text may
        // stand there.
        types.iter().any(|kind| matches(kind)) || !self.name_text()
    }
}

/// Most references that are followed from one schema.
const MAX_REFERENCES: usize = 16;

/// The schema that a reference points at, also through an `allOf` of one.
pub(super) fn resolved<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..MAX_REFERENCES {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let target = match (reference, schema.get("allOf")) {
            (Some(reference), _) => reference
                .strip_prefix('#')
                .and_then(|pointer| root.pointer(pointer)),
            (None, Some(Value::Array(all))) if all.len() == 1 => all.first(),
            _ => None,
        };
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// The types that a schema allows; `None` if it does not say.
fn declared(root: &Value, schema: &Value) -> Option<Vec<String>> {
    declared_within(root, schema, MAX_REFERENCES)
}

fn declared_within(root: &Value, schema: &Value, depth: usize) -> Option<Vec<String>> {
    let schema = resolved(root, schema).as_object()?;
    match schema.get("type") {
        Some(Value::String(kind)) => return Some(vec![kind.clone()]),
        Some(Value::Array(kinds)) => {
            let names = kinds.iter().filter_map(Value::as_str);
            return Some(names.map(str::to_owned).collect());
        }
        _ => {}
    }
    if let Some(values) = listed(schema) {
        let kinds = values.into_iter().map(|value| kind(value).to_owned());
        return Some(kinds.collect());
    }
    let any = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key))?;
    let mut kinds = Vec::new();
    for alternative in any.as_array()? {
        kinds.extend(declared_within(root, alternative, depth.checked_sub(1)?)?);
    }
    Some(kinds)
}

/// The values of `enum` or `const`.
pub(super) fn listed(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(values)), _) => Some(values.iter().collect()),
        (_, Some(value)) => Some(vec![value]),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_raw_text_is_read_by_its_schema() {
        let parameters = json!({"properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "word": {"enum": ["1", "2"]},
            "any": {},
            "referred": {"allOf": [{"$ref": "#/$defs/count"}], "default": 1},
            "endless": {"$ref": "#/$defs/endless"},
            "nested": {"$ref": "#/$defs/nested"},
        }, "$defs": {
            "count": {"type": "integer"},
            "endless": {"$ref": "#/$defs/endless"},
            "nested": {"anyOf": [{"$ref": "#/$defs/nested"}]},
        }});
        let read = |name: &str, raw: &str| Types::of(&parameters, name).read(raw);
        assert!(Types::of(&parameters, "text").only_text());
        assert!(Types::of(&parameters, "word").only_text());
        assert!(Types::of(&parameters, "unknown").only_text());
        assert!(!Types::of(&parameters, "maybe").only_text());
        for (name, raw, value) in [
            ("count", "42", json!(42)),
            ("count", "many", json!("many")),
            ("count", " 4.5\n", json!(4.5)),
            ("maybe", "42", json!("42")),
            ("maybe", "None", json!(null)),
            ("either", "null", json!(null)),
            ("referred", "42", json!(42)),
            ("endless", "x", json!("x")),
            ("nested", "42", json!(42)),
            ("any", "True", json!(true)),
            ("any", "{\"a\": [1]}", json!({"a": [1]})),
            ("any", "{a}", json!("{a}")),
        ] {
            assert_eq!(read(name, raw), value, "{name}: {raw}");
        }
    }
}
