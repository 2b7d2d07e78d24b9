//! The rules on the layout of files: module folders.

use std::collections::BTreeSet;

use crate::{root, rust_files};

/// A module with submodules is `foo/mod.rs`, never `foo.rs` beside `foo/`.
#[test]
fn no_file_stands_beside_a_folder_of_its_name() {
    for folder in ["src", "tests"] {
        let files: Vec<String> = names(folder);
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

fn names(folder: &str) -> Vec<String> {
    let files = rust_files(root(), folder).into_iter();
    files.map(|(file, _)| file).collect()
}
