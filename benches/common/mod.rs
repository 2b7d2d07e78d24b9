//! What the benches share; each uses a part of it.
#![allow(dead_code)]

pub mod floor;

use std::collections::BTreeMap;
use std::sync::Arc;

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::kernels::Pool;
use tombola::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, default_gguf,
};
use tombola::ticket::{BoundTicket, Deltas, Metadata, TensorDelta, Ticket};

/// The default base, resident.
pub fn load(dtype: Dtype) -> Base {
    load_as(dtype, false)
}

/// The default base, its weights as its file has them.
pub fn load_quantized() -> Base {
    load_as(Dtype::F32, true)
}

fn load_as(dtype: Dtype, keep_quantized: bool) -> Base {
    let cache = CacheDir::at(CacheDir::default_path());
    let gguf = default_gguf(&cache, &mut |_| ()).expect("the default base");
    let options = LoadOptions {
        dtype,
        device: DeviceSpec::Cpu,
        max_positions: None,
        keep_quantized,
    };
    let checkpoint = Checkpoint::open(&Files::Gguf(gguf)).expect("a checkpoint");
    Base::load("base", &checkpoint, &options, &cache, &mut |_| ()).expect("a base")
}

/// All cores, as the engine uses them.
pub fn pool() -> Pool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Pool::new(threads).expect("threads")
}

/// Positions that are kept independently of each other, each with the same chance: the gaps between them
/// are drawn.
fn positions(count: usize, density: f64, rng: &mut StdRng) -> Vec<usize> {
    let mut gap = || (rng.random::<f64>().ln() / (1.0 - density).ln()) as usize;
    let first = gap();
    let next = |&at: &usize| Some(at + 1 + gap());
    let all = std::iter::successors(Some(first), next);
    all.take_while(|&at| at < count).collect()
}

/// Positions drawn independently over all adaptable weights.
pub fn random_ticket(base: &Base, density: f64, seed: u64) -> Arc<BoundTicket> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tensors = BTreeMap::new();
    for (name, parameter) in base.manifest.parameters.iter().filter(|(_, p)| p.adaptable) {
        let shape = [parameter.shape[0], parameter.shape[1]];
        let kept = positions(shape[0] * shape[1], density, &mut rng);
        let deltas = kept
            .iter()
            .map(|_| bf16::from_f32(rng.random_range(-1e-3..1e-3)))
            .collect();
        let delta = TensorDelta::from_flat(shape, &kept, Deltas::Bf16(deltas)).expect("a delta");
        tensors.insert(name.clone(), delta);
    }
    let metadata = Metadata {
        name: "random".to_owned(),
        base_name: base.manifest.name.clone(),
        base_fingerprint: base.manifest.fingerprint,
        density,
        license: None,
        training: None,
    };
    let bytes = Ticket::encode(&metadata, &tensors).expect("a ticket");
    let ticket = Ticket::from_bytes(&bytes).expect("a ticket");
    Arc::new(
        ticket
            .bind(&base.manifest, false)
            .expect("a ticket of this base"),
    )
}
