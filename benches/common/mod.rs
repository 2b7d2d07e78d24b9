//! Fixtures that the benches share.
#![allow(dead_code, reason = "each bench uses a part of this module")]

pub mod floor;

use std::sync::Arc;

use tombola::kernels::Pool;
use tombola::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, LoadedTicket, default_gguf,
};
use tombola::ticket;

/// The default base with dense weights.
pub fn load(dtype: Dtype) -> Base {
    load_as(dtype, false)
}

/// The default base, its weights quantised as in its file.
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

/// The thread pool of the engine, on all cores.
pub fn pool() -> Pool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Pool::new(threads).expect("threads")
}

/// A ticket of random positions over all adaptable weights.
pub fn random_ticket(base: &Base, density: f64, seed: u64) -> Arc<LoadedTicket> {
    let ticket = ticket::random_ticket(&base.manifest, density, seed, |_| true);
    Arc::new(LoadedTicket::new(ticket.expect("a ticket of this base")))
}
