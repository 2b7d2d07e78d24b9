//! Tables of the request fields that are not honoured.

use crate::server::{FieldFact, fields_without_effect, refused_fields};

pub(super) const BEGIN: &str = "<!-- fields: ";
pub(super) const END: &str = "<!-- end fields -->";

/// A table by its name; `None` if there is no such table.
pub(super) fn table(name: &str) -> Option<String> {
    match name {
        "refused" => Some(refused()),
        "without effect" => Some(without_effect()),
        _ => None,
    }
}

fn refused() -> String {
    let line = |fact: FieldFact| {
        let endpoint = fact.endpoint.unwrap_or("both");
        let taken: Vec<_> = fact
            .taken
            .iter()
            .map(|value| format!("`{value}`"))
            .collect();
        format!(
            "| `{}` | {endpoint} | {} | {} |\n",
            fact.name,
            taken.join(", "),
            fact.reason
        )
    };
    let lines = refused_fields().into_iter().map(line);
    "| field | completions | but taken if | why |\n|---|---|---|---|\n".to_owned()
        + &lines.collect::<String>()
}

fn without_effect() -> String {
    let line = |fact: FieldFact| format!("| `{}` | {} |\n", fact.name, fact.reason);
    let lines = fields_without_effect().into_iter().map(line);
    "| field | why |\n|---|---|\n".to_owned() + &lines.collect::<String>()
}
