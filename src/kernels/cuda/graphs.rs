//! Launches that are captured and replayed.

use std::num::NonZeroUsize;

use candle_core::cuda::cudarc::driver::{CudaGraph, result, sys};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor};
use lru::LruCache;

use super::device::capturing;
use super::launch::count_launch;
use super::view::View;
use crate::kernels::step::graphs::Form;

/// Forms whose graphs are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Forms that are remembered as having come once.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What was captured of steps, by their form.
pub struct DeviceGraphs {
    device: CudaDevice,
    /// What steps of forms gave that have come once.
    seen: LruCache<Form, (Shape, DType)>,
    captured: LruCache<Form, Captured>,
    /// Whether a capture has failed: another would, too.
    gave_up: bool,
}

struct Captured {
    graph: CudaGraph,
    /// What the step gives: every replay writes it again.
    result: Tensor,
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
            seen: LruCache::new(REMEMBERED),
            captured: LruCache::new(KEPT),
            gave_up: false,
        }
    }

    /// Forms whose steps are replayed.
    pub fn captured(&self) -> usize {
        self.captured.len()
    }

    /// What `step` gives, whose inputs begin at `inputs`. The first step of a form runs, which also loads what it
    /// needs; the second is captured; those after it are replayed.
    pub(in crate::kernels) fn run(
        &mut self,
        form: Form,
        inputs: u64,
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.gave_up {
            return step();
        }
        let known = self.captured.get(&form);
        if known.is_none_or(|captured| captured.inputs != inputs) {
            let Some((shape, dtype)) = self.seen.get(&form) else {
                let result = step()?;
                let given = (result.shape().clone(), result.dtype());
                self.seen.push(form, given);
                return Ok(result);
            };
            match Captured::new(&self.device, inputs, (shape, *dtype), step) {
                Ok(captured) => self.captured.push(form.clone(), captured),
                Err(error) => return self.give_up(&error, step),
            };
        }
        let Some(captured) = self.captured.get(&form) else {
            candle_core::bail!("a step was captured and is not there");
        };
        // Its memory is the graph's from the first launch on, which may be refused for want of it.
        if let Err(error) = captured.graph.launch().w() {
            return self.give_up(&error, step);
        }
        count_launch();
        Ok(captured.result.clone())
    }

    /// Runs this step, and those after it, without graphs.
    fn give_up(
        &mut self,
        error: &candle_core::Error,
        step: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let error = error.to_string();
        let error = error.lines().next().unwrap_or_default();
        tracing::warn!("steps are launched kernel by kernel from now on: {error}");
        self.gave_up = true;
        self.captured.clear();
        step()
    }
}

impl Captured {
    /// Captures a step that gives such a tensor.
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

/// Captures a step, and that what it gives is copied to `result`. Its allocations become the graph's own, and all of them
/// are freed in it: what the step gives, once it is copied.
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
    // What was freed in vain in a capture that has failed counts against the next call, which has to end the capture.
    let freed = stream.context().check_err().w();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    drop(alone);
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
