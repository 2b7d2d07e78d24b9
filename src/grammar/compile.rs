//! Compilation of grammars for one base.

use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::cache::{self, Cache};
use super::compiled::CompiledGrammar;
use super::error::one_line;
use super::schema::Schema;
use super::{Grammar, GrammarError, gbnf, text_size, vocabulary};
use crate::text::Text;

/// Stack of the thread that compiles a grammar: llguidance recurses over rules and properties.
const COMPILER_STACK_BYTES: usize = 64 << 20;

/// White space between two tokens of JSON, besides none.
const JSON_SPACE: &str = r" |\n {0,24}";

/// Escapes in JSON strings: one way to write each character, and none that could spell another
/// property's name.
const JSON_ESCAPES: &str = "nrbtf\\\"";

/// Limits on the work for a grammar and for each of its masks.
fn limits() -> ParserLimits {
    ParserLimits {
        // About 40 ms.
        initial_lexer_fuel: 2_000_000,
        // About 15 ms.
        step_lexer_fuel: 200_000,
        // About 5 ms.
        step_max_items: 100_000,
        // Several per optional property.
        max_items_in_row: 10_000,
        // About 2 KiB each, for one sequence.
        max_lexer_states: 30_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiler of grammars for one base, with a cache by content.
pub struct Grammars {
    factory: ParserFactory,
    cache: Cache,
}

impl Grammars {
    /// A compiler for a base: its tokenizer, the number of tokens that its model scores, and its
    /// end-of-text tokens, which match no text.
    ///
    /// # Errors
    /// llguidance does not take the vocabulary.
    pub fn new(text: &Text, vocab_size: usize, end_tokens: &[u32]) -> Result<Self, GrammarError> {
        let vocabulary = vocabulary::token_trie(text, vocab_size, end_tokens);
        let slices = SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(&vocabulary, capabilities, &slices);
        let mut factory = factory.map_err(|e| GrammarError::Vocabulary(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            factory,
            cache: Cache::new(),
        })
    }

    /// Compiles a grammar, or returns it from the cache. Blocks for up to some tens of
    /// milliseconds.
    ///
    /// # Errors
    /// The grammar is malformed or too large, or cannot be honoured.
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<CompiledGrammar>, GrammarError> {
        text_size::check(grammar)?;
        let key = cache::key(grammar);
        if let Some(compiled) = self.cache.get(&key) {
            return Ok(compiled);
        }
        let compiled = Arc::new(self.on_large_stack(|| self.compile_anew(grammar))?);
        self.cache.insert(key, Arc::clone(&compiled));
        Ok(compiled)
    }

    /// Runs a function on a thread with a large stack.
    fn on_large_stack<T: Send>(
        &self,
        run: impl FnOnce() -> Result<T, GrammarError> + Send,
    ) -> Result<T, GrammarError> {
        let failed = |problem: String| GrammarError::Invalid {
            kind: "grammar",
            problem,
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("grammar".to_owned())
                .stack_size(COMPILER_STACK_BYTES)
                .spawn_scoped(scope, run)
                .map_err(|error| failed(format!("no thread can compile it: {error}")))?;
            let result = thread.join();
            result.unwrap_or_else(|_| Err(failed("it cannot be compiled".to_owned())))
        })
    }

    fn compile_anew(&self, grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        let kind = grammar.kind();
        let invalid = |problem: String| GrammarError::Invalid { kind, problem };
        let refused = |error: anyhow::Error| invalid(one_line(&error.root_cause().to_string()));
        let parser = match grammar {
            Grammar::JsonObject => self
                .json_parser(json!({"type": "object"}))
                .map_err(refused)?,
            Grammar::JsonSchema(schema) => {
                let schema = Schema::new(schema)?;
                let parser = self.json_parser(schema.to_compile());
                parser.map_err(|error| schema.locate(error, |part| self.json_parser(part).err()))?
            }
            Grammar::Regex(regex) => {
                let grammar = TopLevelGrammar::from_regex(without_anchors(regex));
                self.parser(grammar).map_err(refused)?
            }
            Grammar::Choice(texts) => {
                let grammar = TopLevelGrammar::from_regex(&alternatives(texts).map_err(invalid)?);
                self.parser(grammar).map_err(refused)?
            }
            Grammar::Lark(text) => {
                let lark = match gbnf::is_gbnf(text) {
                    true => gbnf::to_lark(text).map_err(invalid)?,
                    false => text.clone(),
                };
                self.parser(TopLevelGrammar::from_lark(lark))
                    .map_err(refused)?
            }
        };
        CompiledGrammar::new(parser).map_err(|problem| match grammar {
            Grammar::JsonSchema(_) => GrammarError::schema("", problem),
            _ => invalid(problem),
        })
    }

    /// Parser of JSON under a schema, which is an object.
    fn json_parser(&self, mut schema: Value) -> anyhow::Result<TokenParser> {
        if let Some(schema) = schema.as_object_mut() {
            let options = json!({
                "whitespace_flexible": true,
                "whitespace_pattern": JSON_SPACE,
                "json_allowed_escapes": JSON_ESCAPES,
            });
            schema.insert("x-guidance".to_owned(), options);
        }
        self.parser(TopLevelGrammar::from_json_schema(schema))
    }

    fn parser(&self, grammar: TopLevelGrammar) -> anyhow::Result<TokenParser> {
        let init = GrammarInit::Serialized(grammar);
        let mut parser = self.factory.create_parser_from_init_default(init)?;
        parser.start_without_prompt();
        Ok(parser)
    }

    /// Number of grammars in the cache.
    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.cache.len()
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A regular expression without `^` at its start and `$` at its end: it matches whole texts anyway.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

/// Regular expression of these texts.
fn alternatives(texts: &[String]) -> Result<String, String> {
    if texts.is_empty() {
        return Err("it has no texts".to_owned());
    }
    let escaped = |text: &String| -> String {
        let escape = |c: char| match c {
            c if c.is_alphanumeric() => c.to_string(),
            c => format!("\\x{{{:X}}}", u32::from(c)),
        };
        text.chars().map(escape).collect()
    };
    let texts: Vec<String> = texts.iter().map(escaped).collect();
    Ok(format!("(?:{})", texts.join("|")))
}
