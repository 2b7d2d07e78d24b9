//! Launches that are captured and replayed.

use std::num::NonZeroUsize;

use candle_core::cuda::cudarc::driver::{CudaGraph, result, sys};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{Result, Storage, Tensor};
use lru::LruCache;

use super::super::graphs::Form;
use super::device::capturing;
use super::launch::count_launch;
use super::view::View;

/// Forms that are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// What was captured of steps, by their form.
pub struct DeviceGraphs {
    device: CudaDevice,
    known: LruCache<Form, Known>,
    /// Whether a capture has failed: another would, too.
    gave_up: bool,
}

/// A form that has come before.
struct Known {
    /// What the step gave: every replay writes it again.
    result: Tensor,
    captured: Option<Captured>,
}

struct Captured {
    graph: CudaGraph,
    /// Where its inputs were.
    inputs: u64,
}

// SAFETY: a graph may be used by any thread, by one at a time: it is used and dropped by the owner of DeviceGraphs
// alone, which is not Sync.
unsafe impl Send for Captured {}

impl DeviceGraphs {
    /// Steps of a form that are not replayed yet: the one that runs, and the one that is captured.
    pub const WARM_UP: usize = 2;

    pub fn new(device: &CudaDevice) -> Self {
        Self {
            device: device.clone(),
            known: LruCache::new(KEPT),
            gave_up: false,
        }
    }

    /// Forms whose steps are replayed.
    pub fn captured(&self) -> usize {
        let captured = self
            .known
            .iter()
            .filter(|(_, known)| known.captured.is_some());
        captured.count()
    }

    /// What `step` gives, whose inputs begin at `inputs`. The first step of a form runs, which also loads what it
    /// needs; the second is captured; those after it are replayed.
    pub fn run(
        &mut self,
        form: Form,
        inputs: u64,
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.gave_up {
            return step();
        }
        let Some(known) = self.known.get_mut(&form) else {
            let result = step()?;
            let captured = None;
            let known = Known {
                result: result.clone(),
                captured,
            };
            self.known.push(form, known);
            return Ok(result);
        };
        let captured = known.captured.take();
        let captured = match captured.filter(|captured| captured.inputs == inputs) {
            Some(captured) => captured,
            None => match capture(&self.device, &known.result, step) {
                Ok(graph) => Captured { graph, inputs },
                Err(error) => {
                    let error = error.to_string();
                    let error = error.lines().next().unwrap_or_default();
                    tracing::warn!("steps are launched kernel by kernel from now on: {error}");
                    self.gave_up = true;
                    self.known.clear();
                    return step();
                }
            },
        };
        captured.graph.launch().w()?;
        count_launch();
        known.captured = Some(captured);
        Ok(known.result.clone())
    }
}

/// Captures a step, and that what it gives is copied to `result`. Its allocations become the graph's own: whatever a
/// step allocates, but for what it gives, it frees.
///
/// # Errors
/// The driver refuses something that the step does, or has no memory.
fn capture(
    device: &CudaDevice,
    result: &Tensor,
    step: &dyn Fn() -> Result<Tensor>,
) -> Result<CudaGraph> {
    let alone = capturing();
    let stream = device.cuda_stream();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).w()?;
    let captured = step().and_then(|given| copy(device, &given, result));
    // Also where the step has failed: it ends the capture.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    drop(alone);
    // What was freed in vain in a capture that has failed was counted against the next call.
    let freed = stream.context().check_err().w();
    captured?;
    match graph? {
        Some(graph) => freed.map(|()| graph),
        None => candle_core::bail!("nothing was captured"),
    }
}

/// Copies values of one shape and dtype.
fn copy(device: &CudaDevice, from: &Tensor, to: &Tensor) -> Result<()> {
    if (from.shape(), from.dtype()) != (to.shape(), to.dtype()) {
        candle_core::bail!("a step of one form gave {from:?}, then {to:?}");
    }
    let bytes = from.elem_count() * from.dtype().size_in_bytes();
    let [from, to] = [pointer(from)?, pointer(to)?];
    let stream = device.cuda_stream();
    // SAFETY: so many bytes lie there; nobody else reads or writes `to`, which only replays of this step write.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.w()
}

fn pointer(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => Ok(View::new(storage, layout)?.pointer()),
        _ => candle_core::bail!("a step that did not run on the GPU"),
    }
}
