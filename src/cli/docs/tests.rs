//! The documentation agrees with the command line.

use super::*;
use crate::cli::definition;

/// Flags of other programs that the pages mention.
const FOREIGN: &[&str] = &[
    "all-targets",
    "bench",
    "cacert",
    "features",
    "gpus",
    "http2-prior-knowledge",
    "lib",
    "locked",
    "no-deps",
    "path",
    "release",
    "rounds",
    "runtime",
    "servers",
    "target",
    "test",
    "work",
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths and texts of the pages in `docs/` and of the README.
fn documentation() -> Vec<(PathBuf, String)> {
    let mut paths = pages(&repository().join("docs")).unwrap();
    paths.push(repository().join("README.md"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn the_tables_of_the_pages_are_current() {
    let root = definition();
    for (path, page) in documentation() {
        let filled = fill(&page, &root).unwrap();
        let stale = page
            .lines()
            .zip(filled.lines())
            .find(|(is, should)| is != should);
        assert!(
            filled == page,
            "{} has stale flag tables: run `cargo run --release -- docs flags --write`; first: \
             {stale:#?}",
            path.display()
        );
    }
}

#[test]
fn every_subcommand_with_flags_has_a_table() {
    let pages = documentation();
    for (name, _) in tables(&definition()) {
        let wanted = format!("{BEGIN}{name} -->");
        let found = pages
            .iter()
            .any(|(_, page)| page.lines().any(|line| line == wanted));
        assert!(found, "no page of docs/ has the line `{wanted}`");
    }
}

#[test]
fn every_flag_that_the_pages_mention_exists() {
    let mut known: Vec<String> = FOREIGN.iter().map(|&flag| flag.to_owned()).collect();
    known.extend(["help", "version"].map(str::to_owned));
    flags(&definition(), &mut known);
    for (path, page) in documentation() {
        for (number, line) in page.lines().enumerate() {
            for flag in mentioned(line) {
                assert!(
                    known.iter().any(|name| name == flag),
                    "{}:{}: there is no flag --{flag}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

fn flags(command: &Command, known: &mut Vec<String>) {
    for arg in arguments(command) {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        let names = arg.get_long().into_iter().chain(aliases);
        known.extend(names.map(str::to_owned));
    }
    for child in command.get_subcommands() {
        flags(child, known);
    }
}

/// Names of the `--flags` in a line.
fn mentioned(line: &str) -> Vec<&str> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words = line.split(|c: char| !of_name(c));
    let flags = words.filter_map(|word| word.strip_prefix("--"));
    flags
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn flags_are_found_in_prose_and_code() {
    let line = "| `--model BASE` (--port=80) a--b <!-- flags: x --> --- ---|";
    assert_eq!(mentioned(line), ["model", "port"]);
}

#[test]
fn a_table_holds_names_defaults_variables_and_meanings() {
    let table = table(find(&definition(), "serve").unwrap());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "| flag | default | variable | meaning |");
    let row = |flag: &str| {
        lines
            .iter()
            .find(|line| line.starts_with(&format!("| `{flag}")))
    };
    let port = row("--port").unwrap();
    assert!(port.contains("| `8000` | `TOMBOLA_PORT` |"), "{port}");
    let threads = row("--threads").unwrap();
    assert!(
        threads.contains("| all cores |") && !threads.contains('['),
        "{threads}"
    );
    assert!(row("--deterministic").unwrap().contains("| off |"));
}

#[test]
fn a_page_gets_the_tables_that_it_asks_for() {
    let root = definition();
    let page = "# Tickets\n<!-- flags: ticket inspect -->\nold\n<!-- end flags -->\nmore\n";
    let filled = fill(page, &root).unwrap();
    assert!(
        filled.contains("| `--json` | off |") && !filled.contains("old"),
        "{filled}"
    );
    assert!(
        filled.starts_with("# Tickets\n") && filled.ends_with("more\n"),
        "{filled}"
    );
    assert_eq!(fill(&filled, &root).unwrap(), filled);
    let unknown = fill("<!-- flags: tickets -->\n<!-- end flags -->\n", &root).unwrap_err();
    assert!(
        unknown.to_string().contains("no subcommand `tickets`"),
        "{unknown}"
    );
    let open = fill("<!-- flags: serve -->\n", &root).unwrap_err();
    assert!(open.to_string().contains("<!-- end flags -->"), "{open}");
}
