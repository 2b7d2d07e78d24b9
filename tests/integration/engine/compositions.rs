//! Compositions of tickets run as the files that a merge writes, to the bit in each mode.

use std::fs;
use std::path::Path;

use tombola::engine::{EngineConfig, Output, Request, SamplingParams, TicketMode};
use tombola::model::{BLOCK, Base, Dtype};
use tombola::registry::{Lease, Registry, RegistryOptions};
use tombola::ticket::merge::{merge, merged_dtype};
use tombola::ticket::{BaseManifest, BoundTicket, Ticket};

use crate::support::bases::{LLAMA, load_default, load_tiny};
use crate::support::engine::{
    Running, base_is_as_loaded, config, drain, overlay_config, registry, start, start_on,
};
use crate::support::environment::package;

/// Writes the sum of tickets of a folder as the ticket `name`.
fn merge_files(folder: &Path, base: &BaseManifest, parts: &[(&str, f32)], name: &str) {
    let file = |alias: &str| folder.join(format!("{alias}.safetensors"));
    let bound = |alias: &str| -> BoundTicket {
        let ticket = Ticket::read(&file(alias), 1 << 30).unwrap();
        ticket.bind(base, false).unwrap()
    };
    let parts: Vec<_> = parts
        .iter()
        .map(|&(alias, scale)| (bound(alias), scale))
        .collect();
    let dtype = merged_dtype(parts.iter().map(|(part, _)| part.widest()));
    let merged = merge(&parts, base, name, dtype, None).unwrap();
    merged.write(&file(name)).unwrap();
}

/// A greedy request for log-probabilities of a prompt and of some tokens more.
fn request(lease: Option<Lease>, prompt: Vec<u32>) -> Request {
    Request {
        scored: std::iter::once(1..prompt.len()).collect(),
        prompt,
        params: SamplingParams {
            max_tokens: 8,
            temperature: 0.0,
            logprobs: Some(3),
            ignore_eos: true,
            ..Default::default()
        },
        ticket: lease,
        ..Request::default()
    }
}

fn run(engine: &Running, lease: Option<Lease>, prompt: &[u32]) -> Vec<Output> {
    drain(
        &mut engine
            .handle
            .submit(request(lease, prompt.to_vec()))
            .unwrap(),
    )
}

fn without_cache(config: EngineConfig) -> EngineConfig {
    EngineConfig {
        enable_prefix_caching: false,
        ..config
    }
}

#[test]
fn a_composition_answers_as_the_merged_file_in_either_mode_alone_and_in_company() {
    let (before, folder) = registry(3, 0.5, 1 << 24);
    let manifest = load_tiny(LLAMA, Dtype::F32).manifest;
    drop(before);
    let sums: [(&str, &[(&str, f32)]); 3] = [
        ("t0+t1", &[("t0", 1.0), ("t1", 1.0)]),
        ("t0@0.5", &[("t0", 0.5)]),
        (
            "t2@-1.0+t0@0.25+t1@2.0",
            &[("t2", -1.0), ("t0", 0.25), ("t1", 2.0)],
        ),
    ];
    for (index, (_, parts)) in sums.iter().enumerate() {
        merge_files(folder.path(), &manifest, parts, &format!("merged{index}"));
    }
    let options = RegistryOptions::default();
    let opened = Registry::open(folder.path(), None, manifest, options).unwrap();
    let registry = opened.registry;
    let prompt: Vec<u32> = (0..40).map(|i| 3 + i * 37 % 250).collect();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for config in [config(), overlay_config()].map(without_cache) {
            let engine = start(dtype, &config);
            let plain = run(&engine, None, &prompt);
            let lease = |name: &str| Some(registry.lease(None, name).unwrap());
            let answers = sums
                .each_ref()
                .map(|(text, _)| run(&engine, lease(text), &prompt));
            for (index, answer) in answers.iter().enumerate() {
                let merged = run(&engine, lease(&format!("merged{index}")), &prompt);
                assert_eq!(*answer, merged, "{} in {dtype}", sums[index].0);
                assert_ne!(*answer, plain);
            }
            let submit = |(text, _): &(&str, _)| {
                let request = request(lease(text), prompt.clone());
                engine.handle.submit(request).unwrap()
            };
            let together = sums.each_ref().map(submit);
            let together = together.map(|mut stream| drain(&mut stream));
            assert_eq!(together, answers);
            assert_eq!(run(&engine, None, &prompt), plain);
            base_is_as_loaded(&engine);
        }
    }
}

#[test]
fn a_composition_shares_cached_blocks_with_its_own_requests_alone() {
    let (registry, _folder) = registry(2, 0.5, 1 << 24);
    let engine = start(Dtype::F32, &overlay_config());
    let prompt: Vec<u32> = (0..4 * BLOCK as u32).map(|i| 3 + i * 37 % 250).collect();
    let cached = |name: &str| {
        let request = Request {
            scored: Vec::new(),
            ..request(Some(registry.lease(None, name).unwrap()), prompt.clone())
        };
        let outputs = drain(&mut engine.handle.submit(request).unwrap());
        outputs[0].cached_tokens.unwrap()
    };
    assert_eq!(cached("t0"), 0);
    assert_eq!(cached("t0+t1"), 0);
    assert_eq!(cached("t0@0.5"), 0);
    assert!(cached("t1+t0") > 0);
    assert!(cached("t0@0.50") > 0);
    assert!(cached("t0@1.0") > 0);
}

/// An engine over the default base in bf16.
fn start_default(ticket_mode: TicketMode) -> Running {
    let config = EngineConfig {
        ticket_mode,
        kv_cache_bytes: 64 << 20,
        max_num_batched_tokens: 64,
        ..without_cache(config())
    };
    start_on(load_default(Dtype::Bf16), &config)
}

#[test]
fn the_shipped_tickets_compose_on_the_default_base() {
    let Base { manifest, .. } = load_default(Dtype::Bf16);
    let folder = tempfile::tempdir().unwrap();
    for name in ["sql.safetensors", "arc.safetensors"] {
        fs::copy(package("adapters").join(name), folder.path().join(name)).unwrap();
    }
    let sums: [(&str, &[(&str, f32)]); 2] = [
        ("arc@0.5+sql", &[("arc", 0.5), ("sql", 1.0)]),
        ("sql@0.5", &[("sql", 0.5)]),
    ];
    for (index, (_, parts)) in sums.iter().enumerate() {
        merge_files(folder.path(), &manifest, parts, &format!("merged{index}"));
    }
    let options = RegistryOptions::default();
    let opened = Registry::open(folder.path(), None, manifest, options).unwrap();
    let registry = opened.registry;
    let prompt: Vec<u32> = (0..32).map(|i| 300 + i * 911 % 20_000).collect();
    for mode in [TicketMode::Apply, TicketMode::Overlay] {
        let engine = start_default(mode);
        let lease = |name: &str| Some(registry.lease(None, name).unwrap());
        let plain = run(&engine, None, &prompt);
        let alone = run(&engine, lease("sql"), &prompt);
        for (index, (text, _)) in sums.iter().enumerate() {
            let composed = run(&engine, lease(text), &prompt);
            let merged = run(&engine, lease(&format!("merged{index}")), &prompt);
            assert_eq!(composed, merged, "{text}, {mode}");
            assert!(composed != plain && composed != alone, "{text}");
        }
        assert_eq!(run(&engine, None, &prompt), plain);
        base_is_as_loaded(&engine);
    }
}
