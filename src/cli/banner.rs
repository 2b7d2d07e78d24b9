//! Banner of a ready server: its address, base and tickets, and a command to try it.

use std::io::Write as _;

use indicatif::DecimalBytes;
use serde_json::{Value, json};

use crate::registry::Page;
use crate::server::AppState;

/// A question that the base and the shipped `sql` ticket answer differently.
const EXAMPLE: &str = "CREATE TABLE singer (name VARCHAR, age INTEGER)\n\
     -- Show name and age of all singers, oldest first.";

/// Tickets that the banner lists. Nobody reads thousands, and a pipe that nobody reads would fill.
const SHOWN_TICKETS: usize = 10;

/// Prints the banner. `admin` is the URL of the operator's routes, if they have their own.
///
/// # Errors
/// Standard output cannot be written.
pub fn announce(url: &str, admin: Option<&str>, state: &AppState) -> anyhow::Result<()> {
    let base = &state.base;
    let manifest = &base.manifest;
    let tickets = state.registry.owned(None, Page::ALL);
    let mut out = std::io::stdout().lock();
    writeln!(out, "tombola {} at {url}", env!("CARGO_PKG_VERSION"))?;
    writeln!(
        out,
        "  base     {} ({}{}, {}, fingerprint {:.12}…)",
        manifest.name,
        if base.quantized { "quantised, " } else { "" },
        base.dtype,
        DecimalBytes(base.weight_bytes as u64),
        manifest.fingerprint.to_string()
    )?;
    if let Some(admin) = admin {
        writeln!(out, "  operator {admin} (upload, delete, metrics, checks)")?;
    }
    let uploads = admin.unwrap_or(url);
    if tickets.is_empty() {
        writeln!(out, "  tickets  none yet; POST one to {uploads}/v1/tickets")?;
    }
    for (i, ticket) in tickets.iter().take(SHOWN_TICKETS).enumerate() {
        let label = if i == 0 { "tickets" } else { "" };
        let density = 100.0 * ticket.facts().density;
        let (alias, nonzeros) = (ticket.alias(), ticket.nonzeros());
        writeln!(
            out,
            "  {label:<7}  {alias} ({nonzeros} nonzeros, density {density:.2} %)"
        )?;
    }
    if tickets.len() > SHOWN_TICKETS {
        let more = tickets.len() - SHOWN_TICKETS;
        writeln!(out, "           and {more} more; see {uploads}/v1/tickets")?;
    }
    // The question fits the shipped ticket; without it, the command names the first ticket or
    // the base.
    let aliases = || tickets.iter().map(|ticket| ticket.alias());
    let model = aliases()
        .find(|alias| *alias == "sql")
        .or_else(|| aliases().next())
        .unwrap_or(&manifest.name);
    let keys = state.access.keys.is_some();
    let example = example(url, model, state.text.has_chat_template(), keys);
    writeln!(out, "try it:\n  {example}")?;
    Ok(out.flush()?)
}

/// A `curl` command that asks `model` the example question, through the chat route if `chat`, with
/// a key from the environment if the server needs one.
pub fn example(url: &str, model: &str, chat: bool, keys: bool) -> String {
    let (route, mut body) = if chat {
        (
            "chat/completions",
            json!({"model": model, "messages": [{"role": "user", "content": EXAMPLE}]}),
        )
    } else {
        ("completions", json!({"model": model, "prompt": EXAMPLE}))
    };
    body["max_tokens"] = 48.into();
    body["temperature"] = 0.into();
    // Within single quotes, the single quote is the only character that a shell interprets.
    let body = Value::to_string(&body).replace('\'', r"'\''");
    let key = if keys {
        r#" -H "authorization: Bearer $TOMBOLA_API_KEY""#
    } else {
        ""
    };
    let json = "-H 'content-type: application/json'";
    let url = format!("{url}/v1/{route}");
    // Brackets of an IPv6 address are a pattern to zsh.
    let url = if url.contains('[') {
        format!("'{url}'")
    } else {
        url
    };
    format!("curl {url}{key} {json} -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_survives_a_shell() {
        for (url, model, chat) in [
            ("http://127.0.0.1:80", "plain", true),
            ("http://[::1]:80", "it's \"odd\" $HOME", false),
        ] {
            let line = format!(
                "set -- {}; [ \"${{2%/v1/*}}\" = '{url}' ] && printf %s \"$6\"",
                example(url, model, chat, false)
            );
            let output = std::process::Command::new("sh")
                .args(["-c", &line])
                .output();
            let body: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
            assert_eq!(body["model"], model);
            let prompt = if chat {
                &body["messages"][0]["content"]
            } else {
                &body["prompt"]
            };
            assert_eq!(prompt, EXAMPLE);
        }
    }
}
