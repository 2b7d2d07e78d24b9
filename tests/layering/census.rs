//! A census of the sources: their sizes, and the uses between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::graph::{Graph, circles};
use crate::source::{lex, without_tests};
use crate::{is_test_file, module_of, root, rust_files};

/// All circles of files below `src/`, as [`Graph::acyclic_edges`] counts them, sorted. The census
/// fails on a new circle, and on an entry here that no longer is one.
const CIRCLES: &[&[&str]] = &[
    &[
        "kernels/ticket/overlay/by_column.rs",
        "kernels/ticket/overlay/by_row.rs",
        "kernels/ticket/overlay/tile.rs",
    ],
    &[
        "ticket/container/header.rs",
        "ticket/container/mod.rs",
        "ticket/error.rs",
    ],
];

/// Prints the census of this package, or of that at `TOMBOLA_CENSUS_ROOT`.
#[test]
fn census() {
    let other = std::env::var_os("TOMBOLA_CENSUS_ROOT").map(PathBuf::from);
    let place = other.as_deref().unwrap_or(root());
    let files = rust_files(place, "src");
    let graph = Graph::new(&files);
    let edges = graph.edges();
    println!("census of {}", place.display());
    print_sizes(&files);
    print_arrows(&graph, &edges);
    let all = circles(&edges);
    let inside: usize = all.iter().map(Vec::len).sum();
    println!(
        "circles of files over all uses: {}, of {inside} files",
        all.len()
    );
    let found = print_circles(&graph);
    if other.is_none() {
        let known: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|circle| circle.to_vec()).collect();
        let new: Vec<_> = found.difference(&known).collect();
        assert!(new.is_empty(), "new circles: {new:?}");
        let stale: Vec<_> = known.difference(&found).collect();
        assert!(
            stale.is_empty(),
            "no longer circles, remove them from CIRCLES: {stale:?}"
        );
        print_journeys();
    }
}

/// Files, lines, the largest files, and marks of coupling in the text.
fn print_sizes(files: &[(String, String)]) {
    let lines = |tests: bool| -> usize {
        let kind = files.iter().filter(|(file, _)| is_test_file(file) == tests);
        kind.map(|(_, text)| text.lines().count()).sum()
    };
    let tests = files.iter().filter(|(file, _)| is_test_file(file)).count();
    println!(
        "files in src: {}, of which unit tests: {tests}",
        files.len()
    );
    println!(
        "lines in src: {}, of which in files of unit tests: {}",
        lines(true) + lines(false),
        lines(true)
    );
    let mut largest: Vec<(usize, &str)> = files
        .iter()
        .map(|(file, text)| (text.lines().count(), file.as_str()))
        .collect();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    let long = largest.iter().filter(|(lines, _)| *lines > 400).count();
    println!("files over 400 lines: {long}");
    for (lines, file) in &largest[..8.min(largest.len())] {
        println!("  {lines:5} {file}");
    }
    let outside = files
        .iter()
        .filter(|(file, _)| !file.starts_with("src/kernels/cuda"));
    let switches: usize = outside.map(|(_, text)| cuda_switches(text)).sum();
    println!("cfg(feature = \"cuda\") outside kernels/cuda: {switches}");
    let (mut public, mut restricted) = (0, 0);
    for (_, text) in files.iter().filter(|(file, _)| !is_test_file(file)) {
        let (all, inside) = public_items(text);
        public += all;
        restricted += inside;
    }
    println!("pub items: {public}, pub(crate) and pub(super) items: {restricted}");
}

/// The lines of code that name the feature.
fn cuda_switches(text: &str) -> usize {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.matches("feature = \"cuda\"").count())
        .sum()
}

