//! JSON schemas: what llguidance honours, and where a schema asks for more.
//!
//! llguidance ignores some keywords and approximates others. This module walks the subschemas that
//! an output can depend on, refuses what could let an invalid output through, and drops
//! annotations. What is left, llguidance honours or refuses; [`Schema::locate`] finds where.
//!
//! Refused: `not`, `if`, `contains`, `uniqueItems`, `propertyNames`, `dependentRequired`,
//! `dependentSchemas`, `dependencies`, `unevaluatedItems`, `unevaluatedProperties`, `$dynamicRef`,
//! `$recursiveRef`, unless they say nothing (`uniqueItems: false`); `$ref` other than `#` and
//! `#/…`; `$id` below the root; `minProperties` that repeated names could satisfy; numbers that an
//! f64 does not hold; `oneOf` whose branches may overlap; schemas that no finite JSON satisfies.
//! Unknown keywords and formats are annotations, as JSON Schema says.

mod keywords;
mod literals;
mod pointer;
mod walk;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use self::walk::Walk;
use super::GrammarError;
use super::error::one_line;

/// Attempts to find the subschema that llguidance refuses.
const MAX_ATTEMPTS: usize = 300;

/// A schema that asks for nothing that llguidance would ignore.
pub struct Schema {
    value: Value,
    /// Subschemas by pointer, each with those that it applies.
    children: BTreeMap<String, Vec<String>>,
}

impl Schema {
    /// Checks a schema.
    ///
    /// # Errors
    /// It is malformed, too deep, or cannot be honoured.
    pub fn new(schema: &Value) -> Result<Self, GrammarError> {
        let root = match schema {
            Value::Bool(true) => Value::Object(Map::new()),
            Value::Bool(false) => return Err(GrammarError::schema("", "it allows no output")),
            schema => schema.clone(),
        };
        let mut walk = Walk::new(root);
        walk.run()?;
        Ok(Self {
            value: walk.document,
            children: walk.children,
        })
    }

    /// The schema to compile, an object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The error of a schema that cannot be compiled because of `error`, at the deepest subschema
    /// that alone has the same cause. `error_of` compiles a schema.
    pub fn locate(
        &self,
        error: anyhow::Error,
        error_of: impl Fn(Value) -> Option<anyhow::Error>,
    ) -> GrammarError {
        let document = self.moved();
        let cause = error.root_cause().to_string();
        let mut attempts = 0;
        let mut same_error = |pointer: &str| {
            attempts += 1;
            // `false` is unsatisfiable by itself, but what applies it may not be.
            let is_object = self.value.pointer(pointer).is_some_and(Value::is_object);
            if attempts > MAX_ATTEMPTS || !is_object {
                return None;
            }
            let part = json!({"$ref": format!("#/schema{pointer}"), "schema": document});
            error_of(part).filter(|error| error.root_cause().to_string() == cause)
        };
        let (mut place, mut error) = (String::new(), error);
        let mut seen = vec![String::new()];
        loop {
            let children = self.children.get(&place).into_iter().flatten();
            let mut unseen = children.filter(|child| !seen.contains(child));
            let Some((child, deeper)) =
                unseen.find_map(|child| Some((child.clone(), same_error(child)?)))
            else {
                return GrammarError::schema(place, one_line(&error.to_string()));
            };
            seen.push(child.clone());
            (place, error) = (child, deeper);
        }
    }

    /// The document with the references of its subschemas as they are below `/schema`.
    fn moved(&self) -> Value {
        let mut document = self.value.clone();
        for pointer in self.children.keys() {
            let subschema = document.pointer_mut(pointer);
            if let Some(Value::String(reference)) = subschema.and_then(|s| s.get_mut("$ref")) {
                *reference = format!("#/schema{}", &reference[1..]);
            }
        }
        document
    }
}
