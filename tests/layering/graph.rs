//! The graph of uses between files, without unit tests.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Import, Token, imports, lex, paths, without_imports, without_tests};
use crate::{is_test_file, module_of};

/// Followed imports before a name counts as not found: imports may form a circle.
const MAX_HOPS: usize = 8;

/// A file, with the names that resolve its paths.
struct Node {
    file: String,
    module: Vec<String>,
    /// Names of the items that the file defines.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Absolute or relative paths outside `use` declarations.
    paths: Vec<Vec<String>>,
}

/// The files of a crate. Files are numbered in the order in which they were given.
pub struct Graph {
    nodes: Vec<Node>,
    by_module: BTreeMap<Vec<String>, usize>,
}

impl Graph {
    /// The graph of the files (path from the package's root, text), without those of unit tests.
    pub fn new(files: &[(String, String)]) -> Self {
        let nodes: Vec<Node> = files
            .iter()
            .filter(|(file, _)| !is_test_file(file) && file != "src/main.rs")
            .map(|(file, text)| Node::new(file, text))
            .collect();
        let modules = nodes.iter().map(|node| node.module.clone());
        let by_module = modules.zip(0..).collect();
        Self { nodes, by_module }
    }

    pub fn files(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.file.as_str()).collect()
    }

    /// The files that each file uses, except itself. A re-export (`pub use`) does not count as a
    /// use, unless the file names the item elsewhere; a use of a re-exported item counts as a use
    /// of the file that defines it.
    pub fn edges(&self) -> Vec<BTreeSet<usize>> {
        (0..self.nodes.len())
            .map(|user| {
                let node = &self.nodes[user];
                let imported = node.imports.iter().filter(|import| !import.public);
                let written = imported.map(|import| &import.path).chain(&node.paths);
                written
                    .filter_map(|path| self.target(user, path, MAX_HOPS))
                    .filter(|&used| used != user)
                    .collect()
            })
            .collect()
    }

    /// The edges that must form no circle. A submodule may use what its parents define, and an
    /// operation may use its twin on the GPU, which uses its types: these edges are left out.
    pub fn acyclic_edges(&self) -> Vec<BTreeSet<usize>> {
        let mut edges = self.edges();
        for (user, used) in edges.iter_mut().enumerate() {
            let module = &self.nodes[user].module;
            let on_gpu = |node: &Node| node.file.starts_with("src/kernels/cuda/");
            let is_twin = |used: usize| on_gpu(&self.nodes[used]) && !on_gpu(&self.nodes[user]);
            used.retain(|&used| !module.starts_with(&self.nodes[used].module) && !is_twin(used));
        }
        edges
    }

    /// The file that a path written in `user` refers to, if it is in this crate.
    fn target(&self, user: usize, path: &[String], hops: usize) -> Option<usize> {
        let node = &self.nodes[user];
        if path[0] == "crate" {
            return self.resolve(&path[1..], hops);
        }
        let child: Vec<String> = node.module.iter().chain([&path[0]]).cloned().collect();
        // A name by itself may also be a variable.
        if path.len() > 1 && self.by_module.contains_key(&child) {
            let whole: Vec<String> = node.module.iter().chain(path).cloned().collect();
            return self.resolve(&whole, hops);
        }
        if hops == 0 || node.items.contains(&path[0]) {
            return None;
        }
        let import = node.imports.iter().find(|import| import.name == path[0])?;
        if import.path == path {
            return None;
        }
        let whole = [&import.path[..], &path[1..]].concat();
        self.target(user, &whole, hops - 1)
    }

    /// The file that defines the last item of an absolute path.
    fn resolve(&self, path: &[String], hops: usize) -> Option<usize> {
        let (depth, &file) = (0..=path.len())
            .rev()
            .find_map(|depth| Some((depth, self.by_module.get(&path[..depth])?)))?;
        let Some(name) = path.get(depth) else {
            return Some(file);
        };
        let node = &self.nodes[file];
        if hops == 0 || node.items.contains(name) {
            return Some(file);
        }
        let named = node.imports.iter().find(|import| import.name == *name);
        let globs = node.imports.iter().filter(|import| import.name == "*");
        let followed = named.into_iter().chain(globs).find_map(|import| {
            let mut whole = import.path.clone();
            if import.name == "*" {
                whole.push(name.clone());
            }
            whole.extend_from_slice(&path[depth + 1..]);
            let target = self.target(file, &whole, hops - 1)?;
            let found = import.name != "*" || self.nodes[target].items.contains(name);
            found.then_some(target)
        });
        // The crate's root defines nothing but layers.
        followed.or((depth > 0).then_some(file))
    }
}

impl Node {
    fn new(file: &str, text: &str) -> Self {
        let module = module_of(file);
        let tokens = without_tests(&lex(text));
        let body = without_imports(&tokens);
        let written = paths(&body, &module).into_iter().map(|path| path.names);
        Self {
            file: file.to_owned(),
            items: items(&body),
            imports: imports(&tokens, &module),
            paths: written.collect(),
            module,
        }
    }
}

/// The names of the items that the tokens of a file define outside of braces.
fn items(tokens: &[Token]) -> BTreeSet<String> {
    const KEYWORDS: &[&str] = &[
        "struct",
        "enum",
        "union",
        "trait",
        "type",
        "const",
        "static",
        "fn",
        "macro_rules",
    ];
    let (mut found, mut depth) = (BTreeSet::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            keyword if depth == 0 && KEYWORDS.contains(&keyword) => {
                let after = tokens[at + 1..].iter().filter(|token| token.text != "!");
                let name = after.map(|token| token.text.clone()).next();
                found.extend(name.filter(|name| name != "fn" && name != "unsafe"));
            }
            _ => {}
        }
    }
    found
}

/// The circles of a graph: its strongly connected components of at least two files.
pub fn circles(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reached: Vec<BTreeSet<usize>> = (0..edges.len()).map(|from| reach(edges, from)).collect();
    let mut found: Vec<Vec<usize>> = Vec::new();
    for from in 0..edges.len() {
        let circle: Vec<usize> = (0..edges.len())
            .filter(|&to| reached[from].contains(&to) && reached[to].contains(&from))
            .collect();
        if circle.len() > 1 && circle[0] == from {
            found.push(circle);
        }
    }
    found
}

/// The files that `from` uses, directly or not.
fn reach(edges: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        let new: Vec<usize> = edges[file].difference(&reached).copied().collect();
        reached.extend(&new);
        open.extend(new);
    }
    reached
}
