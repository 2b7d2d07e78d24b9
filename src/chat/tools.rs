//! The fields `tools` and `tool_choice` of a request, validated.

use serde_json::{Map, Value, json};

/// Most tools of a request, as in OpenAI's API.
pub const MAX_TOOLS: usize = 128;

/// Most characters of a tool's name.
const MAX_NAME: usize = 64;

/// What is wrong with a field of the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{param}` {problem}")]
pub struct FieldError {
    /// Path of the field: `tools[2].function.name`.
    pub param: String,
    pub problem: String,
}

impl FieldError {
    fn new(param: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            param: param.into(),
            problem: problem.into(),
        }
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments, which are an object. Without one, the arguments are empty.
    pub parameters: Value,
    /// Whether the arguments must satisfy the schema.
    pub strict: bool,
    /// The tool as the request has it, for the chat template.
    pub raw: Value,
}

/// Which tools the model is to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// The one of this name.
    Named(String),
}

/// Validates `tools`. Null and an empty list are no tools.
///
/// # Errors
/// The first malformed field.
pub fn parse_tools(value: Value) -> Result<Vec<Tool>, FieldError> {
    let items = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        _ => return Err(FieldError::new("tools", "must be a list")),
    };
    if items.len() > MAX_TOOLS {
        let problem = format!("has {} tools; at most {MAX_TOOLS} are allowed", items.len());
        return Err(FieldError::new("tools", problem));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        let tool = parse_tool(&format!("tools[{i}]"), item)?;
        if let Some(first) = tools.iter().position(|other| other.name == tool.name) {
            let problem = format!("is `{}`, the name of tools[{first}]", tool.name);
            return Err(FieldError::new(
                format!("tools[{i}].function.name"),
                problem,
            ));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn parse_tool(param: &str, raw: Value) -> Result<Tool, FieldError> {
    let Some(tool) = raw.as_object() else {
        return Err(FieldError::new(param, "must be an object"));
    };
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(FieldError::new(
            format!("{param}.type"),
            "must be `function`",
        ));
    }
    let param = format!("{param}.function");
    let Some(function) = tool.get("function").and_then(Value::as_object) else {
        return Err(FieldError::new(param, "must be an object"));
    };
    let name = parse_name(&format!("{param}.name"), function.get("name"))?;
    let description = match function.get("description") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => {
            let param = format!("{param}.description");
            return Err(FieldError::new(param, "must be a string"));
        }
    };
    let strict = match function.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => {
            let param = format!("{param}.strict");
            return Err(FieldError::new(param, "must be true or false"));
        }
    };
    let parameters = parse_parameters(&format!("{param}.parameters"), function)?;
    Ok(Tool {
        name,
        description,
        parameters,
        strict,
        raw,
    })
}

fn parse_name(param: &str, name: Option<&Value>) -> Result<String, FieldError> {
    let Some(name) = name.and_then(Value::as_str) else {
        return Err(FieldError::new(param, "must be a string"));
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        let problem = "must have 1 to 64 of the characters a-z, A-Z, 0-9, `_` and `-`";
        return Err(FieldError::new(param, problem));
    }
    Ok(name.to_owned())
}

fn parse_parameters(param: &str, function: &Map<String, Value>) -> Result<Value, FieldError> {
    let schema = match function.get("parameters") {
        None | Some(Value::Null) => return Ok(no_parameters()),
        Some(Value::Object(schema)) if schema.is_empty() => return Ok(no_parameters()),
        Some(Value::Object(schema)) => schema,
        Some(_) => {
            let problem = "must be the JSON schema of an object";
            return Err(FieldError::new(param, problem));
        }
    };
    match schema.get("type") {
        Some(Value::String(kind)) if kind == "object" => Ok(Value::Object(schema.clone())),
        // Arguments are an object anyway.
        None => {
            let mut schema = schema.clone();
            schema.insert("type".to_owned(), json!("object"));
            Ok(Value::Object(schema))
        }
        Some(_) => Err(FieldError::new(
            format!("{param}.type"),
            "must be `object`: the arguments of a call are an object",
        )),
    }
}

/// Schema of an empty object.
fn no_parameters() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

