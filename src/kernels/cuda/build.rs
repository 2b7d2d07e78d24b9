//! Build script: sets the commit that `tombola --version` shows and, with feature `cuda`, compiles
//! the kernels to one fat binary: machine code for sm_80 and sm_90, and PTX for newer GPUs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "src/kernels/cuda/device";

fn main() {
    set_commit();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo:rerun-if-changed=src/kernels/cuda/build.rs");
        return;
    }
    println!("cargo:rerun-if-changed={FOLDER}");
    for name in ["CUDA_HOME", "NVCC", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let named = env::var_os("NVCC").map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let nvcc = named.or(home).unwrap_or_else(|| PathBuf::from("nvcc"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let targets = [
        "arch=compute_80,code=sm_80",
        "arch=compute_90,code=sm_90",
        "arch=compute_90,code=compute_90",
    ];
    let status = Command::new(&nvcc)
        .args([
            "-O3",
            "-std=c++17",
            "-Werror",
            "all-warnings",
            "--threads",
            "0",
        ])
        .args(targets.iter().flat_map(|target| ["-gencode", target]))
        .args(["-fatbin", &format!("{FOLDER}/kernels.cu"), "-o"])
        .arg(out.join("kernels.fatbin"))
        .status();
    let status = status.unwrap_or_else(|error| {
        let nvcc = nvcc.display();
        panic!("feature cuda needs nvcc (deploy/cuda/toolkit.sh installs it): {nvcc}: {error}")
    });
    assert!(status.success(), "nvcc failed on {FOLDER}/kernels.cu");
}

/// Sets `TOMBOLA_COMMIT`, which `tombola --version` shows: the environment variable of that name,
/// else the short commit id of the checkout, else `unknown`.
fn set_commit() {
    println!("cargo:rerun-if-env-changed=TOMBOLA_COMMIT");
    // Each commit changes the log of HEAD. With feature `cuda` a rerun recompiles the kernels, so
    // only a checkout of another branch triggers one.
    let watched = match env::var_os("CARGO_FEATURE_CUDA") {
        None => ".git/logs/HEAD",
        Some(_) => ".git/HEAD",
    };
    // Cargo treats a missing watched file as changed in every build.
    if Path::new(watched).exists() {
        println!("cargo:rerun-if-changed={watched}");
    }
    let given = env::var("TOMBOLA_COMMIT").ok();
    let commit = given.filter(|commit| !commit.is_empty()).or_else(commit);
    println!(
        "cargo:rustc-env=TOMBOLA_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
}

/// Short commit id of the checkout; `None` outside a checkout, or without git.
fn commit() -> Option<String> {
    // A repository in a parent folder may belong to another project.
    if !Path::new(".git").exists() {
        return None;
    }
    let git = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    let output = git.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
