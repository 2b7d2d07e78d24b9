//! Fields that constrain an answer: `response_format`, `structured_outputs` and `guided_*`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::conversation::Conversation;
use super::error::ApiError;
use super::fields::{Fields, from_value};
use super::state::AppState;
use crate::chat::{ForcedCall, PromptEnd, forced_call};
use crate::grammar::{CompiledGrammar, Grammar, GrammarError};

/// A grammar that a request asks for, and the field that it comes from.
#[derive(Debug)]
pub struct Constrained {
    param: String,
    grammar: Grammar,
}

impl Constrained {
    /// Takes the fields; `None` if the answer is free.
    ///
    /// # Errors
    /// A field is malformed, or several constrain the answer.
    pub fn take(fields: &mut Fields<'_>) -> Result<Option<Self>, ApiError> {
        let mut found = Vec::new();
        found.extend(take_response_format(fields)?);
        found.extend(take_structured_outputs(fields)?);
        for name in ["json", "regex", "choice", "grammar"] {
            let param = format!("guided_{name}");
            if let Some(value) = fields.take::<Value>(&param)? {
                found.push(Self::of(name, param, value)?);
            }
        }
        if let [first, second, ..] = &found[..] {
            let problem = format!("and `{}` both constrain the answer; send one", second.param);
            return Err(ApiError::invalid(&first.param, problem));
        }
        Ok(found.pop())
    }

    /// The grammar of this kind, by vLLM's word for it.
    fn of(kind: &str, param: String, value: Value) -> Result<Self, ApiError> {
        let grammar = match kind {
            "json" => Grammar::JsonSchema(schema(&param, value)?),
            "regex" => Grammar::Regex(from_value(&param, value)?),
            "choice" => Grammar::Choice(from_value(&param, value)?),
            _ => Grammar::Lark(from_value(&param, value)?),
        };
        Ok(Self { param, grammar })
    }

    /// Compiles the grammar. Blocks.
    ///
    /// # Errors
    /// The grammar is malformed, or cannot be honoured.
    pub fn compile(&self, state: &AppState) -> Result<Arc<CompiledGrammar>, ApiError> {
        compile(&self.grammar, &self.param, state)
    }

    /// The field that asks for the grammar.
    pub fn param(&self) -> &str {
        &self.param
    }
}

/// Compiles the grammar of an answer that calls tools as the conversation demands. Blocks.
///
/// # Errors
/// The base's calls cannot be parsed, or a tool's schema cannot be honoured.
pub fn compile_forced_call(
    conversation: &Conversation,
    prompt_end: PromptEnd,
    state: &AppState,
) -> Result<Arc<CompiledGrammar>, ApiError> {
    const PARAM: &str = "tool_choice";
    let Some(dialect) = state.format.tools else {
        return Err(ApiError::Unsupported {
            param: PARAM.to_owned(),
            reason: "the form of the base's calls is not known; start the server with \
                     --tool-call-parser",
        });
    };
    let tools = &conversation.tools;
    let options = ForcedCall {
        tools: tools.callable(),
        choice: &tools.choice,
        parallel_tool_calls: tools.parallel,
        reasoning: state.format.reasoning,
        prompt_end,
        special_token: &|text| state.text.special_token(text),
    };
    let grammar = Grammar::Lark(forced_call(dialect, &options));
    compile(&grammar, "tools", state)
}

fn compile(
    grammar: &Grammar,
    param: &str,
    state: &AppState,
) -> Result<Arc<CompiledGrammar>, ApiError> {
    let grammars = state.grammars()?;
    grammars.compile(grammar).map_err(|error| {
        let message = format!("`{param}` cannot be used: {error}");
        let param = match error {
            GrammarError::Schema { pointer, .. } => format!("{param}{pointer}"),
            _ => param.to_owned(),
        };
        ApiError::Invalid { message, param }
    })
}

/// Takes OpenAI's `response_format`.
fn take_response_format(fields: &mut Fields<'_>) -> Result<Option<Constrained>, ApiError> {
    const NAME: &str = "response_format";
    #[derive(Deserialize)]
    struct Format {
        r#type: String,
        json_schema: Option<Value>,
        /// llama.cpp's, beside `json_object`.
        schema: Option<Value>,
    }
    let Some(format) = fields.take::<Format>(NAME)? else {
        return Ok(None);
    };
    let (param, grammar) = match (&*format.r#type, format.schema, format.json_schema) {
        ("text", ..) => return Ok(None),
        ("json_object", None, _) => (NAME.to_owned(), Grammar::JsonObject),
        ("json_object", Some(found), _) => {
            let param = format!("{NAME}.schema");
            let grammar = Grammar::JsonSchema(schema(&param, found)?);
            (param, grammar)
        }
        ("json_schema", _, Some(mut wrapper)) => {
            let param = format!("{NAME}.json_schema.schema");
            let found = wrapper.get_mut("schema").map(Value::take);
            let found = found.ok_or_else(|| ApiError::invalid(&param, "is missing"))?;
            let grammar = Grammar::JsonSchema(schema(&param, found)?);
            (param, grammar)
        }
        ("json_schema", _, None) => {
            let param = format!("{NAME}.json_schema");
            return Err(ApiError::invalid(param, "is missing"));
        }
        (other, ..) => {
            let problem = format!(
                "is `{}`; expected text, json_object or json_schema",
                super::fields::brief(other.to_owned())
            );
            return Err(ApiError::invalid(format!("{NAME}.type"), problem));
        }
    };
    Ok(Some(Constrained { param, grammar }))
}

