//! What the grammars generate is what the parser reads.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use llguidance::{Matcher, ParserFactory};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::chat::{MessageDelta, MessageParser, ParserOptions, parse_tools};

fn tools() -> Arc<[Tool]> {
    let tools = json!([
        {"type": "function", "function": {"name": "add", "strict": true, "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "number"}, "b": {"$ref": "#/$defs/either"},
                "list": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["a"],
            "additionalProperties": false,
            "$defs": {"either": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        }}},
        {"type": "function", "function": {"name": "say", "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "mood": {"$ref": "#/$defs/mood"},
            },
            "required": ["text", "mood"],
            "additionalProperties": false,
            "$defs": {"mood": {"enum": ["glad", "sad"]}},
        }}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    parse_tools(tools).unwrap().into()
}

fn matcher(grammar: &str) -> Matcher {
    let bytes = ApproximateTokEnv::single_byte_env();
    let factory = ParserFactory::new(&bytes, InferenceCapabilities::default(), &[]).unwrap();
    let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
    Matcher::new(parser.map_err(|error| error.context(grammar.to_owned())))
}

/// Whether a grammar generates exactly this text.
fn generates(grammar: &str, text: &str) -> bool {
    let mut matcher = matcher(grammar);
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let taken = matcher.validate_tokens(&tokens).unwrap();
    if taken < tokens.len() {
        return false;
    }
    matcher.consume_tokens(&tokens).unwrap();
    matcher.is_accepting().unwrap()
}

/// A random text of a grammar, which ends open texts soon.
fn sample(grammar: &str, random: &mut StdRng) -> Option<String> {
    let mut matcher = matcher(grammar);
    let mut text = Vec::new();
    let closings = [
        "</parameter>",
        "</think>",
        "\"",
        "\\\"",
        "é🤗",
        "</tool_call>",
        "}",
        "x",
        "1",
    ];
    for _ in 0..2_000 {
        if matcher.is_accepting().unwrap() && (matcher.is_stopped() || random.random_bool(0.5)) {
            return Some(String::from_utf8(text).unwrap());
        }
        let mask = matcher.compute_mask().unwrap();
        let mut allowed: Vec<u32> = (0..256).filter(|&byte| mask.is_allowed(byte)).collect();
        if allowed.len() > 1 {
            // No numbers beyond the range of f64.
            allowed.retain(|&byte| byte != u32::from(b'e') && byte != u32::from(b'E'));
        }
        let mut next = vec![*allowed.choose(random)?];
        if allowed.len() > 1 {
            let closing = closings.choose(random).copied().unwrap_or_default();
            let tokens: Vec<u32> = closing.bytes().map(u32::from).collect();
            if matcher.validate_tokens(&tokens).unwrap() == tokens.len() {
                next = tokens;
            } else if next[0] >= 0x80 {
                continue;
            }
        }
        matcher.consume_tokens(&next).unwrap();
        text.extend(next.into_iter().map(|byte| byte as u8));
    }
    None
}

fn options<'a>(tools: &'a [Tool], choice: &'a ToolChoice) -> ForcedCall<'a> {
    ForcedCall {
        tools,
        choice,
        parallel_tool_calls: true,
        reasoning: ReasoningDialect::None,
        prompt_end: PromptEnd::Neutral,
        special_token: &|_| None,
    }
}

/// Content and calls of an answer.
fn parsed(dialect: ToolDialect, forced: &ForcedCall, text: &str) -> (String, Vec<(String, Value)>) {
    let mut parser = MessageParser::new(ParserOptions {
        tools: forced.tools.to_vec().into(),
        dialect: Some(dialect),
        reasoning: forced.reasoning,
        prompt_end: forced.prompt_end,
        ..ParserOptions::default()
    });
    let (mut content, mut calls) = (String::new(), Vec::new());
    for delta in parser.push(text).into_iter().chain(parser.finish()) {
        match delta {
            MessageDelta::Reasoning(_) => {}
            MessageDelta::Content(more) => content += &more,
            MessageDelta::ToolCall { name, .. } => calls.push((name, String::new())),
            MessageDelta::Arguments { index, text } => calls[index].1 += &text,
        }
    }
    let read = |json: String| serde_json::from_str(&json).unwrap_or_else(|_| panic!("{text}"));
    let calls = calls.into_iter().map(|(name, json)| (name, read(json)));
    (content, calls.collect())
}

/// An answer with one call of each of `add` and `say`, as each dialect writes it.
fn example(dialect: ToolDialect) -> &'static str {
    match dialect {
        ToolDialect::Hermes => {
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"list\": [\"x\", \"y\"]}}\
             \n\
             </tool_call>\n<tool_call>\n{\"name\": \"say\", \"arguments\": {\"text\": \"\\\"é\", \
             \"mood\": \"sad\"}}\n</tool_call>"
        }
        ToolDialect::Llama3Json => {
            "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"list\": [\"x\", \"y\"]}}; \
             {\"name\": \"say\", \"parameters\": {\"text\": \"\\\"é\", \"mood\": \"sad\"}}"
        }
        ToolDialect::Mistral => {
            "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1, \"list\": [\"x\", \"y\"]}}\
             , \
             {\"name\": \"say\", \"arguments\": {\"text\": \"\\\"é\", \"mood\": \"sad\"}}]"
        }
        ToolDialect::Qwen3Coder => {
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=list>\n\
             [\"x\", \"y\"]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n\
             <function=say>\n<parameter=text>\n\"é\n</parameter>\n<parameter=mood>\nsad\n\
             </parameter>\n</function>\n</tool_call>"
        }
        ToolDialect::Pythonic => {
            "[add(a=1, list=[\"x\", \"y\"]), say(text=\"\\\"é\", mood=\"sad\")]"
        }
    }
}

#[test]
fn a_grammar_generates_the_calls_of_its_dialect() {
    let tools = tools();
    let named = ToolChoice::Named("add".to_owned());
    for dialect in ToolDialect::ALL {
        let forced = options(&tools, &ToolChoice::Required);
        let grammar = forced_call(dialect, &forced);
        let text = example(dialect);
        assert!(generates(&grammar, text), "{grammar}\n{text}");
        let expected = vec![
            ("add".to_owned(), json!({"a": 1, "list": ["x", "y"]})),
            ("say".to_owned(), json!({"text": "\"é", "mood": "sad"})),
        ];
        assert_eq!(
            parsed(dialect, &forced, text),
            (String::new(), expected),
            "{dialect}"
        );
        assert!(!generates(&grammar, ""));
        assert!(
            !generates(&grammar, &text.replace("\"x\"", "1")),
            "{dialect}"
        );
        assert!(
            !generates(&grammar, &text.replace("sad", "mad")),
            "{dialect}"
        );

        let one = ForcedCall {
            parallel_tool_calls: false,
            ..options(&tools, &ToolChoice::Required)
        };
        assert!(!generates(&forced_call(dialect, &one), text), "{dialect}");
        let grammar = forced_call(dialect, &options(&tools, &named));
        assert!(!generates(&grammar, text), "{dialect}");
    }
}

#[test]
fn what_a_grammar_generates_parses_back() {
    let tools = tools();
    let mut random = StdRng::seed_from_u64(7);
    for dialect in ToolDialect::ALL {
        let grammar = forced_call(dialect, &options(&tools, &ToolChoice::Required));
        let mut samples = 0;
        for _ in 0..40 {
            let Some(text) = sample(&grammar, &mut random) else {
                continue;
            };
            samples += 1;
            let forced = options(&tools, &ToolChoice::Required);
            let (content, calls) = parsed(dialect, &forced, &text);
            assert_eq!(content, "", "{dialect}: {text}");
            assert!(!calls.is_empty(), "{dialect}: {text}");
            for (name, arguments) in calls {
                let tool = tools.iter().find(|tool| tool.name == name).unwrap();
                let valid = jsonschema::is_valid(&tool.parameters, &arguments);
                assert!(valid, "{dialect}: {text}: {arguments}");
            }
        }
        assert!(samples >= 10, "{dialect}: {samples} samples");
    }
}

#[test]
fn reasoning_may_come_first_where_the_parser_expects_it() {
    let tools = tools();
    let grammar = |reasoning, prompt_end| {
        let forced = ForcedCall {
            reasoning,
            prompt_end,
            ..options(&tools, &ToolChoice::Required)
        };
        forced_call(ToolDialect::Hermes, &forced)
    };
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let inside = format!("Well, <tool_call>\n</think>\n\n{call}");
    let whole = format!("<think>{inside}");
    for (reasoning, prompt_end, generated) in [
        (
            ReasoningDialect::None,
            PromptEnd::Neutral,
            [true, false, false],
        ),
        (
            ReasoningDialect::Qwen3,
            PromptEnd::AfterReasoning,
            [true, false, false],
        ),
        (
            ReasoningDialect::Qwen3,
            PromptEnd::InReasoning,
            [false, true, true],
        ),
        (
            ReasoningDialect::Qwen3,
            PromptEnd::Neutral,
            [true, false, true],
        ),
        (
            ReasoningDialect::DeepseekR1,
            PromptEnd::Neutral,
            [false, true, true],
        ),
    ] {
        let grammar = grammar(reasoning, prompt_end);
        let texts = [call, &inside, &whole].map(|text| generates(&grammar, text));
        assert_eq!(texts, generated, "{grammar}");
    }
}

#[test]
fn markers_that_are_special_tokens_are_tokens_of_the_grammar() {
    let tools = tools();
    let ids = |text: &str| match text {
        "[TOOL_CALLS]" => Some(5),
        "[ARGS]" => Some(32),
        _ => None,
    };
    let forced = ForcedCall {
        special_token: &ids,
        ..options(&tools, &ToolChoice::Required)
    };
    let grammar = forced_call(ToolDialect::Mistral, &forced);
    assert!(
        grammar.contains("call_2: <[5]> \"now\" <[32]> args_2"),
        "{grammar}"
    );
}
