//! The rules on the layout of files: module folders, the width of lines, and documentation.

use std::collections::{BTreeMap, BTreeSet};

use crate::{is_test_file, root, rust_files};

/// Maximum length of a line, in columns.
const WIDTH: usize = 100;

/// A module with submodules is `foo/mod.rs`, never `foo.rs` beside `foo/`.
#[test]
fn no_file_stands_beside_a_folder_of_its_name() {
    for folder in ["src", "tests"] {
        let files: Vec<String> = rust_files(root(), folder)
            .into_iter()
            .map(|(file, _)| file)
            .collect();
        let folders: BTreeSet<&str> = files
            .iter()
            .filter_map(|file| file.rsplit_once('/').map(|(folder, _)| folder))
            .collect();
        for file in &files {
            let stem = file.trim_end_matches(".rs");
            assert!(!folders.contains(stem), "{file} stands beside {stem}/");
        }
    }
}

/// Rows of tables in comments cannot be wrapped.
#[test]
fn lines_are_at_most_100_columns() {
    let mut long = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for (file, text) in rust_files(root(), folder) {
            for (at, line) in text.lines().enumerate() {
                let columns = line.chars().count();
                let is_table = line.trim_start().starts_with("//") && line.ends_with('|');
                if columns > WIDTH && !is_table {
                    long.push(format!("{file}:{}: {columns} columns", at + 1));
                }
            }
        }
    }
    assert!(long.is_empty(), "\n{}\n", long.join("\n"));
}

/// Public items have doc comments, and modules inner ones. Fields and variants need none: their
/// names and messages can suffice. `kernels/cuda/absent.rs` mirrors documented items.
#[test]
fn public_items_are_documented() {
    let files: BTreeMap<String, String> = rust_files(root(), "src").into_iter().collect();
    let mut missing = Vec::new();
    for (file, text) in files.iter().filter(|(file, _)| is_documentable(file)) {
        for line in undocumented(text) {
            let item = text.lines().nth(line).unwrap_or_default().trim();
            if !is_documented_module(&files, file, item) {
                missing.push(format!("{file}:{}: {item}", line + 1));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}

fn is_documentable(file: &str) -> bool {
    !is_test_file(file) && file != "src/kernels/cuda/absent.rs"
}

/// The lines, from 0, of the public items of a file without a doc comment, without unit tests.
fn undocumented(text: &str) -> Vec<usize> {
    const ITEMS: &[&str] = &[
        "fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod", "unsafe",
        "async",
    ];
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests = (1..lines.len()).find(|&at| {
        lines[at - 1] == "#[cfg(test)]" && lines[at].starts_with("mod ") && lines[at].ends_with('{')
    });
    let code = tests.unwrap_or(lines.len());
    let is_item = |line: &str| {
        let keyword = line
            .strip_prefix("pub ")
            .and_then(|rest| rest.split(' ').next());
        keyword.is_some_and(|keyword| ITEMS.contains(&keyword))
    };
    let is_bare = |&line: &usize| {
        let mut above = line;
        // Attributes stand between the comment and the item, on one line or on several.
        while above > 0 && lines[above - 1].ends_with(']') {
            above -= 1;
            while above > 0 && !lines[above].starts_with("#[") {
                above -= 1;
            }
        }
        above == 0 || !lines[above - 1].starts_with("///")
    };
    (0..code)
        .filter(|&line| is_item(lines[line]))
        .filter(is_bare)
        .collect()
}

/// Whether `item` of `file` declares a module in another file, which begins with its documentation.
fn is_documented_module(files: &BTreeMap<String, String>, file: &str, item: &str) -> bool {
    let name = item
        .strip_prefix("pub mod ")
        .and_then(|rest| rest.strip_suffix(';'));
    let Some((name, (folder, _))) = name.zip(file.rsplit_once('/')) else {
        return false;
    };
    let homes = [
        format!("{folder}/{name}.rs"),
        format!("{folder}/{name}/mod.rs"),
    ];
    let text = homes.iter().find_map(|home| files.get(home));
    text.is_some_and(|text| text.starts_with("//!"))
}

#[test]
fn undocumented_items_are_found() {
    let text = "/// A.\n#[derive(\n    Debug,\n)]\npub struct A;\npub fn b() {}\n\
                #[inline]\npub const fn c() {}\n    pub field: u8,\npub(crate) fn d() {}\n\
                #[cfg(test)]\nmod more;\npub fn e() {}\n\
                #[cfg(test)]\nmod tests {\npub fn f() {}\n}\n";
    assert_eq!(undocumented(text), [5, 7, 12]);
}
