//! Swaps: any history of them leaves the base unchanged, and an applied ticket adds its deltas.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::model::{Base, Dtype, Files, LoadedTicket};
use tombola::ticket::DeltaDtype;

use crate::support::bases::{LLAMA, copy_tiny, load, load_tiny, read_tensors, write_tensors};
use crate::support::player::Player;
use crate::support::tickets::{RandomDeltas, bind_ticket};

/// A random ticket for some projections of a base, of any density from nearly 0 to 1.
fn random_ticket(base: &Base, rng: &mut StdRng) -> Arc<LoadedTicket> {
    let deltas = RandomDeltas {
        density: 10f64.powf(rng.random_range(-3.0..0.0)),
        largest: 1.0,
        dtype: if rng.random() {
            DeltaDtype::Bf16
        } else {
            DeltaDtype::F32
        },
    };
    let mut tensors = BTreeMap::new();
    while tensors.is_empty() {
        tensors = deltas.tensors(&base.manifest, rng, |_, rng| rng.random_bool(0.4));
    }
    bind_ticket(base, &tensors)
}

#[test]
fn a_thousand_random_swaps_leave_the_base_as_loaded() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (name, seed) in [(LLAMA, 1), ("qwen2", 2), ("qwen3", 3)] {
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

/// A base whose checkpoint was edited by hand equals the base with the ticket applied.
#[test]
fn applying_equals_editing_the_checkpoint() {
    for name in [LLAMA, "qwen2", "qwen3"] {
        let mut base = load_tiny(name, Dtype::F32);
        let ticket = random_ticket(&base, &mut StdRng::seed_from_u64(9));
        let folder = copy_tiny(name);
        let mut tensors = read_tensors(folder.path());
        for (name, delta) in ticket.tensors() {
            let weight = &tensors[name];
            let mut values: Vec<Vec<f32>> = weight.to_vec2().unwrap();
            for (row, column, delta) in delta.entries() {
                values[row][column] += 0.75 * delta;
            }
            let edited = Tensor::new(values, weight.device()).unwrap();
            tensors.insert(name.clone(), edited);
        }
        write_tensors(folder.path(), &tensors);
        let edited = load(&Files::Folder(folder.path().to_owned()), Dtype::F32);
        base.resident.swap(Some(&ticket), 0.75).unwrap();
        assert_eq!(
            base.resident.digest().unwrap(),
            edited.loaded_digest,
            "{name}"
        );
        let run = |base: &Base| Player::new(base, 1, 16).step(&[(0, &[9, 8, 7])]);
        assert_eq!(run(&base), run(&edited), "{name}");
        // The same ticket again is no swap; another scale of it is.
        assert_eq!(base.resident.swap(Some(&ticket), 0.75).unwrap(), None);
        let report = base.resident.swap(Some(&ticket), 0.5).unwrap().unwrap();
        assert_eq!(report.nonzeros, 2 * ticket.nonzeros());
    }
}

#[test]
fn a_ticket_of_another_base_is_refused_and_nothing_changes() {
    let mut base = load_tiny(LLAMA, Dtype::F32);
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