/// The numbers of `pub` items and of items visible to a part of the crate; fields do not count.
fn public_items(text: &str) -> (usize, usize) {
    const ITEMS: &[&str] = &[
        "fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod", "use",
        "unsafe", "async",
    ];
    let tokens = without_tests(&lex(text));
    let (mut public, mut inside) = (0, 0);
    for at in 0..tokens.len().saturating_sub(1) {
        if tokens[at].text != "pub" {
            continue;
        }
        if ITEMS.contains(&tokens[at + 1].text.as_str()) {
            public += 1;
        } else if tokens[at + 1].text == "(" {
            let close = tokens[at..].iter().position(|token| token.text == ")");
            let item = close.and_then(|close| tokens.get(at + close + 1));
            inside += usize::from(item.is_some_and(|item| ITEMS.contains(&item.text.as_str())));
        }
    }
    (public, inside)
}

/// The arrows between layers, with the number of uses between files that make them up.
fn print_arrows(graph: &Graph, edges: &[BTreeSet<usize>]) {
    let layers: Vec<String> = graph
        .files()
        .iter()
        .map(|file| module_of(file).into_iter().next().unwrap_or_default())
        .collect();
    let mut arrows: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (user, used) in edges.iter().enumerate() {
        for &used in used.iter().filter(|&&used| layers[used] != layers[user]) {
            if !layers[user].is_empty() && !layers[used].is_empty() {
                *arrows.entry((&layers[user], &layers[used])).or_default() += 1;
            }
        }
    }
    let uses: usize = edges.iter().map(BTreeSet::len).sum();
    println!("uses between files: {uses}");
    println!("arrows between layers: {}", arrows.len());
    for ((user, used), uses) in arrows {
        println!("  {user} -> {used}: {uses}");
    }
}

/// Prints and returns the circles of [`Graph::acyclic_edges`].
fn print_circles(graph: &Graph) -> BTreeSet<Vec<&str>> {
    let files = graph.files();
    let found = circles(&graph.acyclic_edges());
    println!(
        "circles of files without uses of parents and of GPU twins: {}",
        found.len()
    );
    let short = |file: &usize| files[*file].trim_start_matches("src/");
    let named = found
        .iter()
        .map(|circle| circle.iter().map(short).collect());
    let named: BTreeSet<Vec<&str>> = named.collect();
    for circle in &named {
        println!("  {}", circle.join(" "));
    }
    named
}

/// Prints the files that each journey of `docs/design.md` crosses: those that its section names.
fn print_journeys() {
    let page = std::fs::read_to_string(root().join("docs/design.md")).expect("docs/design.md");
    let sections = page
        .split("\n## ")
        .filter_map(|section| section.split_once('\n'));
    let mut journeys = 0;
    for (title, text) in sections.filter(|(title, _)| title.ends_with(", file by file")) {
        let quoted = text.split('`').skip(1).step_by(2);
        let named: BTreeSet<&str> = quoted.filter(|path| path.starts_with("src/")).collect();
        println!("{title}: {} files and folders", named.len());
        for path in named {
            assert!(root().join(path).exists(), "docs/design.md: no {path}");
            println!("  {path}");
        }
        journeys += 1;
    }
    assert_eq!(
        journeys, 4,
        "docs/design.md: a completion, an upload, a training run, a shutdown"
    );
}

#[test]
fn uses_follow_re_exports_to_the_file_that_defines_the_item() {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let graph = Graph::new(&[
        file("src/lib.rs", "mod a; mod b;"),
        file(
            "src/a/mod.rs",
            "mod x; pub use x::{X as Y, self}; use super::b::B;",
        ),
        file("src/a/x.rs", "pub struct X; fn f() { crate::b::g() }"),
        file(
            "src/b.rs",
            "use crate::a::Y; pub struct B; pub fn g() { let _ = Y; }",
        ),
        file("src/b/tests.rs", "use super::*;"),
    ]);
    assert_eq!(
        graph.files(),
        ["src/lib.rs", "src/a/mod.rs", "src/a/x.rs", "src/b.rs"]
    );
    let edges: Vec<Vec<usize>> = graph
        .edges()
        .iter()
        .map(|used| used.iter().copied().collect())
        .collect();
    assert_eq!(edges, [vec![], vec![3], vec![3], vec![2]]);
    assert_eq!(circles(&graph.edges()), [[2, 3]]);
}
