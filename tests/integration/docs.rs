//! Pages in `docs/` that state facts of the code, held equal to it.

use std::collections::BTreeSet;
use std::path::Path;
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
    assert!(page.contains("4,194,304") && MAX_HEADER_BYTES == 4_194_304);
}

/// The names of the test functions in the Rust files below `folder`.
fn test_functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            test_functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(tests_in(
                &std::fs::read_to_string(&path).expect("a source file"),
            ));
        }
    }
}

/// The names of the functions with a `test` attribute, and of those in `proptest!`.
fn tests_in(source: &str) -> Vec<String> {
    let (mut names, mut is_test, mut in_proptest) = (Vec::new(), false, false);
    for line in source.lines() {
        in_proptest = (in_proptest && line != "}") || line.starts_with("proptest! {");
        let code = line.trim();
        if code.starts_with("#[test]") || code.starts_with("#[tokio::test") {
            is_test = true;
        }
        let function = code.strip_prefix("fn ").or(code.strip_prefix("async fn "));
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
            if is_test || in_proptest {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

#[test]
fn the_tests_that_the_page_on_pitfalls_names_exist() {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests"] {
        test_functions(&package(folder), &mut tests);
    }
    let page = page("pitfalls.md");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let mut named = 0;
    for row in rows.filter(|row| !row.ends_with("| tests |")) {
        let last = row
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .expect("a column");
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            assert!(tests.contains(name), "there is no test `{name}`: {row}");
            named += 1;
        }
    }
    assert!(named > 30, "only {named} tests are named");
}
