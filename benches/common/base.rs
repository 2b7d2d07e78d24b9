//! The default base, and random tickets of it.

use std::sync::Arc;

use tombola::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, LoadedTicket, default_gguf,
};
use tombola::ticket;

/// The default base with dense weights; with `keep_quantized`, its weights are as in its file.
pub fn load(dtype: Dtype, keep_quantized: bool) -> Base {
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

/// A ticket of random positions over all adaptable weights.
pub fn random_ticket(base: &Base, density: f64, seed: u64) -> Arc<LoadedTicket> {
    let ticket = ticket::random_ticket(&base.manifest, density, seed, |_| true);
    Arc::new(LoadedTicket::new(ticket.expect("a ticket of this base")))
}
