//! Fields that the documentation lists.

use super::no_effect::NO_EFFECT;
use super::unsupported::{CHAT, COMPLETIONS, UNSUPPORTED, Unsupported};

/// A field of a request for completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFact {
    pub name: &'static str,
    /// Values, in JSON, that are taken all the same.
    pub taken: &'static [&'static str],
    /// The endpoint, if it is not both.
    pub endpoint: Option<&'static str>,
    /// Why the field is not honoured.
    pub reason: &'static str,
}

/// The fields that are refused by name.
pub fn refused_fields() -> Vec<FieldFact> {
    let of = |endpoint: Option<&'static str>| {
        move |field: &Unsupported| FieldFact {
            name: field.name,
            taken: field.harmless,
            endpoint,
            reason: field.reason,
        }
    };
    let both = UNSUPPORTED.iter().map(of(None));
    let chat = CHAT.iter().map(of(Some("chat")));
    let plain = COMPLETIONS.iter().map(of(Some("plain")));
    both.chain(chat).chain(plain).collect()
}

/// The fields that are known and change no answer.
pub fn fields_without_effect() -> Vec<FieldFact> {
    let fact = |&(name, reason): &(&'static str, &'static str)| FieldFact {
        name,
        taken: &[],
        endpoint: None,
        reason,
    };
    NO_EFFECT.iter().map(fact).collect()
}