/// Validates `tool_choice`, whose default is `auto`.
///
/// # Errors
/// A malformed choice, or one that these tools do not allow.
pub fn parse_tool_choice(value: Value, tools: &[Tool]) -> Result<ToolChoice, FieldError> {
    const PARAM: &str = "tool_choice";
    let choice = match &value {
        Value::Null => ToolChoice::Auto,
        Value::String(text) => match text.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => {
                let problem =
                    format!("is `{text}`; expected auto, none, required or a named function");
                return Err(FieldError::new(PARAM, problem));
            }
        },
        Value::Object(choice) if choice.get("type") == Some(&json!("function")) => {
            const NAME: &str = "tool_choice.function.name";
            let name = parse_name(NAME, value["function"].get("name"))?;
            if !tools.is_empty() && tools.iter().all(|tool| tool.name != name) {
                let problem = format!("is `{name}`, which is not among `tools`");
                return Err(FieldError::new(NAME, problem));
            }
            ToolChoice::Named(name)
        }
        Value::Object(_) => {
            return Err(FieldError::new("tool_choice.type", "must be `function`"));
        }
        _ => {
            let problem = "must be auto, none, required or an object that names a function";
            return Err(FieldError::new(PARAM, problem));
        }
    };
    if tools.is_empty() && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(FieldError::new(PARAM, "is only allowed beside `tools`"));
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn tools_get_their_defaults_and_keep_their_raw_form() {
        let raw = json!({"type": "function", "function": {
            "name": "get-time_2", "description": "d", "strict": true,
            "parameters": {"properties": {"a": {"type": "string"}}},
        }});
        let tools = parse_tools(json!([raw.clone(), tool("b")])).unwrap();
        assert_eq!(tools[0].name, "get-time_2");
        assert_eq!(tools[0].description.as_deref(), Some("d"));
        assert!(tools[0].strict && !tools[1].strict);
        assert_eq!(tools[0].parameters["type"], "object");
        assert_eq!(tools[0].raw, raw);
        assert_eq!(tools[1].parameters, no_parameters());
        assert_eq!(parse_tools(Value::Null), Ok(Vec::new()));
    }

    #[test]
    fn malformed_tools_are_refused_by_field() {
        let with = |key: &str, value: Value| {
            let mut tool = tool("a");
            tool["function"][key] = value;
            json!([tool])
        };
        for (tools, param) in [
            (json!({}), "tools"),
            (json!(vec![tool("a"); 129]), "tools"),
            (json!([1]), "tools[0]"),
            (json!([{"type": "code"}]), "tools[0].type"),
            (json!([{"type": "function"}]), "tools[0].function"),
            (json!([tool("a"), tool("a")]), "tools[1].function.name"),
            (json!([tool("a b")]), "tools[0].function.name"),
            (json!([tool(&"a".repeat(65))]), "tools[0].function.name"),
            (
                with("description", json!(1)),
                "tools[0].function.description",
            ),
            (with("strict", json!("yes")), "tools[0].function.strict"),
            (
                with("parameters", json!([])),
                "tools[0].function.parameters",
            ),
            (
                with("parameters", json!({"type": "array"})),
                "tools[0].function.parameters.type",
            ),
        ] {
            assert_eq!(
                parse_tools(tools.clone()).unwrap_err().param,
                param,
                "{tools}"
            );
        }
    }

    #[test]
    fn a_choice_is_one_of_four() {
        let tools = parse_tools(json!([tool("a")])).unwrap();
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        for (value, choice) in [
            (Value::Null, ToolChoice::Auto),
            (json!("none"), ToolChoice::None),
            (json!("required"), ToolChoice::Required),
            (named("a"), ToolChoice::Named("a".to_owned())),
        ] {
            assert_eq!(parse_tool_choice(value, &tools), Ok(choice));
        }
        for (value, tools, param) in [
            (json!("any"), &tools[..], "tool_choice"),
            (json!(1), &tools[..], "tool_choice"),
            (json!({"type": "custom"}), &tools[..], "tool_choice.type"),
            (named("b"), &tools[..], "tool_choice.function.name"),
            (named("a"), &[], "tool_choice"),
            (json!("required"), &[], "tool_choice"),
        ] {
            let error = parse_tool_choice(value.clone(), tools).unwrap_err();
            assert_eq!(error.param, param, "{value}");
        }
    }
}
