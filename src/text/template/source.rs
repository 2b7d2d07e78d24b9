//! Rewrites of a template's source for what Jinja2 has and the template engine lacks: blocks of
//! `{% generation %}`, the `%` operator after a text, and `varargs` in macros.

use std::ops::Range;

/// Filter that [`rewritten`] puts in place of the `%` operator.
pub(super) const PERCENT: &str = "_percent";
/// Function that collects the arguments that [`rewritten`] adds to macros.
pub(super) const VARARGS: &str = "_varargs";
/// Most arguments beyond the named ones that a macro with `varargs` takes.
const MAX_VARARGS: usize = 16;

/// The source with the rewrites.
pub(super) fn rewritten(source: &str) -> String {
    let tags = tags(source);
    let mut edits = Vec::new();
    for (index, tag) in tags.iter().enumerate() {
        let words = tag.words();
        match words.first().copied().unwrap_or_default() {
            // Marks the assistant's turns for training, and does nothing in rendering.
            "generation" => edits.push((tag.tokens[0].span.clone(), "if true".to_owned())),
            "endgeneration" => edits.push((tag.tokens[0].span.clone(), "endif".to_owned())),
            "macro" => collect_varargs(source, &tags[index..], &mut edits),
            _ => {}
        }
        format_texts(tag, &mut edits);
    }
    apply(source, edits)
}

/// Replaces ranges of the source. Of several edits at one place, the first comes first.
fn apply(source: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut text = String::with_capacity(source.len());
    let mut copied = 0;
    for (range, replacement) in edits {
        text.push_str(&source[copied..range.start]);
        text.push_str(&replacement);
        copied = range.end;
    }
    text.push_str(&source[copied..]);
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Word,
    Sign,
}

struct Token<'a> {
    kind: Kind,
    text: &'a str,
    span: Range<usize>,
}

/// A `{% %}` or `{{ }}` with its delimiters.
struct Tag<'a> {
    is_block: bool,
    tokens: Vec<Token<'a>>,
    span: Range<usize>,
}

impl<'a> Tag<'a> {
    /// The words at the start of a block; nothing in an expression.
    fn words(&self) -> Vec<&'a str> {
        let words = self.tokens.iter().take_while(|t| t.kind == Kind::Word);
        words
            .filter(|_| self.is_block)
            .map(|token| token.text)
            .collect()
    }
}

/// The tags of a source, without those in comments and `raw` blocks.
fn tags(source: &str) -> Vec<Tag<'_>> {
    let mut tags: Vec<Tag> = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let rest = &source[start..];
        if rest.starts_with("{#") {
            let Some(len) = rest.find("#}") else { break };
            at = start + len + 2;
        } else if rest.starts_with("{%") || rest.starts_with("{{") {
            let Some(tag) = tag(source, start) else { break };
            at = tag.span.end;
            if tag.words() == ["raw"] {
                let Some(end) = end_of_raw(source, at) else {
                    break;
                };
                at = end;
            }
            tags.push(tag);
        } else {
            at = start + 1;
        }
    }
    tags
}

/// Where the `endraw` tag after `at` begins.
fn end_of_raw(source: &str, at: usize) -> Option<usize> {
    source[at..].match_indices("{%").find_map(|(offset, _)| {
        let inside = source[at + offset + 2..].trim_start_matches(['-', '+']);
        let ends = inside.trim_start().starts_with("endraw");
        ends.then_some(at + offset)
    })
}

/// The tag that begins at `start`; `None` if it does not end.
fn tag(source: &str, start: usize) -> Option<Tag<'_>> {
    let is_block = source[start..].starts_with("{%");
    let close = if is_block { "%}" } else { "}}" };
    let mut at = start + 2;
    at += usize::from(source[at..].starts_with(['-', '+']));
    let mut tokens = Vec::new();
    let mut depth = 0_usize;
    loop {
        let rest = &source[at..];
        let first = rest.chars().next()?;
        let signed = rest.starts_with(['-', '+']) && rest[1..].starts_with(close);
        if depth == 0 && (signed || rest.starts_with(close)) {
            let end = at + usize::from(signed) + 2;
            return Some(Tag {
                is_block,
                tokens,
                span: start..end,
            });
        }
        let (kind, len) = match first {
            '"' | '\'' => (Kind::Text, text_len(rest, first)?),
            c if c.is_alphanumeric() || c == '_' => {
                let word = |c: char| c.is_alphanumeric() || c == '_';
                (Kind::Word, rest.find(|c| !word(c)).unwrap_or(rest.len()))
            }
            c => (Kind::Sign, c.len_utf8()),
        };
        match first {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !first.is_whitespace() {
            let text = &rest[..len];
            let span = at..at + len;
            tokens.push(Token { kind, text, span });
        }
        at += len;
    }
}

