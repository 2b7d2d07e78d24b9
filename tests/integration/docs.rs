//! Pages in `docs/` that state facts of the code, held equal to it.

use std::collections::BTreeSet;
use std::process::Command;

use tombola::metrics::Metrics;
use tombola::ticket::{MAX_HEADER_BYTES, Ticket};

use crate::support::environment::package;

/// The text of a page in `docs/`.
fn page(name: &str) -> String {
    let path = package("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text between two marker lines of a page.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = page.split_once(start).expect("a start marker");
    rest.split_once(end).expect("an end marker").0.trim()
}

/// The labels of a series, as its first sample shows them; buckets' `le` is left out.
fn labels(text: &str, series: &str) -> BTreeSet<String> {
    let sample = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.split_once('{'))
        .find(|(suffix, _)| ["", "_bucket"].contains(suffix));
    let (_, labels) = sample.unwrap_or_default();
    let labels = labels.split_once('}').unwrap_or_default().0.split(',');
    let names = labels.filter_map(|label| label.split_once('='));
    let names = names.map(|(name, _)| name).filter(|name| *name != "le");
    names.map(|name| format!("`{name}`")).collect()
}

/// The table of all series that a server has, as `docs/serving.md` shows it.
fn metrics_table() -> String {
    let metrics = Metrics::new(2048).expect("metrics");
    // A series by ticket appears with its first request.
    metrics.server.ticket_requested("acme", "sql");
    let text = metrics.render().expect("metrics as text");
    let mut table = "| series | type | labels | meaning |\n|---|---|---|---|".to_owned();
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    for (name, help) in helps.filter_map(|line| line.split_once(' ')) {
        if !name.starts_with("tombola_") {
            continue;
        }
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut types = types.filter_map(|line| line.split_once(' '));
        let (_, kind) = types.find(|(typed, _)| *typed == name).expect("a type");
        let labels: Vec<String> = labels(&text, name).into_iter().collect();
        let labels = labels.join(", ");
        table += &format!("\n| `{name}` | {kind} | {labels} | {help} |");
    }
    table
}

#[test]
fn the_page_on_serving_lists_every_series() {
    let page = page("serving.md");
    let found = between(&page, "<!-- metrics -->", "<!-- end metrics -->");
    let expected = metrics_table();
    assert!(
        found == expected,
        "docs/serving.md must have this table between its metrics markers:\n\n{expected}\n"
    );
}

#[test]
fn the_example_of_the_page_on_tickets_writes_a_canonical_ticket() {
    let page = page("tickets.md");
    let script = between(&page, "```python", "```");
    let folder = tempfile::tempdir().expect("a folder");
    let run = Command::new("python3")
        .args(["-c", script])
        .current_dir(folder.path())
        .output()
        .expect("python3 runs");
    assert!(run.status.success(), "{run:?}");
    let bytes = std::fs::read(folder.path().join("tiny.safetensors")).expect("the ticket");
    let ticket = Ticket::from_bytes(&bytes).expect("a valid ticket");
    let canonical = Ticket::encode(ticket.metadata(), ticket.tensors()).expect("it encodes");
    assert!(bytes == canonical, "the script's file is not canonical");
    let printed = String::from_utf8_lossy(&run.stdout);
    assert_eq!(printed.trim(), ticket.digest().to_string());
    assert!(page.contains("16,777,216") && MAX_HEADER_BYTES == 16_777_216);
}
