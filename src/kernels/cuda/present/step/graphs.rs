//! Capture and replay of CUDA graphs of steps.

use std::num::NonZeroUsize;

use candle_core::cuda::cudarc::driver::{CudaGraph, result, sys};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Result, Shape, Tensor};
use lru::LruCache;

use crate::kernels::cuda::present::device::capturing;
use crate::kernels::cuda::present::launch::count_launch;
use crate::kernels::cuda::present::view::{View, with_storage};
use crate::kernels::step::graphs::GraphKey;

/// Maximum number of cached graphs.
const MAX_CAPTURED: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Maximum number of remembered keys whose steps ran without a graph.
const MAX_SEEN: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Cache of captured graphs, by step key.
pub struct DeviceGraphs {
    device: CudaDevice,
    /// Shape and dtype of the results, for keys whose steps ran once.
    seen: LruCache<GraphKey, (Shape, DType)>,
    captured: LruCache<GraphKey, Captured>,
    /// Whether a capture has failed. Then no more are tried, because they would fail too.
    gave_up: bool,
}

struct Captured {
    graph: CudaGraph,
    /// Result of the step, overwritten by every replay.
    result: Tensor,
    /// Address of the step's inputs during the capture.
    inputs: u64,
}

// SAFETY: a graph may be used by any thread, one at a time: only the owner of DeviceGraphs uses and
// drops it, and DeviceGraphs is not Sync.
unsafe impl Send for Captured {}

impl DeviceGraphs {
    /// Steps per key before replays start: one runs, one is captured.
    pub const WARM_UP: usize = 2;

    /// Cache for a GPU; `None` for other devices.
    pub fn new(device: &Device) -> Option<Self> {
        match device {
            Device::Cuda(device) => Some(Self {
                device: device.clone(),
                seen: LruCache::new(MAX_SEEN),
                captured: LruCache::new(MAX_CAPTURED),
                gave_up: false,
            }),
            _ => None,
        }
    }

    /// Number of keys whose steps are replayed.
    pub fn captured(&self) -> usize {
        self.captured.len()
    }

    /// Result of `step`, whose inputs start at address `inputs`. The first step of a key runs,
    /// which also loads its kernels; the second is captured; later ones are replayed.
    pub fn run(
        &mut self,
        key: GraphKey,
        inputs: u64,
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.gave_up {
            return step();
        }
        let known = self.captured.get(&key);
        if known.is_none_or(|captured| captured.inputs != inputs) {
            let Some((shape, dtype)) = self.seen.get(&key) else {
                let result = step()?;
                let kind = (result.shape().clone(), result.dtype());
                self.seen.push(key, kind);
                return Ok(result);
            };
            match Captured::new(&self.device, inputs, (shape, *dtype), step) {
                Ok(captured) => self.captured.push(key.clone(), captured),
                Err(error) => return self.give_up(&error, step),
            };
        }
        let Some(captured) = self.captured.get(&key) else {
            candle_core::bail!("a captured step is missing from the cache");
        };
        // The graph allocates its memory at the first launch, which may run out of memory.
        if let Err(error) = captured.graph.launch().w() {
            return self.give_up(&error, step);
        }
        count_launch();
        Ok(captured.result.clone())
    }

    /// Runs this step and all later ones without graphs.
    fn give_up(
        &mut self,
        error: &candle_core::Error,
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let error = error.to_string();
        let error = error.lines().next().unwrap_or_default();
        tracing::warn!(
            "CUDA graphs are disabled, steps launch kernel by kernel from now on: {error}"
        );
        self.gave_up = true;
        self.captured.clear();
        step()
    }
}

impl Captured {
    /// Captures a step whose result has the given shape and dtype.
    fn new(
        device: &CudaDevice,
        inputs: u64,
        (shape, dtype): (&Shape, DType),
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Self> {
        let result = Tensor::zeros(shape, dtype, &Device::Cuda(device.clone()))?;
        Ok(Self {
            graph: capture(device, &result, step)?,
            result,
            inputs,
        })
    }
}

/// Captures a step, and the copy of its output to `result`. The graph owns the step's allocations
/// and frees all of them, including the output, after the copy.
///
/// # Errors
/// The driver cannot capture an operation of the step, or is out of memory.
fn capture(
    device: &CudaDevice,
    result: &Tensor,
    step: &dyn Fn() -> Result<Tensor>,
) -> Result<CudaGraph> {
    let guard = capturing();
    let stream = device.cuda_stream();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).w()?;
    let captured = step().and_then(|output| copy(device, &output, result));
    // If the capture failed, so may have frees, whose error the next call would report. The next
    // call must end the capture, so take that error first.
    let freed = stream.context().check_err().w();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    drop(guard);
    captured?;
    match graph? {
        Some(graph) => freed.map(|()| graph),
        None => candle_core::bail!("the capture of a step recorded nothing"),
    }
}

/// Copies a tensor to another of the same shape and dtype.
fn copy(device: &CudaDevice, from: &Tensor, to: &Tensor) -> Result<()> {
    if (from.shape(), from.dtype()) != (to.shape(), to.dtype()) {
        candle_core::bail!("steps of one graph key gave {to:?}, then {from:?}");
    }
    let bytes = from.elem_count() * from.dtype().size_in_bytes();
    let [from, to] = [pointer(from)?, pointer(to)?];
    let stream = device.cuda_stream();
    // SAFETY: both have that many bytes; only replays of this step write `to`, and nobody reads it
    // during the capture.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.w()
}

fn pointer(tensor: &Tensor) -> Result<u64> {
    with_storage(tensor, |input| Ok(View::new(input)?.pointer()))
}
