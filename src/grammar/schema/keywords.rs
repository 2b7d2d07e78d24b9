//! The keywords of JSON Schema by what becomes of them.

use serde_json::Value;

/// What a keyword means for constrained decoding.
pub enum Keyword {
    /// Its value is a subschema.
    Subschema,
    /// Its value is a list of subschemas.
    List,
    /// The values of its members are subschemas.
    Map,
    /// Its value is a subschema or a list of subschemas.
    SubschemaOrList,
    /// Holds for the value itself, by other values than subschemas.
    Assertion,
    /// Place of subschemas that are used only if something refers to them.
    Definitions,
    /// A reference.
    Reference,
    /// Cannot be honoured.
    Refused,
    /// Anything else: says nothing about an output.
    Annotation,
}

impl Keyword {
    /// The keyword of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "additionalProperties" | "additionalItems" => Self::Subschema,
            "items" => Self::SubschemaOrList,
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => Self::List,
            "properties" | "patternProperties" => Self::Map,
            "$defs" | "definitions" => Self::Definitions,
            "$ref" => Self::Reference,
            "const" | "enum" | "type" | "minItems" | "maxItems" | "required" | "minProperties"
            | "maxProperties" | "minLength" | "maxLength" | "pattern" | "format" | "minimum"
            | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => Self::Assertion,
            "not"
            | "if"
            | "contains"
            | "uniqueItems"
            | "propertyNames"
            | "dependentRequired"
            | "dependentSchemas"
            | "dependencies"
            | "unevaluatedItems"
            | "unevaluatedProperties"
            | "$dynamicRef"
            | "$recursiveRef" => Self::Refused,
            _ => Self::Annotation,
        }
    }
}

/// Whether a refused keyword says nothing with this value, beside the others of its schema.
pub fn says_nothing(keyword: &str, value: &Value, schema: &serde_json::Map<String, Value>) -> bool {
    let is_empty = |value: &Value| {
        value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    match keyword {
        "not" | "uniqueItems" => value == &Value::Bool(false),
        "propertyNames" | "unevaluatedItems" | "unevaluatedProperties" => {
            value == &Value::Bool(true) || is_empty(value)
        }
        "contains" => {
            schema.get("minContains") == Some(&Value::from(0)) && {
                !schema.contains_key("maxContains")
            }
        }
        "if" => !schema.contains_key("then") && !schema.contains_key("else"),
        "dependentRequired" | "dependentSchemas" | "dependencies" => is_empty(value),
        _ => false,
    }
}

/// Names of types.
pub const TYPES: [&str; 7] = [
    "null", "boolean", "number", "integer", "string", "array", "object",
];