/// Takes vLLM's `structured_outputs`: an object of one kind of grammar.
fn take_structured_outputs(fields: &mut Fields<'_>) -> Result<Option<Constrained>, ApiError> {
    const NAME: &str = "structured_outputs";
    /// vLLM's kinds and switches.
    const MAX_ENTRIES: usize = 16;
    let Some(entries) = fields.take_map::<Box<RawValue>>(NAME, MAX_ENTRIES)? else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for (kind, raw) in entries {
        let param = format!("{NAME}.{kind}");
        let value: Value = serde_json::from_str(raw.get())
            .map_err(|error| ApiError::invalid(&param, format!("is malformed: {error}")))?;
        match (&*kind, &value) {
            (_, Value::Null) | ("json_object" | "disable_any_whitespace", Value::Bool(false)) => {}
            ("json_object", Value::Bool(true)) => found.push(Constrained {
                param,
                grammar: Grammar::JsonObject,
            }),
            ("json" | "regex" | "choice" | "grammar", _) => {
                found.push(Constrained::of(&kind, param, value)?);
            }
            ("backend" | "_backend", _) => {}
            _ => {
                let reason = "expected json, json_object, regex, choice or grammar";
                return Err(ApiError::Unsupported { param, reason });
            }
        }
    }
    match found.len() {
        1 => Ok(found.pop()),
        count => {
            let problem = format!("has {count} grammars, expected one");
            Err(ApiError::invalid(NAME, problem))
        }
    }
}

/// A schema, or its JSON text.
fn schema(param: &str, value: Value) -> Result<Value, ApiError> {
    match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| {
            ApiError::invalid(param, format!("is text that is not JSON: {error}"))
        }),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(body: &Value) -> Result<Option<(String, Grammar)>, String> {
        let body = body.to_string();
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let taken = Constrained::take(&mut fields).map_err(|error| error.to_string())?;
        assert_eq!(fields.names().count(), 0);
        Ok(taken.map(|taken| (taken.param, taken.grammar)))
    }

    #[test]
    fn every_form_of_a_grammar_is_taken() {
        let schema = json!({"type": "integer"});
        let wrapped = json!({"name": "n", "schema": &schema, "strict": true});
        let texts = Grammar::Choice(vec!["a".to_owned(), "b".to_owned()]);
        let regex = Grammar::Regex("a+".to_owned());
        let lark = Grammar::Lark("start: \"a\"".to_owned());
        for (body, param, grammar) in [
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                Grammar::JsonObject,
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": &schema}}),
                "response_format.schema",
                Grammar::JsonSchema(schema.clone()),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": wrapped}}),
                "response_format.json_schema.schema",
                Grammar::JsonSchema(schema.clone()),
            ),
            (
                json!({"guided_json": schema.to_string()}),
                "guided_json",
                Grammar::JsonSchema(schema.clone()),
            ),
            (json!({"guided_regex": "a+"}), "guided_regex", regex.clone()),
            (
                json!({"guided_choice": ["a", "b"]}),
                "guided_choice",
                texts.clone(),
            ),
            (
                json!({"guided_grammar": "start: \"a\""}),
                "guided_grammar",
                lark.clone(),
            ),
            (
                json!({"structured_outputs": {"json": &schema, "regex": null}}),
                "structured_outputs.json",
                Grammar::JsonSchema(schema.clone()),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                "structured_outputs.json_object",
                Grammar::JsonObject,
            ),
            (
                json!({"structured_outputs": {"regex": "a+"}}),
                "structured_outputs.regex",
                regex,
            ),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                "structured_outputs.choice",
                texts,
            ),
            (
                json!({"structured_outputs": {"grammar": "start: \"a\""}}),
                "structured_outputs.grammar",
                lark,
            ),
        ] {
            assert_eq!(take(&body), Ok(Some((param.to_owned(), grammar))), "{body}");
        }
        assert_eq!(
            take(&json!({"response_format": {"type": "text"}})),
            Ok(None)
        );
        assert_eq!(take(&json!({"response_format": null})), Ok(None));
    }

    #[test]
    fn a_malformed_grammar_is_refused_by_field() {
        for (body, field) in [
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"response_format": "json"}), "response_format"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": 1}), "guided_regex"),
            (json!({"guided_choice": "a"}), "guided_choice"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (
                json!({"structured_outputs": {"regex": "a", "json_object": true}}),
                "structured_outputs",
            ),
            (
                json!({"structured_outputs": {"structural_tag": {}}}),
                "structured_outputs.structural_tag",
            ),
            (
                json!({"guided_regex": "a", "guided_choice": ["a"]}),
                "guided_regex",
            ),
        ] {
            let error = take(&body).unwrap_err();
            assert!(error.starts_with(&format!("`{field}` ")), "{error}");
        }
    }
}
