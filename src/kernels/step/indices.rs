//! Numbers that go with the rows of a step: token ids, positions, slots, rows.

use candle_core::{Device, Result};

use super::inputs::Inputs;

/// Indices put where the kernels run: once a step, however many operations take them.
pub struct Indices<'a> {
    host: &'a [u32],
    #[cfg(feature = "cuda")]
    on_gpu: Option<crate::kernels::cuda::Place>,
}

impl<'a> Indices<'a> {
    /// To be uploaded with the other inputs of a step.
    pub fn new(host: &'a [u32], inputs: &mut Inputs) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = inputs;
        Self {
            host,
            #[cfg(feature = "cuda")]
            on_gpu: inputs.on_gpu.as_mut().map(|staging| staging.place(host)),
        }
    }

    /// Uploaded alone.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn uploaded(host: &'a [u32], device: &Device) -> Result<Self> {
        let mut inputs = Inputs::new(device);
        let indices = Self::new(host, &mut inputs);
        inputs.upload()?;
        Ok(indices)
    }

    /// The indices here.
    pub fn host(&self) -> &'a [u32] {
        self.host
    }

    /// Checks that there are `count` of them, all below `limit`; an error says what they are.
    pub(crate) fn check(&self, what: &str, count: usize, limit: usize) -> Result<()> {
        if self.host.len() != count {
            candle_core::bail!("{} {what}s for {count} rows", self.host.len());
        }
        match self.host.iter().find(|&&index| index as usize >= limit) {
            Some(index) => candle_core::bail!("{what} {index} of {limit}"),
            None => Ok(()),
        }
    }

    /// Where they are on the GPU that they were made for.
    #[cfg(feature = "cuda")]
    pub(in crate::kernels) fn pointer(&self) -> Result<u64> {
        match &self.on_gpu {
            Some(place) => place.pointer(),
            None => candle_core::bail!("indices that are not on the GPU"),
        }
    }
}
