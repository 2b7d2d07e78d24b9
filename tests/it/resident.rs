//! The base is unharmed by any history of swaps, and what is applied is what the ticket says.

use std::sync::Arc;

use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use tombola::model::{Base, Dtype};
use tombola::ticket::{BoundTicket, Deltas, Metadata, TensorDelta, Ticket};

use crate::common::{Player, load_tiny};

/// A random ticket over some projections of a base: rows may be empty or full, the first and the
/// last weight are often among the positions.
fn random_ticket(base: &Base, rng: &mut StdRng) -> Arc<BoundTicket> {
    let density = 10f64.powf(rng.random_range(-3.0..0.0));
    let half = rng.random::<bool>();
    let mut tensors = BTreeMap::new();
    while tensors.is_empty() {
        let adaptable = base.manifest.parameters.iter().filter(|(_, p)| p.adaptable);
        for (name, parameter) in adaptable {
            if rng.random_bool(0.4) {
                let shape = [parameter.shape[0], parameter.shape[1]];
                let weights = shape[0] * shape[1];
                let edge = |i: usize| i == 0 || i == weights - 1;
                let positions = 0..weights;
                let kept = positions.filter(|&i| rng.random_bool(density) || edge(i));
                let kept: Vec<usize> = kept.collect();
                let deltas: Vec<f32> = kept.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
                let deltas = if half {
                    Deltas::Bf16(deltas.into_iter().map(bf16::from_f32).collect())
                } else {
                    Deltas::F32(deltas)
                };
                let delta = TensorDelta::from_flat(shape, &kept, deltas).unwrap();
                tensors.insert(name.clone(), delta);
            }
        }
    }
    bind(base, tensors)
}

fn bind(base: &Base, tensors: BTreeMap<String, TensorDelta>) -> Arc<BoundTicket> {
    let metadata = Metadata {
        name: "random".to_owned(),
        base_name: base.manifest.name.clone(),
        base_fingerprint: base.manifest.fingerprint,
        density: 0.5,
        license: None,
        training: None,
    };
    let bytes = Ticket::encode(&metadata, &tensors).unwrap();
    Arc::new(
        Ticket::from_bytes(&bytes)
            .unwrap()
            .bind(&base.manifest, false)
            .unwrap(),
    )
}

#[test]
fn a_thousand_random_swaps_leave_the_base_as_loaded() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (name, seed) in [("llama-untied", 1), ("qwen2", 2), ("qwen3", 3)] {
            let mut base = load_tiny(name, dtype);
            let loaded = base.resident.digests().unwrap();
            let mut rng = StdRng::seed_from_u64(seed);
            let tickets: Vec<_> = (0..20).map(|_| random_ticket(&base, &mut rng)).collect();
            for swap in 0..1000 {
                let ticket = tickets.get(rng.random_range(0..tickets.len() + 2));
                let scale = rng.random_range(-2.0..2.0);
                base.resident.swap(ticket, scale).unwrap();
                if swap % 100 == 0 {
                    base.resident.swap(None, 1.0).unwrap();
                    assert_eq!(
                        base.resident.digests().unwrap(),
                        loaded,
                        "{name} {dtype} {swap}"
                    );
                }
            }
            base.resident.swap(None, 1.0).unwrap();
            assert_eq!(base.resident.digests().unwrap(), loaded, "{name} {dtype}");
            assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
        }
    }
}

#[test]
fn any_short_history_is_undone() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let base = std::cell::RefCell::new(load_tiny("llama3-rope", dtype));
        let loaded = base.borrow().resident.digests().unwrap();
        let history = prop::collection::vec((any::<u64>(), -100f32..100.0, any::<bool>()), 1..8);
        let mut runner = TestRunner::new(Config::with_cases(24));
        let property = |history: Vec<(u64, f32, bool)>| {
            let base = &mut *base.borrow_mut();
            for (seed, scale, bare) in history {
                let ticket = random_ticket(base, &mut StdRng::seed_from_u64(seed));
                let ticket = (!bare).then_some(&ticket);
                base.resident.swap(ticket, scale).unwrap();
                prop_assert_eq!(base.resident.applied(), ticket.map(|t| t.digest()));
            }
            base.resident.swap(None, 1.0).unwrap();
            prop_assert_eq!(&base.resident.digests().unwrap(), &loaded);
            Ok(())
        };
        runner.run(&history, property).unwrap();
    }
}

/// A projection whose checkpoint is edited by hand computes what the applied ticket computes.
#[test]
fn applying_equals_editing_the_checkpoint() {
    for name in ["llama-untied", "qwen2", "qwen3"] {
        let mut base = load_tiny(name, Dtype::F32);
        let ticket = random_ticket(&base, &mut StdRng::seed_from_u64(9));
        let source = crate::common::golden("tiny").join(name);
        let path = source.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        for (name, delta) in ticket.tensors() {
            let weight = &tensors[name];
            let mut values: Vec<Vec<f32>> = weight.to_vec2().unwrap();
            for (row, column, delta) in delta.entries() {
                values[row][column] += 0.75 * delta;
            }
            let edited = candle_core::Tensor::new(values, weight.device()).unwrap();
            tensors.insert(name.clone(), edited);
        }
        let folder = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        std::fs::copy(
            source.join("config.json"),
            folder.path().join("config.json"),
        )
        .unwrap();
        let files = tombola::model::Files::Folder(folder.path().to_owned());
        let edited = crate::common::load(&files, Dtype::F32);
        base.resident.swap(Some(&ticket), 0.75).unwrap();
        assert_eq!(
            base.resident.digest().unwrap(),
            edited.loaded_digest,
            "{name}"
        );
        let run = |base: &Base| Player::new(base, 1, 16).step(&[(0, &[9, 8, 7])]);
        assert_eq!(run(&base), run(&edited), "{name}");
        // The same ticket again is no swap; another scale is.
        assert_eq!(base.resident.swap(Some(&ticket), 0.75).unwrap(), None);
        let report = base.resident.swap(Some(&ticket), 0.5).unwrap().unwrap();
        assert_eq!(report.nonzeros, 2 * ticket.nonzeros());
    }
}
