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

mod exclusive;
mod finite;
mod formats;
mod keywords;
mod literals;
mod pointer;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use self::walk::Walk;
use super::GrammarError;
use super::error::one_line;

/// Attempts to find the subschema that llguidance refuses.
const MAX_ATTEMPTS: usize = 300;
/// Time after which the search for it ends where it is.
const MAX_SEARCH: Duration = Duration::from_secs(1);

/// A schema that asks for nothing that llguidance would ignore.
pub struct Schema {
    document: Value,
    /// Subschemas by pointer, each with those that it applies.
    children: BTreeMap<String, Vec<String>>,
    /// Subschemas whose `oneOf` llguidance is given as `anyOf`, since its branches exclude each
    /// other.
    exclusive: BTreeSet<String>,
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
        finite::check(&walk.document, &walk.children)?;
        Ok(Self {
            exclusive: exclusive::unions(&walk.document, walk.children.keys()),
            document: walk.document,
            children: walk.children,
        })
    }

    /// The schema that llguidance compiles, an object.
    pub fn to_compile(&self) -> Value {
        let mut document = self.document.clone();
        // Inner unions first, while the pointers to them hold.
        for place in self.exclusive.iter().rev() {
            if let Some(Value::Object(schema)) = document.pointer_mut(place) {
                let members = std::mem::take(schema).into_iter();
                let rename = |(name, value): (String, Value)| match name.as_str() {
                    "oneOf" => ("anyOf".to_owned(), value),
                    _ => (name, value),
                };
                *schema = members.map(rename).collect();
            }
        }
        document
    }

    /// Pointer to a subschema in what [`Self::to_compile`] returns.
    fn compiled_pointer(&self, place: &str) -> String {
        let (mut original, mut compiled) = (String::new(), String::new());
        for name in place.split('/').skip(1) {
            let renamed = name == "oneOf" && self.exclusive.contains(&original);
            compiled.push('/');
            compiled.push_str(if renamed { "anyOf" } else { name });
            original.push('/');
            original.push_str(name);
        }
        compiled
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
        let (start, mut attempts) = (Instant::now(), 0);
        let mut same_error = |place: &str| {
            attempts += 1;
            // `false` is unsatisfiable by itself, but what applies it may not be.
            let is_object = self.document.pointer(place).is_some_and(Value::is_object);
            if attempts > MAX_ATTEMPTS || start.elapsed() > MAX_SEARCH || !is_object {
                return None;
            }
            let reference = format!("#/schema{}", self.compiled_pointer(place));
            let part = json!({"$ref": reference, "schema": document});
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

    /// What [`Self::to_compile`] returns, with its references as they are below `/schema`.
    fn moved(&self) -> Value {
        let mut document = self.to_compile();
        for place in self.children.keys() {
            let subschema = document.pointer_mut(&self.compiled_pointer(place));
            if let Some(Value::String(reference)) = subschema.and_then(|s| s.get_mut("$ref")) {
                *reference = format!("#/schema{}", &reference[1..]);
            }
        }
        document
    }
}
