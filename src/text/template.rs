//! Hugging Face chat templates, rendered as in transformers.

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::TextError;
use super::limited::LimitedText;
use super::template_functions::{Raised, raise_exception, strftime_now, tojson};

/// One message of a conversation, as passed to the template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or any other role that the template knows.
    pub role: String,
    /// Text; empty if absent.
    #[serde(default)]
    pub content: String,
    /// Further fields of the message (`name`, `tool_calls`, ...), in order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A message without further fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }
}

/// Compiled chat template with the base's special tokens as globals.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

/// Maximum size of a template's source.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// Instructions that a template may execute for one conversation: about a second. Real templates
/// need some hundreds per message.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are texts by role.
    ///
    /// # Errors
    /// The reason why the template does not compile.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, String> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let bytes = source.len();
            return Err(format!(
                "it has {bytes} bytes, at most {MAX_TEMPLATE_BYTES} are read"
            ));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        for (role, token) in special_tokens {
            environment.add_global(role, token);
        }
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| error.to_string())?;
        Ok(Self { environment })
    }

    /// Renders a conversation into at most `max_bytes` bytes.
    ///
    /// # Errors
    /// The template refuses or fails, does not end, or writes more.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        max_bytes: usize,
    ) -> Result<String, TextError> {
        let mut text = LimitedText::new(max_bytes);
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            // transformers passes absent ones as `none`, which templates test for.
            let context = context! {
                messages,
                add_generation_prompt,
                tools => (),
                documents => (),
            };
            template.render_captured_to(context, &mut text).map(drop)
        });
        match rendered {
            Ok(()) => Ok(text.into_string()),
            Err(_) if text.is_exceeded() => Err(TextError::RenderedTooLong { max_bytes }),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(TextError::TemplateEndless(FUEL))
            }
            Err(error) => Err(match raised(&error) {
                Some(message) => TextError::TemplateRaised(message),
                None => TextError::Render(error.to_string()),
            }),
        }
    }
}

/// Message of the `raise_exception` call behind an error, if there is one.
fn raised(error: &minijinja::Error) -> Option<String> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

/// Replaces `{% generation %}` blocks, which mark the assistant's turns for training and do nothing
/// in rendering, by `if true` blocks with the same whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start..start + len + 2]);
        plain.push_str(before);
        match tag.trim_matches(|c: char| c.is_whitespace() || "{%-+}".contains(c)) {
            "generation" => plain.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => plain.push_str(&tag.replace("endgeneration", "endif")),
            _ => plain.push_str(tag),
        }
        rest = &rest[start + tag.len()..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
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
        template(source).render(messages, prompt, 1 << 20).unwrap()
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
        let error = template(MISTRAL).render(&twice, true, 1 << 20).unwrap_err();
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
        let error = template(nested).render(&twice, true, 1 << 20).unwrap_err();
        assert!(matches!(error, TextError::TemplateRaised(message) if message == "no"));
    }

    #[test]
    fn other_failures_are_one_line_each() {
        let error = template("{{ messages[0].tools.first }}")
            .render(&conversation(), true, 1 << 20)
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
        let error = template(nested)
            .render(&conversation(), true, 64)
            .unwrap_err();
        assert!(matches!(error, TextError::TemplateEndless(FUEL)), "{error}");
        let error = template(recursive)
            .render(&conversation(), true, 64)
            .unwrap_err();
        assert!(matches!(error, TextError::Render(_)), "{error}");
    }

    #[test]
    fn a_prompt_longer_than_its_bound_is_refused_while_it_is_written() {
        let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        let render = |max| template(source).render(&conversation(), true, max);
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
}
