//! What the benches share.

use rayon::ThreadPool;
use tombola::kernels;
use tombola::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, default_gguf,
};

/// The default base, resident.
pub fn load(dtype: Dtype) -> Base {
    let cache = CacheDir::at(CacheDir::default_path());
    let gguf = default_gguf(&cache, &mut |_| ()).expect("the default base");
    let options = LoadOptions {
        dtype,
        device: DeviceSpec::Cpu,
        max_positions: None,
    };
    let checkpoint = Checkpoint::open(&Files::Gguf(gguf)).expect("a checkpoint");
    Base::load("base", &checkpoint, &options, &cache, &mut |_| ()).expect("a base")
}

/// All cores, as the engine uses them.
pub fn pool() -> ThreadPool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    kernels::pool(threads).expect("threads")
}
