//! The rules on the content of a source file.

use std::collections::BTreeSet;

use crate::decisions::decisions;
use crate::layers::{DECISION_HOMES, LAYERS, STRANGERS, UNSAFE_HOMES};
use crate::source::{PathInCode, lex, paths, without_tests};
use crate::{is_test_file, module_of, root, rust_files};

/// The rules that the source `text` of `file` (its path from the package's root) breaks, one
/// message each.
pub fn violations(file: &str, text: &str) -> Vec<String> {
    let everything = lex(text);
    let mut found = Vec::new();
    if !at_home(file, UNSAFE_HOMES) {
        for token in everything.iter().filter(|token| token.text == "unsafe") {
            found.push(format!(
                "{file}:{}: unsafe outside {UNSAFE_HOMES:?}",
                token.line
            ));
        }
    }
    if is_test_file(file) {
        return found;
    }
    let tokens = without_tests(&everything);
    let paths = paths(&tokens, &module_of(file));
    found.extend(paths.iter().filter_map(|path| forbidden_layer(file, path)));
    for (home, crates) in STRANGERS.iter().filter(|(home, _)| file.starts_with(home)) {
        for path in &paths {
            let stranger = path.names[0].as_str();
            if crates.iter().any(|list| list.contains(&stranger)) {
                found.push(format!(
                    "{file}:{}: {home} must not know {stranger}",
                    path.line
                ));
            }
        }
    }
    if !at_home(file, DECISION_HOMES) {
        for (line, name) in decisions(&tokens) {
            found.push(format!(
                "{file}:{line}: decides by {name} outside {DECISION_HOMES:?}"
            ));
        }
    }
    found.dedup();
    found
}

fn at_home(file: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| file.starts_with(home))
}

/// A message, if `path` refers from `file` to a layer that the layer of `file` must not use.
fn forbidden_layer(file: &str, path: &PathInCode) -> Option<String> {
    let inside = path.names[0] == "crate" || (file == "src/main.rs" && path.names[0] == "tombola");
    let target = path.names.get(1).filter(|_| inside)?;
    if file == "src/main.rs" {
        return (target != "cli")
            .then(|| format!("{file}:{}: main uses {target}, not cli", path.line));
    }
    let own = module_of(file).into_iter().next()?;
    let Some((_, uses)) = LAYERS.iter().find(|(layer, _)| *layer == own) else {
        return Some(format!("{file}: {own} is not a layer"));
    };
    let allowed = *target == own || uses.contains(&target.as_str());
    (!allowed).then(|| format!("{file}:{}: {own} must not use {target}", path.line))
}

#[test]
fn arrows_point_down() {
    for (place, (layer, uses)) in LAYERS.iter().enumerate() {
        for used in *uses {
            let below = LAYERS[place + 1..].iter().any(|(name, _)| name == used);
            assert!(below, "{layer} may use {used}, which is not below it");
        }
    }
}

#[test]
fn the_crate_has_these_layers_and_no_others() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let tokens = lex(&lib);
    let mut found: Vec<&str> = tokens
        .windows(2)
        .filter(|pair| pair[0].text == "mod")
        .map(|pair| pair[1].text.as_str())
        .collect();
    let mut expected: Vec<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "modules of src/lib.rs and LAYERS differ");
}

#[test]
fn the_sources_keep_the_rules() {
    let broken: Vec<String> = rust_files(root(), "src")
        .iter()
        .flat_map(|(file, text)| violations(file, text))
        .collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Every entry of the tables is needed by some file, so that they show the actual architecture.
#[test]
fn every_entry_of_the_tables_is_used() {
    let files = rust_files(root(), "src");
    let mut arrows = BTreeSet::new();
    for (file, text) in &files {
        arrows.extend(arrows_of(file, text));
    }
    let mut unused = Vec::new();
    for (layer, uses) in LAYERS {
        for used in *uses {
            if !arrows.contains(&((*layer).to_owned(), (*used).to_owned())) {
                unused.push(format!("no file of {layer} uses {used}"));
            }
        }
    }
    let strangers = STRANGERS.iter().map(|(home, _)| *home);
    for home in strangers.chain(DECISION_HOMES.iter().copied()) {
        if !files.iter().any(|(file, _)| file.starts_with(home)) {
            unused.push(format!("no file is in {home}"));
        }
    }
    let tests = rust_files(root(), "tests");
    for home in UNSAFE_HOMES {
        let contains_unsafe =
            |(_, text): &&(String, String)| lex(text).iter().any(|token| token.text == "unsafe");
        let inside = files.iter().chain(&tests);
        let inside = inside.filter(|(file, _)| file.starts_with(home));
        if !inside.into_iter().any(|file| contains_unsafe(&file)) {
            unused.push(format!("no file in {home} contains unsafe"));
        }
    }
    assert!(unused.is_empty(), "\n{}\n", unused.join("\n"));
}

/// The pairs of layers (user, used) in the paths of a file, without unit tests.
fn arrows_of(file: &str, text: &str) -> Vec<(String, String)> {
    let module = module_of(file);
    let Some(layer) = module.first().filter(|_| !is_test_file(file)) else {
        return Vec::new();
    };
    paths(&without_tests(&lex(text)), &module)
        .into_iter()
        .filter(|path| path.names[0] == "crate")
        .filter_map(|path| Some((layer.clone(), path.names.get(1)?.clone())))
        .collect()
}
