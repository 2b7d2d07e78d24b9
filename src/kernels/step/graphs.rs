//! CUDA graphs of steps: launches that are captured once and then replayed, since a small step
//! takes the GPU less time than the CPU needs to launch its kernels one by one. On the CPU a step
//! just runs.

use candle_core::{Device, Result, Tensor, TensorId};

use super::inputs::Inputs;
use crate::kernels::attention::Spans;
use crate::kernels::cuda;
use crate::kernels::ticket::overlay::Overlays;

/// Cache key of a captured CUDA graph. Steps of one key make the same launches with the same
/// pointers and differ only in the numbers among their inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GraphKey {
    /// Tensors at fixed addresses: weights and the KV cache.
    tensors: Vec<TensorId>,
    /// Counts that the launches depend on.
    counts: Vec<usize>,
}

impl GraphKey {
    /// Key of a step that computes with `tensors`, and with others only if they live as long.
    /// `None` if the launches are unique to the step, as for prompts, or if the device captures
    /// nothing.
    pub(crate) fn new(tensors: Vec<TensorId>, spans: &Spans, overlays: &Overlays) -> Option<Self> {
        let mut counts = spans.graph_key()?;
        counts.extend(overlays.graph_key()?);
        Some(Self { tensors, counts })
    }
}

/// Inputs of steps, and the captured graphs of recurring ones.
///
/// While a step is captured (the second step of its key), no other thread may use the GPU's stream:
/// what it launches, allocates or frees would become part of the graph. In the engine one thread
/// does all of that, except for tickets, whose copies any thread may make and drop: these wait.
/// Tests on a GPU run one by one.
pub struct Graphs {
    inputs: Inputs,
    on_gpu: Option<cuda::DeviceGraphs>,
}

impl Graphs {
    /// Graphs that capture decoding steps if the device is a GPU.
    pub fn new(device: &Device) -> Self {
        Self {
            inputs: Inputs::new(device),
            on_gpu: cuda::DeviceGraphs::new(device),
        }
    }

    /// Graphs that capture nothing.
    pub fn eager(device: &Device) -> Self {
        Self {
            inputs: Inputs::new(device),
            on_gpu: None,
        }
    }

    /// Number of steps per key before replays start, which measurements should leave out.
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

    /// Starts a step: returns the collector of its inputs, emptied.
    pub(crate) fn begin(&mut self) -> &mut Inputs {
        self.inputs.discard();
        &mut self.inputs
    }

    /// Uploads the step's inputs.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(crate) fn upload(&mut self) -> Result<()> {
        self.inputs.upload()
    }

    /// Result of `step`, which either runs or is replayed from the graph of its key. The result is
    /// valid until the next step.
    ///
    /// A replay checks nothing: the caller has checked the numbers among the inputs, and guarantees
    /// that the step reads no other numbers and that its tensors are those of the key.
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
