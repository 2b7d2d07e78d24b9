mod prompt;

use super::*;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens
        .map(|(role, text)| (role.to_owned(), text.to_owned()))
        .into();
    ChatTemplate::new(source, tokens).unwrap()
}

fn render(source: &str, messages: &[ChatMessage], prompt: bool) -> String {
    render_within(source, messages, prompt, 1 << 20).unwrap()
}

fn render_within(
    source: &str,
    messages: &[ChatMessage],
    add_generation_prompt: bool,
    max_bytes: usize,
) -> Result<String, TextError> {
    let prompt = ChatPrompt {
        messages,
        add_generation_prompt,
        ..ChatPrompt::default()
    };
    template(source).render(&prompt, max_bytes)
}

fn conversation() -> Vec<ChatMessage> {
    vec![
        ChatMessage::new("user", " Hi "),
        ChatMessage::new("assistant", "Hello."),
        ChatMessage::new("user", "Bye"),
    ]
}

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] \
     != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
     {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
     {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn chatml_with_a_default_system_message() {
    let messages = [ChatMessage::new("user", "Hi <b>&\"there\"")];
    let body = "<|im_start|>system\nYou help.<|im_end|>\n\
     <|im_start|>user\nHi <b>&\"there\"<|im_end|>\n";
    assert_eq!(render(CHATML, &messages, false), body);
    assert_eq!(
        render(CHATML, &messages, true),
        format!("{body}<|im_start|>assistant\n")
    );
}

const LLAMA3: &str = "{{- bos_token }}
{%- if not tools is defined %}
{%- set tools = none %}
{%- endif %}
{#- A comment. -#}
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}
{%- else %}
{%- set system_message = \"\" %}
{%- endif %}
{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}
{%- if tools is not none %}
{{- \"Environment: ipython\\n\" }}
{%- endif %}
{{- system_message }}
{{- \"<|eot_id|>\" }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] \
     | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
";

#[test]
fn llama3_headers() {
    let messages = [
        ChatMessage::new("system", " Be brief. "),
        ChatMessage::new("user", "Hi\n"),
    ];
    assert_eq!(
        render(LLAMA3, &messages, true),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
     {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
     {{ raise_exception('Conversation roles must alternate \
     user/assistant/user/assistant/...') }}\
     {% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] \
     + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] \
     + eos_token}}{% else %}{{ raise_exception('Only user \
     and assistant roles are supported!') }}{% endif %}{% endfor %}";

#[test]
fn mistral_instructions() {
    assert_eq!(
        render(MISTRAL, &conversation(), true),
        "<s>[INST]  Hi  [/INST]Hello.</s>[INST] Bye [/INST]"
    );
}

#[test]
fn raise_exception_reports_the_message_of_the_template() {
    let twice = [ChatMessage::new("user", "a"), ChatMessage::new("user", "b")];
    let error = render_within(MISTRAL, &twice, true, 1 << 20).unwrap_err();
    let TextError::TemplateRaised(message) = error else {
        panic!("{error}");
    };
    assert_eq!(
        message,
        "Conversation roles must alternate user/assistant/user/assistant/..."
    );
    // Also from a macro in a block.
    let nested = "{% macro check() %}{{ raise_exception('no') }}{% endmacro %}\
     {% for m in messages %}{{ check() }}{% endfor %}";
    let error = render_within(nested, &twice, true, 1 << 20).unwrap_err();
    assert!(matches!(error, TextError::TemplateRaised(message) if message == "no"));
}

#[test]
fn other_failures_are_one_line_each() {
    let error = render_within(
        "{{ messages[0].tools.first }}",
        &conversation(),
        true,
        1 << 20,
    )
    .unwrap_err();
    assert!(matches!(error, TextError::Render(_)));
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    let reason = ChatTemplate::new("{% if %}", BTreeMap::new())
        .err()
        .unwrap();
    assert_eq!(reason.lines().count(), 1, "{reason}");
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}\
     {% endfor %}";
    let recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    let error = render_within(nested, &conversation(), true, 64).unwrap_err();
    assert!(matches!(error, TextError::TemplateEndless(FUEL)), "{error}");
    let error = render_within(recursive, &conversation(), true, 64).unwrap_err();
    assert!(matches!(error, TextError::Render(_)), "{error}");
}

#[test]
fn a_prompt_longer_than_its_bound_is_refused_while_it_is_written() {
    let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    let render = |max| render_within(source, &conversation(), true, max);
    let error = render(4 * 9999 - 1).unwrap_err();
    assert!(
        matches!(error, TextError::RenderedTooLong { max_bytes: 39_995 }),
        "{error}"
    );
    assert_eq!(render(4 * 9999).unwrap().len(), 4 * 9999);
}

#[test]
fn python_methods_and_reversed_slices_work() {
    // How Qwen3's template finds the last user message.
    let source = "{%- set ns = namespace(last=-1) -%}
{%- for message in messages[::-1] -%}
{%- set index = (messages|length - 1) - loop.index0 -%}
{%- if ns.last < 0 and message.role == \"user\" and message.content is string \
     and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) -%}
    {%- set ns.last = index -%}
{%- endif -%}
{%- endfor -%}
{{ ns.last }}|{{ 'a</think>\\nb'.split('</think>')[-1].lstrip('\\n') }}|\
     {{ messages[0].content.strip() }}|{{ messages[0].get('name', 'none') }}";
    assert_eq!(render(source, &conversation(), false), "2|b|Hi|none");
}

#[test]
fn a_block_tag_removes_its_line() {
    let source = "{% for m in messages %}\n    {% if m.role == 'assistant' %}\n\
     {{ m.content }}\n    {% endif %}\n{% endfor %}\n";
    assert_eq!(render(source, &conversation(), false), "Hello.\n");
}

#[test]
fn generation_blocks_and_loop_controls_are_supported() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}a {%- generation %} b\
     {% endgeneration -%} c{% break %}{% endif %}{% endfor %}";
    assert_eq!(render(source, &conversation(), false), "a bc");
}

#[test]
fn tools_and_documents_are_none_as_in_transformers() {
    let source = "{{ tools is none }} {{ documents is none }} {{ unk_token is defined }}";
    assert_eq!(render(source, &[], false), "True True False");
}

#[test]
fn further_fields_reach_the_template_in_order() {
    let message: ChatMessage = serde_json::from_value(json!({
        "role": "assistant",
        "tool_calls": [{
            "type": "function",
            "function": {"name": "add", "arguments": {"b": 1, "a": [2.5, "é<"]}},
        }],
    }))
    .unwrap();
    let source = "{% for call in messages[0].tool_calls %}{{ call.function | tojson }}\
     {% endfor %}{{ messages[0].content }}";
    assert_eq!(
        render(source, &[message], false),
        r#"{"name": "add", "arguments": {"b": 1, "a": [2.5, "é<"]}}"#
    );
}

#[test]
fn none_is_not_iterable_as_in_python() {
    // As in the templates of Qwen3-Coder.
    let source = "{%- if tools is iterable and tools | length > 0 %}tools{% endif -%}
{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}";
    let messages = [ChatMessage::new("user", "Hi")];
    assert_eq!(render(source, &messages, false), "user: Hi");
    let tests = "{{ none is iterable }} {{ 'a' is iterable }} {{ missing is iterable }} \
         {{ [] is iterable }} {{ 'a' is sequence }} {{ {} is sequence }} {{ none is sequence }} \
         {{ true is number }} {{ true is integer }}";
    assert_eq!(
        render(tests, &[], false),
        "False True True True True True False True False"
    );
}

// Expected values come from Jinja2 3.1.6.
#[test]
fn pythons_methods_and_jinjas_builtins_are_there() {
    for (source, expected) in [
        ("{{ 'a,b,c'.rsplit(',', 1)[0] }}", "a,b"),
        ("{{ ' a b  c '.rsplit(none, 1) | join('|') }}", " a b|c"),
        ("{{ 'abc'.removeprefix('a') }}", "bc"),
        ("{{ 'abc'.removesuffix('c') }}", "ab"),
        ("{{ 'a=b'.partition('=')[2] }}", "b"),
        ("{{ 'a=b=c'.rpartition('=')[0] }}", "a=b"),
        ("{{ [1, 2].index(2) }}", "1"),
        (
            "{{ 'héllo'.index('l') }}{{ 'héllo'.rfind('l') }}{{ 'a'.find('b') }}",
            "23-1",
        ),
        (
            "{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }}|{{ 'ab'.center(5, '*') }}",
            "a  |  a|**ab*",
        ),
        ("{{ '7'.zfill(3) }}{{ '-7'.zfill(3) }}", "007-07"),
        ("{{ '%s-%d' % ('a', 3) }}", "a-3"),
        ("{{ 'x=%s' % 'y' ~ '!' }}", "x=y!"),
        ("{{ 'a b' | wordcount }}", "2"),
        ("{{ 'one two three' | truncate(9, leeway=0) }}", "one..."),
        ("{{ 'a b/é' | urlencode }}", "a%20b/%C3%A9"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}",
            "ab",
        ),
        ("{% set j = joiner(',') %}{{ j() }}a{{ j() }}b", "a,b"),
        (
            "{{ 'a' is callable }}{{ range is callable }}{{ {} is callable }}",
            "FalseTrueFalse",
        ),
        (
            "{% macro f() %}{{ f is callable }}{% endmacro %}{{ f is callable }}",
            "True",
        ),
        (
            "{% macro f() %}{{ varargs | length }}{% endmacro %}{{ f(1, 2) }}",
            "2",
        ),
        (
            "{% macro f(a, b=3) -%} {{ a + b }}{{ varargs }}{%- endmacro %}{{ f(1, 2, 5) }}",
            "3[5]",
        ),
        (
            "{{ [100000000000000000000] | tojson }}",
            "[100000000000000000000]",
        ),
        (
            "{{ 'aBc'.swapcase() }}{{ ''.isdigit() }}{{ 'aab'.count('a') }}",
            "AbCFalse2",
        ),
        ("{{ ''.count('') }}", "1"),
    ] {
        let messages = [ChatMessage::new("user", "Hi")];
        let rendered = render_within(source, &messages, false, 1 << 20);
        assert_eq!(rendered.unwrap(), expected, "{source}");
    }
}
