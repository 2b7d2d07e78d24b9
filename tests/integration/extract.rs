//! `tombola ticket extract`: tickets from the difference of two models.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tombola::model::{Dtype, Files, LoadedTicket};
use tombola::ticket::{Digest, Ticket};

use crate::support::bases::{
    LLAMA, copy_tiny, edit_config, load, load_tiny, read_tensors, tiny_folder, write_tensors,
};
use crate::support::environment::{self, scratch, utf8};

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

/// A copy of the base as f32, with weights multiplied: (parameter, position, factor).
fn tuned(edits: &[(&str, usize, f32)]) -> tempfile::TempDir {
    let folder = copy_tiny(LLAMA);
    let mut tensors = read_tensors(folder.path());
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_dtype(DType::F32).unwrap();
    }
    for &(parameter, position, factor) in edits {
        let tensor = tensors.get_mut(parameter).unwrap();
        let shape = tensor.dims().to_vec();
        let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values[position] != 0.0);
        values[position] *= factor;
        *tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    }
    write_tensors(folder.path(), &tensors);
    folder
}

fn tombola(args: &[&str]) -> Output {
    environment::tombola()
        .args(args)
        .env("TOMBOLA_CACHE_DIR", scratch().path())
        .output()
        .unwrap()
}

/// Runs `ticket extract` to `out`; returns its output, or its error of one line.
fn extract(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> Result<String, String> {
    let [base, tuned, out] = [base, tuned, out].map(utf8);
    let args = ["ticket", "extract", "--name", "moved", "--base", base];
    let paths = ["--tuned", tuned, "--out", out];
    let output = tombola(&[&args[..], &paths, more].concat());
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    Err(error)
}

/// The number of weights that a ticket for the base can touch.
fn weights() -> f64 {
    load_tiny(LLAMA, Dtype::F32).manifest.adaptable_weights() as f64
}

/// The positions (parameter, row, column) of a ticket, in order.
fn positions(ticket: &Ticket) -> Vec<(&str, usize, usize)> {
    let tensors = ticket.tensors().iter();
    let entries = tensors.flat_map(|(name, delta)| {
        let entries = delta.entries();
        entries.map(|(row, column, _)| (name.as_str(), row, column))
    });
    entries.collect()
}

#[test]
fn a_ticket_of_all_differences_turns_the_base_into_the_tuned_model() {
    // Up to twice the weight, the difference is exact, and so is its sum with the base.
    let edits = [
        (UP, 0, 1.5),
        (UP, 7167, 0.75),
        (QUERY, 100, 1.25),
        ("model.layers.1.mlp.down_proj.weight", 64, 2.0),
    ];
    let (base, tuned) = (tiny_folder(LLAMA), tuned(&edits));
    let out = tuned.path().join("moved.safetensors");
    // Four weights; the half is rounded down.
    let density = (4.5 / weights()).to_string();
    let more = ["--density", &density, "--dtype", "f32", "--license", "MIT"];
    let text = extract(&base, tuned.path(), &out, &more).unwrap();
    assert!(
        text.starts_with("wrote ") && !text.contains("warning"),
        "{text}"
    );
    assert!(
        text.contains("\n4 of the 4 weights that differ are kept\n"),
        "{text}"
    );

    let mut base = load_tiny(LLAMA, Dtype::F32);
    let wanted = load(&Files::Folder(tuned.path().to_owned()), Dtype::F32);
    let ticket = Ticket::read(&out, 1 << 20).unwrap();
    assert_eq!(ticket.nonzeros(), 4);
    let metadata = ticket.metadata();
    assert_eq!(metadata.license.as_deref(), Some("MIT"));
    let training = metadata.training.as_ref().unwrap();
    let name = tuned.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(training["extracted_from"], name);
    assert_eq!(
        training["tuned_fingerprint"],
        wanted.manifest.fingerprint.to_string()
    );
    let ticket = Arc::new(LoadedTicket::new(
        ticket.bind(&base.manifest, false).unwrap(),
    ));
    base.resident.swap(Some(&ticket), 1.0).unwrap();
    let applied: Digest = base.resident.digest().unwrap();
    assert_eq!(applied, wanted.loaded_digest);
}

#[test]
fn the_largest_differences_are_kept_in_all_or_in_each_parameter() {
    let factors = |parameter, largest: f32| {
        (0..4).map(move |i| (parameter, 10 * i, 1.0 + largest / (i + 1) as f32))
    };
    // All differences in UP are far above those in QUERY, for any weights.
    let edits: Vec<_> = factors(UP, 1e6).chain(factors(QUERY, 1e-3)).collect();
    let (base, tuned) = (tiny_folder(LLAMA), tuned(&edits));
    let out = tuned.path().join("moved.safetensors");
    let kept = |density: f64, scope| {
        let density = density.to_string();
        let more = ["--density", &density, "--scope", scope];
        let text = extract(&base, tuned.path(), &out, &more).unwrap();
        (text, Ticket::read(&out, 1 << 20).unwrap())
    };
    let (text, ticket) = kept(4.5 / weights(), "global");
    assert!(
        positions(&ticket).iter().all(|(name, ..)| *name == UP),
        "{ticket:?}"
    );
    assert_eq!(ticket.nonzeros(), 4);
    assert!(text.contains("4 of the 8 weights"), "{text}");
    // UP has 7,168 weights, QUERY 4,096: 2 and 1 of them.
    let (_, ticket) = kept(1.5 / 4096.0, "tensor");
    let counts = ticket.tensors().iter();
    let counts: Vec<_> = counts
        .map(|(name, d)| (name.as_str(), d.nonzeros()))
        .collect();
    assert_eq!(counts, [(UP, 2), (QUERY, 1)]);
}

#[test]
fn differences_that_a_ticket_cannot_hold_are_reported() {
    let edits = [
        (UP, 3, 1.5),
        ("model.norm.weight", 0, 1.5),
        ("model.embed_tokens.weight", 500, 1.5),
    ];
    let (base, tuned) = (tiny_folder(LLAMA), tuned(&edits));
    let out = tuned.path().join("moved.safetensors");
    let text = extract(&base, tuned.path(), &out, &["--density", "1"]).unwrap();
    let warning = text.lines().find(|line| line.starts_with("warning: "));
    let warning = warning.unwrap_or_else(|| panic!("{text}"));
    assert!(warning.contains(" in 2 of the parameters"), "{warning}");

    let only_norm = self::tuned(&edits[1..2]);
    let error = extract(&base, only_norm.path(), &out, &["--density", "1"]).unwrap_err();
    assert!(error.contains("nothing to extract"), "{error}");
    assert!(error.contains("in 1 of the parameters"), "{error}");
}

#[test]
fn models_that_do_not_compare_are_refused() {
    let (base, tuned) = (tiny_folder(LLAMA), tuned(&[(UP, 3, 1.5)]));
    let out = tuned.path().join("moved.safetensors");
    let refusal = |tuned: &Path, more: &[&str]| {
        let error = extract(&base, tuned, &out, more).unwrap_err();
        assert!(!out.exists());
        error
    };
    let all = ["--density", "1"];
    let same = refusal(&base, &all);
    assert!(same.contains("hold the same weights"), "{same}");
    let other = refusal(&tiny_folder("qwen2"), &all);
    assert!(
        other.contains("differ in architecture: parameter `"),
        "{other}"
    );
    let missing = refusal(Path::new("no/such/model/here"), &all);
    assert!(
        missing.contains("--tuned: ") && missing.contains("no/such/model/here"),
        "{missing}"
    );
    let none = refusal(tuned.path(), &["--density", "1e-9"]);
    assert!(none.contains("keeps none of"), "{none}");

    // The same shapes, but split into other heads.
    edit_config(tuned.path(), |config| {
        config["num_attention_heads"] = 2.into();
        config["num_key_value_heads"] = 1.into();
        config["head_dim"] = 32.into();
    });
    let heads = refusal(tuned.path(), &all);
    assert!(heads.contains("query and key heads"), "{heads}");
}

#[test]
fn a_density_is_above_0_and_at_most_1() {
    for density in ["0", "1.5", "NaN", "some"] {
        let args = [
            "ticket", "extract", "--base", "a", "--tuned", "b", "--name", "c", "--out",
        ];
        let output = tombola(&[&args[..], &["d", "--density", density]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{density}: {text}");
        assert!(text.contains("--density"), "{text}");
    }
}
