//! Steps whose launches are captured once and then replayed (CUDA graphs): a small step takes the GPU less time than
//! it takes the CPU to launch its kernels one by one. On the CPU a step just runs.

use candle_core::{Device, Result, Tensor, TensorId};

use super::inputs::Inputs;
use crate::kernels::attention::Spans;
use crate::kernels::ticket::overlay::Overlays;

/// What the launches of a step hang on, besides the numbers among its inputs: a step of the same form launches the
/// same, with the same pointers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// What stands for the tensors that the step finds where they are: weights, and the cache.
    of: Vec<TensorId>,
    numbers: Vec<usize>,
}

impl Form {
    /// Of a step that computes with these tensors, and with others only that live as long; `None` where its launches
    /// are its own, as those of a prompt are, or where nothing is captured.
    pub(crate) fn new(of: Vec<TensorId>, spans: &Spans, overlays: &Overlays) -> Option<Self> {
        let mut numbers = spans.form()?;
        numbers.extend(overlays.form()?);
        Some(Self { of, numbers })
    }
}

/// The inputs of steps, and what was captured of those that come again and again.
///
/// While a step is captured (when its form comes for the second time), nobody else may use the GPU's stream: what they
/// launch, allocate or free would become a part of it. In the engine all that is one thread's, but for tickets, whose
/// copies may be made and dropped by any: they wait. Tests on a GPU run one by one.
pub struct Graphs {
    inputs: Inputs,
    #[cfg(feature = "cuda")]
    on_gpu: Option<crate::kernels::cuda::DeviceGraphs>,
}

impl Graphs {
    /// Captures decoding steps, where the device is a GPU.
    pub fn new(device: &Device) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            on_gpu: match device {
                Device::Cuda(device) => Some(crate::kernels::cuda::DeviceGraphs::new(device)),
                _ => None,
            },
            ..Self::eager(device)
        }
    }

    /// Captures nothing.
    pub fn eager(device: &Device) -> Self {
        Self {
            inputs: Inputs::new(device),
            #[cfg(feature = "cuda")]
            on_gpu: None,
        }
    }

    /// Steps of a form that run before they are replayed: what is measured of them does not count.
    pub fn warm_up(&self) -> usize {
        #[cfg(feature = "cuda")]
        if self.on_gpu.is_some() {
            return crate::kernels::cuda::DeviceGraphs::WARM_UP;
        }
        0
    }

    /// Forms whose steps are replayed.
    pub fn captured(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(graphs) = &self.on_gpu {
            return graphs.captured();
        }
        0
    }

    /// Where a step is to put its inputs.
    pub(crate) fn begin(&mut self) -> &mut Inputs {
        self.inputs.forget();
        &mut self.inputs
    }

    /// Uploads the step's inputs.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(crate) fn upload(&mut self) -> Result<()> {
        self.inputs.upload()
    }

    /// What `step` gives: run, or replayed as it was captured of a step of that form. The result is good until the next
    /// step.
    ///
    /// A replay checks nothing: whoever calls has checked the numbers among the inputs, that the step takes no others,
    /// and that its tensors are those of the form.
    ///
    /// # Errors
    /// Those of the step.
    pub(crate) fn run(
        &mut self,
        form: Option<Form>,
        step: impl Fn() -> Result<Tensor>,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(graphs), Some(form), Some(inputs)) =
            (&mut self.on_gpu, form, &self.inputs.on_gpu)
        {
            return graphs.run(form, inputs.start(), &step);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = form;
        step()
    }
}
