//! The compiled grammars that were used lately, by their content.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use sha2::{Digest as _, Sha256};

use super::Grammar;
use super::compiled::CompiledGrammar;

/// Maximum number of grammars.
const MAX_ENTRIES: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Maximum bytes of all grammars, compiled.
const MAX_BYTES: usize = 128 << 20;

/// Digest of a grammar's content.
pub type Key = [u8; 32];

/// Digest of a grammar's kind and text. A schema whose properties stand in another order is another
/// grammar: outputs follow that order.
pub fn key(grammar: &Grammar) -> Key {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    };
    match grammar {
        Grammar::JsonObject => add("object"),
        Grammar::JsonSchema(schema) => ["schema", &schema.to_string()]
            .map(add)
            .into_iter()
            .collect(),
        Grammar::Regex(text) => ["regex", text].map(add).into_iter().collect(),
        Grammar::Choice(texts) => {
            add("choice");
            texts.iter().for_each(|text| add(text));
        }
        Grammar::Lark(text) => ["lark", text].map(add).into_iter().collect(),
    }
    digest.finalize().into()
}

/// Least recently used grammars go first.
pub struct Cache(Mutex<Entries>);

struct Entries {
    grammars: LruCache<Key, Arc<CompiledGrammar>>,
    bytes: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self(Mutex::new(Entries {
            grammars: LruCache::new(MAX_ENTRIES),
            bytes: 0,
        }))
    }

    /// The compiled grammar of a key, if it is kept.
    pub fn get(&self, key: &Key) -> Option<Arc<CompiledGrammar>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.grammars.get(key).cloned()
    }

    /// Keeps a grammar, unless it is larger than all may be.
    pub fn insert(&self, key: Key, grammar: Arc<CompiledGrammar>) {
        let bytes = grammar.bytes();
        if bytes > MAX_BYTES {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while entries.bytes + bytes > MAX_BYTES {
            let Some((_, evicted)) = entries.grammars.pop_lru() else {
                break;
            };
            entries.bytes -= evicted.bytes();
        }
        entries.bytes += bytes;
        if let Some((_, replaced)) = entries.grammars.push(key, grammar) {
            entries.bytes -= replaced.bytes();
        }
    }

    /// Number of grammars.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().grammars.len()
    }
}
