//! The base is unharmed by any history of swaps, and what is applied is what the ticket says.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use tombola::model::{Base, Dtype};
use tombola::ticket::{BoundTicket, Ticket};

use crate::common::{Player, encode_ticket, load_tiny, random_delta};

/// A random ticket over some projections of a base: nearly empty to full.
fn random_ticket(base: &Base, rng: &mut StdRng) -> Arc<BoundTicket> {
    let density = 10f64.powf(rng.random_range(-3.0..0.0));
    let half = rng.random::<bool>();
    let mut tensors = BTreeMap::new();
    while tensors.is_empty() {
        let adaptable = base.manifest.parameters.iter().filter(|(_, p)| p.adaptable);
        for (name, parameter) in adaptable {
            if rng.random_bool(0.4) {
                let shape = [parameter.shape[0], parameter.shape[1]];
                let delta = random_delta(shape, density, 1.0, half, rng);
                tensors.insert(name.clone(), delta);
            }
        }
    }
    let ticket = Ticket::from_bytes(&encode_ticket(&base.manifest, &tensors)).unwrap();
    Arc::new(ticket.bind(&base.manifest, false).unwrap())
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

#[test]
fn a_ticket_of_another_base_is_refused_and_nothing_changes() {
    let mut base = load_tiny("llama-untied", Dtype::F32);
    let other = load_tiny("qwen3", Dtype::F32);
    let mut rng = StdRng::seed_from_u64(3);
    let (own, foreign) = (
        random_ticket(&base, &mut rng),
        random_ticket(&other, &mut rng),
    );
    base.resident.swap(Some(&own), 1.0).unwrap();
    let error = base
        .resident
        .swap(Some(&foreign), 1.0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&other.manifest.fingerprint.to_string()),
        "{error}"
    );
    assert_eq!(base.resident.applied(), Some(own.digest()));
    base.resident.swap(None, 1.0).unwrap();
    assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
}
