//! CUDA graphs of steps: launches are captured once and then replayed, because for a small step the
//! CPU takes longer to launch the kernels one by one than the GPU to run them. On the CPU a step
//! just runs.

use candle_core::{Device, Result, Tensor, TensorId};

use super::inputs::Inputs;
use crate::kernels::attention::Spans;
use crate::kernels::cuda;
use crate::kernels::ticket::overlay::Overlays;

/// Cache key of a captured CUDA graph. Steps with equal keys make the same launches with the same
/// pointers; they differ only in the values of their inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GraphKey {
    /// Tensors at fixed addresses: weights and the KV cache.
    tensors: Vec<TensorId>,
    /// Counts that the launches depend on.
    counts: Vec<usize>,
}

impl GraphKey {
    /// Key of a step that computes with `tensors`, and with other tensors only if they live as
    /// long. `None` if the launches are unique to the step, as for prompts, or if the device has no
    /// graphs.
    pub(crate) fn new(tensors: Vec<TensorId>, spans: &Spans, overlays: &Overlays) -> Option<Self> {
        let mut counts = spans.graph_key()?;
        counts.extend(overlays.graph_key()?);
        Some(Self { tensors, counts })
    }
}

/// Inputs of steps, and captured graphs of recurring steps.
///
/// While a step is captured (the second step of its key), no other thread may use the GPU's stream:
/// its launches, allocations and frees would become part of the graph. In the engine a single
/// thread uses the stream, except for device layouts of tickets, which any thread may build and
/// drop: these wait for the capture. Tests on a GPU run one by one.
pub struct Graphs {
    inputs: Inputs,
    on_gpu: Option<cuda::DeviceGraphs>,
}

impl Graphs {
    /// Captures decoding steps if the device is a GPU.
    pub fn new(device: &Device) -> Self {
        Self {
            inputs: Inputs::new(device),
            on_gpu: cuda::DeviceGraphs::new(device),
        }
    }

    /// Captures nothing.
    pub fn eager(device: &Device) -> Self {
        Self {
            inputs: Inputs::new(device),
            on_gpu: None,
        }
    }

    /// Number of steps per key before replays start; measurements should skip them.
    pub fn warm_up(&self) -> usize {
        match self.on_gpu {
            Some(_) => cuda::DeviceGraphs::WARM_UP,
            None => 0,
        }
    }

    /// Number of keys whose steps are replayed.
    pub fn captured(&self) -> usize {
        match &self.on_gpu {
            Some(graphs) => graphs.captured(),
            None => 0,
        }
    }

    /// Starts a step, and returns the empty staging buffer for its inputs.
    pub(crate) fn begin(&mut self) -> &mut Inputs {
        self.inputs.discard();
        &mut self.inputs
    }

    /// Uploads the step's inputs.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(crate) fn upload(&mut self) -> Result<()> {
        self.inputs.upload()
    }

    /// Runs `step`, or replays it from the graph of its key. The result is valid until the next
    /// step.
    ///
    /// A replay checks nothing: the caller must have checked the values of the inputs, and
    /// guarantees that the step reads no other values from the host and that its tensors are those
    /// of the key.
    ///
    /// # Errors
    /// Those of the step.
    pub(crate) fn run(
        &mut self,
        key: Option<GraphKey>,
        step: impl Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if let (Some(graphs), Some(key), Some(inputs)) =
            (&mut self.on_gpu, key, self.inputs.start())
        {
            return graphs.run(key, inputs, &step);
        }
        step()
    }
}
