//! Grammars of arguments.

use serde_json::{Value, json};

use super::literal;
use crate::chat::schema::{Types, listed, resolved};
use crate::chat::tools::Tool;

/// One parameter of a tool.
pub(super) struct Parameter {
    name: String,
    is_required: bool,
    /// Schema of the value, whole by itself.
    schema: Value,
    types: Types,
    /// The texts that the value is one of, if it is declared so.
    texts: Option<Vec<String>>,
}

/// The declared parameters of a tool, in order.
pub(super) fn parameters(tool: &Tool) -> Vec<Parameter> {
    let root = &tool.parameters;
    let required = root["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|n| n == name));
    let properties = root["properties"].as_object();
    let declared = properties.into_iter().flatten().map(|(name, schema)| {
        let texts = texts(resolved(root, schema));
        let mut schema = schema.clone();
        // What references point at.
        for key in ["$defs", "definitions"] {
            if let (Value::Object(own), Some(definitions)) = (&mut schema, root.get(key)) {
                own.entry(key).or_insert_with(|| definitions.clone());
            }
        }
        Parameter {
            name: name.clone(),
            is_required: is_required(name),
            schema: json_schema(schema, tool.strict),
            types: Types::of(root, name),
            texts,
        }
    });
    declared.collect()
}

/// A schema with the white space of Python's `json.dumps`, which models were trained on.
pub(super) fn json_schema(schema: Value, strict: bool) -> Value {
    let Value::Object(mut schema) = schema else {
        // `true` and `false`.
        return schema;
    };
    let options = json!({
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": false,
        "lenient": !strict,
    });
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

/// Rules of `<parameter=a>\nvalue\n</parameter>\n` for each parameter.
pub(super) fn xml_parameters(rule: &str, parameters: &[Parameter]) -> String {
    let (mut body, mut rules) = (String::new(), String::new());
    let writable = |name: &str| !name.is_empty() && !name.contains(['>', '<', '\n']);
    for (index, parameter) in parameters.iter().enumerate() {
        if !writable(&parameter.name) {
            continue;
        }
        let name = format!("{rule}_{index}");
        let optional = if parameter.is_required { "" } else { "?" };
        body.push_str(&format!(" {name}{optional}"));
        let open = literal(&format!("<parameter={}>\n", parameter.name));
        let close = literal("\n</parameter>\n");
        if let Some(texts) = &parameter.texts {
            let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
            let texts = texts.join(" | ");
            rules.push_str(&format!("{name}: {open} ({texts}) {close}\n"));
        } else if parameter.types.name_text() {
            let end = literal("\n");
            rules.push_str(&format!("{name}: {open} {name}_text {end}\n"));
            rules.push_str(&format!(
                "{name}_text[suffix=\"</parameter>\"]: /(?s:.*)/\n"
            ));
        } else {
            rules.push_str(&format!("{name}: {open} {name}_json {close}\n"));
            rules.push_str(&format!("{name}_json: %json {}\n", parameter.schema));
        }
    }
    if body.is_empty() {
        body.push_str(" \"\"");
    }
    format!("{rule}:{body}\n{rules}")
}

/// The texts that a value is one of; `None` if it may be anything else.
fn texts(schema: &Value) -> Option<Vec<String>> {
    let values = listed(schema.as_object()?)?;
    let texts: Option<Vec<&str>> = values.into_iter().map(Value::as_str).collect();
    // Others would end early.
    let fits = |text: &&str| !text.contains("</parameter>");
    let texts: Vec<String> = texts?.into_iter().filter(fits).map(str::to_owned).collect();
    (!texts.is_empty()).then_some(texts)
}

/// Rules of `a=1, b="x"`, in order, those that are not required at will.
pub(super) fn python_arguments(rule: &str, parameters: &[Parameter]) -> String {
    let writable = |name: &str| {
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        !name.is_empty() && name.chars().all(in_name)
    };
    let written: Vec<&Parameter> = parameters.iter().filter(|p| writable(&p.name)).collect();
    let mut rules = String::new();
    // Each may be the first if those before it are not required.
    let mut firsts = Vec::new();
    let mut may_be_first = true;
    for (index, parameter) in written.iter().enumerate() {
        let name = format!("{rule}_{index}");
        if may_be_first {
            let rest: Vec<String> = (index + 1..written.len())
                .map(|next| format!(" {rule}_{next}_next"))
                .collect();
            firsts.push(format!("{name}{}", rest.concat()));
        }
        may_be_first &= !parameter.is_required;
        let key = literal(&format!("{}=", parameter.name));
        rules.push_str(&format!("{name}: {key} {name}_json\n"));
        rules.push_str(&format!("{name}_json: %json {}\n", parameter.schema));
        let optional = if parameter.is_required { "" } else { "?" };
        rules.push_str(&format!(
            "{name}_next: ({} {name}){optional}\n",
            literal(", ")
        ));
    }
    if may_be_first {
        firsts.push("\"\"".to_owned());
    }
    format!("{rule}: {}\n{rules}", firsts.join(" | "))
}
