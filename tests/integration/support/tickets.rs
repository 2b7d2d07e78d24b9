//! Random tickets.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::bf16;
use rand::Rng;
use rand::rngs::StdRng;
use tombola::model::{Base, LoadedTicket};
use tombola::ticket::{BaseManifest, DeltaDtype, Deltas, Metadata, TensorDelta, Ticket};

/// The distribution of a random ticket's deltas.
#[derive(Clone, Copy)]
pub struct RandomDeltas {
    /// Share of the weights of each parameter.
    pub density: f64,
    /// Bound of the deltas' magnitudes.
    pub largest: f32,
    pub dtype: DeltaDtype,
}

impl RandomDeltas {
    /// A delta for a parameter of `shape`, which always touches its first and its last weight.
    pub fn delta(self, shape: [usize; 2], rng: &mut StdRng) -> TensorDelta {
        let weights = shape[0] * shape[1];
        let edge = |i: usize| i == 0 || i == weights - 1;
        let kept: Vec<usize> = (0..weights)
            .filter(|&i| rng.random_bool(self.density) || edge(i))
            .collect();
        let values = kept
            .iter()
            .map(|_| rng.random_range(-self.largest..self.largest));
        let deltas = match self.dtype {
            DeltaDtype::Bf16 => Deltas::Bf16(values.map(bf16::from_f32).collect()),
            DeltaDtype::F32 => Deltas::F32(values.collect()),
        };
        TensorDelta::from_flat(shape, &kept, deltas).expect("a delta")
    }

    /// Deltas for the adaptable parameters of `base` that `adapts` accepts by name.
    pub fn tensors(
        self,
        base: &BaseManifest,
        rng: &mut StdRng,
        mut adapts: impl FnMut(&str, &mut StdRng) -> bool,
    ) -> BTreeMap<String, TensorDelta> {
        let mut tensors = BTreeMap::new();
        for (name, parameter) in &base.parameters {
            if parameter.adaptable && adapts(name, rng) {
                let shape = [parameter.shape[0], parameter.shape[1]];
                tensors.insert(name.clone(), self.delta(shape, rng));
            }
        }
        tensors
    }
}

/// The bytes of a ticket file for `base`.
pub fn encode_ticket(base: &BaseManifest, tensors: &BTreeMap<String, TensorDelta>) -> Vec<u8> {
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let metadata = Metadata::new("random", base, nonzeros);
    Ticket::encode(&metadata, tensors).expect("a ticket")
}

/// A ticket for `base`, written and read back.
pub fn bind_ticket(base: &Base, tensors: &BTreeMap<String, TensorDelta>) -> Arc<LoadedTicket> {
    let ticket = Ticket::from_bytes(&encode_ticket(&base.manifest, tensors)).expect("a ticket");
    let bound = ticket.bind(&base.manifest, false);
    Arc::new(LoadedTicket::new(bound.expect("a ticket of this base")))
}
