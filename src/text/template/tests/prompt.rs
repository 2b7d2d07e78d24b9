//! Tools, variables and continued messages.

use serde_json::{Value, json};

use super::*;

fn with_calls(arguments: Value) -> Vec<ChatMessage> {
    let message = json!({"role": "assistant", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": arguments}},
    ]});
    let call = serde_json::from_value(message).unwrap();
    vec![ChatMessage::new("user", "1 + 2?"), call]
}

#[test]
fn arguments_reach_the_template_in_the_form_that_it_expects() {
    let object = "{% for m in messages %}{% for c in m.tool_calls or [] %}\
         {{ c.function.name }}{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}\
         {% endfor %}{% endfor %}{% endfor %}";
    // DeepSeek-V3's.
    let text = "{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}\
         {% for c in m['tool_calls'] %}{{ c['function']['name'] + c['function']['arguments'] }}\
         {% endfor %}{% endif %}{% endfor %}";
    let sent = [json!("{\"a\":1, \"b\": \"é\"}"), json!({"a": 1, "b": "é"})];
    for arguments in sent {
        let messages = with_calls(arguments);
        assert_eq!(render(object, &messages, false), "add a=1 b=é");
        let expected = r#"add{"a": 1, "b": "é"}"#;
        assert_eq!(render(text, &messages, false), expected);
    }
}

#[test]
fn malformed_arguments_are_named_in_the_error() {
    for (arguments, problem) in [
        (json!("{\"a\": "), "must be the JSON text of an object: EOF"),
        (json!("[1]"), "must be the JSON text of an object"),
        (json!(7), "must be the JSON text of an object"),
    ] {
        let error = render_within("", &with_calls(arguments), true, 99).unwrap_err();
        let start = format!("`messages[1].tool_calls[0].function.arguments` {problem}");
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}

#[test]
fn absent_calls_are_absent_for_the_template() {
    let source = "{% for m in messages %}{{ 'tool_calls' in m }}{% endfor %}";
    for absent in [json!(null), json!([])] {
        let message = json!({"role": "assistant", "content": "a", "tool_calls": absent});
        let message = serde_json::from_value(message).unwrap();
        assert_eq!(render(source, &[message], false), "False");
    }
}

#[test]
fn the_forms_of_a_template_are_found_by_rendering() {
    let forms = template(CHATML).forms();
    assert!(forms.renders_system && !forms.renders_tools && !forms.renders_calls);
    assert!(!template(MISTRAL).forms().renders_system);
    let parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}\
         {% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}";
    assert!(template(parts).forms().renders_tools);
    assert_eq!(render(parts, &conversation(), false), " Hi Hello.Bye");
}

#[test]
fn tools_documents_and_variables_reach_the_template() {
    let source = "{{ tools[0].name }} {{ documents[0].title }} {{ enable_thinking is false }} \
         {{ reasoning_effort }}";
    let (tools, documents) = ([json!({"name": "t"})], [json!({"title": "d"})]);
    let kwargs = json!({"enable_thinking": false, "reasoning_effort": "low"});
    let prompt = ChatPrompt {
        messages: &[],
        tools: Some(&tools),
        documents: Some(&documents),
        kwargs: kwargs.as_object(),
        ..ChatPrompt::default()
    };
    let rendered = template(source).render(&prompt, 99).unwrap();
    assert_eq!(rendered, "t d True low");
    let kwargs = json!({"messages": []});
    let prompt = ChatPrompt {
        kwargs: kwargs.as_object(),
        ..prompt
    };
    let error = template(source).render(&prompt, 99).unwrap_err();
    assert!(error.to_string().contains("`messages`"), "{error}");
}

#[test]
fn a_final_message_is_continued_where_its_content_ends() {
    let continued = |source: &str, content: &str| {
        let messages = [
            ChatMessage::new("user", "Hi"),
            ChatMessage::new("assistant", content),
        ];
        let prompt = ChatPrompt {
            messages: &messages,
            continue_final_message: true,
            ..ChatPrompt::default()
        };
        template(source).render(&prompt, 1 << 10)
    };
    let rendered = continued(CHATML, "Well, ").unwrap();
    assert!(
        rendered.ends_with("<|im_start|>assistant\nWell, "),
        "{rendered}"
    );
    // A template that trims.
    let rendered = continued(LLAMA3, " Well, ").unwrap();
    assert!(
        rendered.ends_with("<|end_header_id|>\n\nWell,"),
        "{rendered}"
    );
    let error = continued("{{ messages[0].content }}", "Well, ").unwrap_err();
    assert!(matches!(error, TextError::FinalMessageLost), "{error}");
}