/// Bytes of a text literal with its quotes.
fn text_len(rest: &str, quote: char) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Some(at + 1);
        }
    }
    None
}

/// Rewrites `'text' % operand` into a filter. Only after a literal: elsewhere the operator is
/// nearly always the remainder, which the engine has.
fn format_texts(tag: &Tag, edits: &mut Vec<(Range<usize>, String)>) {
    for (index, pair) in tag.tokens.windows(2).enumerate() {
        if pair[0].kind == Kind::Text && pair[1].text == "%" {
            let Some(end) = operand_end(&tag.tokens[index + 2..]) else {
                continue;
            };
            edits.push((pair[1].span.clone(), format!("|{PERCENT}(")));
            edits.push((end..end, ")".to_owned()));
        }
    }
}

/// Where the operand ends that the tokens begin with: a primary expression with its attributes,
/// subscripts, calls and filters.
fn operand_end(tokens: &[Token]) -> Option<usize> {
    let mut at = 0;
    while matches!(tokens.get(at)?.text, "-" | "+") {
        at += 1;
    }
    at = group_end(tokens, at)?;
    while let Some(token) = tokens.get(at) {
        at = match token.text {
            "." | "|" if tokens.get(at + 1)?.kind == Kind::Word => at + 2,
            "(" | "[" => group_end(tokens, at)?,
            _ => break,
        };
    }
    Some(tokens[at - 1].span.end)
}

/// Index after the token at `at`, or after the brackets that it opens.
fn group_end(tokens: &[Token], at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// Adds parameters to a macro that uses `varargs`, and collects them. `tags` begin at the macro.
fn collect_varargs(source: &str, tags: &[Tag], edits: &mut Vec<(Range<usize>, String)>) {
    let head = &tags[0];
    let end = tags
        .iter()
        .position(|tag| tag.words().first() == Some(&"endmacro"));
    let body = &tags[1..end.unwrap_or(tags.len())];
    let uses = body
        .iter()
        .flat_map(|tag| &tag.tokens)
        .any(|token| token.text == "varargs");
    let close = head.tokens.iter().rfind(|token| token.text == ")");
    let (true, Some(close)) = (uses, close) else {
        return;
    };
    let names: Vec<String> = (0..MAX_VARARGS).map(|i| format!("_vararg{i}")).collect();
    let empty = head.tokens.len() >= 2 && head.tokens[head.tokens.len() - 2].text == "(";
    let comma = if empty { "" } else { ", " };
    let parameters: Vec<String> = names
        .iter()
        .map(|name| format!("{name}=undefined"))
        .collect();
    let at = close.span.start;
    edits.push((at..at, format!("{comma}{}", parameters.join(", "))));
    // The same white space control as at the end of the macro's tag.
    let sign = match source.as_bytes()[head.span.end - 3] {
        sign @ (b'-' | b'+') => char::from(sign).to_string(),
        _ => String::new(),
    };
    let collect = format!(
        "{{% set varargs = {VARARGS}({}) {sign}%}}",
        names.join(", ")
    );
    edits.push((head.span.end..head.span.end, collect));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_become_blocks_that_always_run() {
        let source = "{%- generation %}a{{ '{% generation %}' }}{% endgeneration -%}";
        let expected = "{%- if true %}a{{ '{% generation %}' }}{% endif -%}";
        assert_eq!(rewritten(source), expected);
    }

    #[test]
    fn percent_after_a_text_becomes_a_filter() {
        for (source, expected) in [
            (
                "{{ 'a%s' % x.y[0](1)|f(2) ~ 'b' }}",
                "{{ 'a%s' |_percent( x.y[0](1)|f(2)) ~ 'b' }}",
            ),
            (
                "{{ '%s' % ('%d' % 3) }}",
                "{{ '%s' |_percent( ('%d' |_percent( 3))) }}",
            ),
            ("{{ {'a': '%s' % -1}}}", "{{ {'a': '%s' |_percent( -1)}}}"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    #[test]
    fn what_is_not_concerned_stays_as_it_is() {
        for source in [
            "{{ loop.index0 % 2 }}{% if x == 'a' %}{{ {'a': {}} }}{% endif %}",
            "{# '%s' % 1 #}{% raw %}{{ '%s' % 1 }}{% generation %}{% endraw %}{{ unclosed",
            "{% macro f(a) %}{{ a }}{% endmacro %}{ {% 'unclosed",
        ] {
            assert_eq!(rewritten(source), source);
        }
    }
}
