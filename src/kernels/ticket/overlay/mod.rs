//! Sparse products beside a dense one: `y[rows] += scale·x[rows]·Δᵀ`, for a batch whose rows are under
//! different tickets.

mod by_column;
mod by_row;
mod layout;
mod piece;

use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::kernels::cpu::element::{elements, elements_mut};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::step::inputs::Inputs;
use crate::ticket::TensorDelta;
pub use layout::OverlayLayout;
use piece::{Input, Part, Piece, WIDEST};

/// A ticket's deltas for one of the base's weights, `[out, in]`: those of the parameters that it is fused of, each
/// with the row that it begins at, ascending.
#[derive(Clone, Debug)]
pub struct WeightDeltas<'a> {
    pub shape: [usize; 2],
    pub parts: Vec<(usize, &'a TensorDelta)>,
}

/// A ticket's deltas by the base's weights, arranged for the sparse product where the base is.
pub enum Layouts {
    Cpu(Vec<Option<OverlayLayout>>),
    #[cfg(feature = "cuda")]
    Gpu(Box<crate::kernels::cuda::DeviceTicket>),
}

impl Layouts {
    /// Arranges the deltas of weights, by their numbers; `None` where the ticket does not touch one.
    ///
    /// # Errors
    /// There is no room for them on the GPU.
    ///
    /// # Panics
    /// If a delta reaches beyond its weight, which a ticket that is bound to its base rules out.
    pub fn new(weights: &[Option<WeightDeltas>], device: &Device) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let ticket = crate::kernels::cuda::DeviceTicket::new(device, weights)?;
                Ok(Self::Gpu(Box::new(ticket)))
            }
            _ => {
                let arrange =
                    |weight: &Option<WeightDeltas>| weight.as_ref().map(OverlayLayout::new);
                Ok(Self::Cpu(weights.par_iter().map(arrange).collect()))
            }
        }
    }

    /// How many weights the base has.
    #[cfg(feature = "cuda")]
    fn weights(&self) -> usize {
        match self {
            Self::Cpu(layouts) => layouts.len(),
            Self::Gpu(ticket) => ticket.weights(),
        }
    }

    /// `[out, in]` of a weight that the ticket touches.
    pub fn shape(&self, weight: usize) -> Option<[usize; 2]> {
        match self {
            Self::Cpu(layouts) => Some(layouts[weight].as_ref()?.shape()),
            #[cfg(feature = "cuda")]
            Self::Gpu(ticket) => ticket.shape(weight),
        }
    }

    pub fn nonzeros(&self) -> usize {
        match self {
            Self::Cpu(layouts) => layouts.iter().flatten().map(OverlayLayout::nonzeros).sum(),
            #[cfg(feature = "cuda")]
            Self::Gpu(ticket) => ticket.nonzeros(),
        }
    }

    /// Bytes of the memory that the base is in.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cpu(layouts) => {
                let heap = layouts.iter().flatten().map(OverlayLayout::bytes);
                size_of_val(&layouts[..]) + heap.sum::<usize>()
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(ticket) => ticket.bytes(),
        }
    }

    /// Bytes that [`Self::new`] makes of the same, at most.
    pub fn bytes_for(weights: &[Option<WeightDeltas>], device: &Device) -> usize {
        let of = |weight: &WeightDeltas| match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => crate::kernels::cuda::DeviceTicket::bytes_for(weight),
            _ => OverlayLayout::bytes_for(weight),
        };
        let entry = size_of::<Option<OverlayLayout>>();
        let all = weights
            .iter()
            .map(|weight| entry + weight.as_ref().map_or(0, of));
        all.sum()
    }
}

/// Rows of a batch that are under one ticket.
#[derive(Clone)]
pub struct OverlayRows<'a> {
    pub rows: Range<usize>,
    pub ticket: &'a Layouts,
    pub scale: f32,
}

/// The rows of a step that are under tickets, put where the kernels run.
pub struct Overlays<'a> {
    parts: Vec<OverlayRows<'a>>,
    /// All rows of the step, under a ticket or not.
    rows: usize,
    #[cfg(feature = "cuda")]
    on_gpu: Option<crate::kernels::cuda::DeviceSegments<'a>>,
}

impl<'a> Overlays<'a> {
    /// For `parts` of a step of `rows` rows, which ascend and do not overlap; to be uploaded with the step's other
    /// inputs.
    ///
    /// # Errors
    /// They do not, or reach beyond; or a ticket was arranged for another device.
    pub fn new(parts: Vec<OverlayRows<'a>>, rows: usize, inputs: &mut Inputs) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = inputs;
        let mut free = 0;
        for OverlayRows { rows: part, .. } in &parts {
            if part.start < free || part.end < part.start || part.end > rows {
                candle_core::bail!("overlay: rows {part:?} behind row {free} of {rows}");
            }
            free = part.end;
        }
        Ok(Self {
            #[cfg(feature = "cuda")]
            on_gpu: match &mut inputs.on_gpu {
                Some(staging) => Some(on_gpu(&parts, rows, staging)?),
                None => None,
            },
            parts,
            rows,
        })
    }

    /// What the launches for these rows hang on, on a GPU; `None` where they are of this step alone.
    pub(in crate::kernels) fn form(&self) -> Option<Vec<usize>> {
        #[cfg(feature = "cuda")]
        {
            let mut numbers = self.on_gpu.as_ref()?.form()?.to_vec();
            let weights = self.parts.iter().map(|part| part.ticket.weights());
            let touched = (0..weights.max().unwrap_or(0)).filter(|&weight| self.touch(weight));
            numbers.extend(touched);
            Some(numbers)
        }
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// Whether any of the tickets touches a weight.
    pub fn touch(&self, weight: usize) -> bool {
        self.parts
            .iter()
            .any(|part| part.ticket.shape(weight).is_some())
    }

    /// `[out, in]` of the weight, once the rows are known to be the step's.
    fn check(&self, weight: usize, y: &Layout, x: &Layout) -> Result<[usize; 2]> {
        let ((rows, out), (x_rows, inner)) = (y.shape().dims2()?, x.shape().dims2()?);
        if rows != x_rows {
            candle_core::bail!("overlay: x has {x_rows} rows, y {rows}");
        }
        self.check_fit(weight, [out, inner], rows)?;
        Ok([out, inner])
    }

    /// Checks that the deltas for a weight are of its shape, and that a step has as many rows as these.
    pub(crate) fn check_fit(&self, weight: usize, of: [usize; 2], rows: usize) -> Result<()> {
        if rows != self.rows {
            candle_core::bail!("overlay: {rows} rows for a step of {}", self.rows);
        }
        for part in &self.parts {
            let shape = part.ticket.shape(weight);
            if shape.is_some_and(|shape| shape != of) {
                candle_core::bail!("overlay: a delta {shape:?} for a weight {of:?}");
            }
        }
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn on_gpu<'a>(
    parts: &[OverlayRows<'a>],
    rows: usize,
    staging: &mut crate::kernels::cuda::Staging,
) -> Result<crate::kernels::cuda::DeviceSegments<'a>> {
    let part = |part: &OverlayRows<'a>| match part.ticket {
        Layouts::Gpu(ticket) => Ok(crate::kernels::cuda::DeviceRows {
            ticket,
            first_row: part.rows.start,
            rows: part.rows.len(),
            scale: part.scale,
        }),
        Layouts::Cpu(_) => candle_core::bail!("overlay: a ticket that is not on the GPU"),
    };
    let parts: Result<Vec<_>> = parts.iter().map(part).collect();
    crate::kernels::cuda::DeviceSegments::new(parts?, rows, staging)
}

/// `y[rows] + scale·x[rows]·Δᵀ` for each of the parts, and `y` in the rows between, with the deltas of one weight, by
/// its number. `x` is `[rows, in]`; `y` is `[rows, out]` in f32, the result in the dtype of `x`: a ticket adds less than
/// a product that is rounded already would keep. `y` is used up: on any device it may be written to, and on the CPU it is
/// the result.
///
/// The nonzeros of a row of the weight are added in one order, whatever the number of batch rows: what a row gets, given
/// its `y`, does not depend on the batch that it is in. (On a GPU that holds for as long as it is not so many rows of one
/// ticket that its deltas are better expanded.)
///
/// # Errors
/// If shapes do not fit.
pub fn overlay(y: Tensor, x: &Tensor, overlays: &Overlays, weight: usize) -> Result<Tensor> {
    let overlay = Overlay { overlays, weight };
    y.inplace_op2(x, &overlay)?;
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() {
        return y.apply_op2_no_bwd(x, &overlay);
    }
    Ok(y)
}

/// In place, what is added to `y` as it is: on the CPU all, on a GPU the products of deltas that are expanded. Then, on
/// a GPU, the sparse products and the rounding, into the result.
struct Overlay<'a> {
    overlays: &'a Overlays<'a>,
    weight: usize,
}

#[cfg(feature = "cuda")]
impl<'a> Overlay<'a> {
    /// The segments on the GPU and `[out, in]`, once all is known to fit.
    fn on_gpu(
        &self,
        y: &Layout,
        x: &Layout,
    ) -> Result<(&'a crate::kernels::cuda::DeviceSegments<'a>, [usize; 2])> {
        let shape = self.overlays.check(self.weight, y, x)?;
        let Some(segments) = &self.overlays.on_gpu else {
            candle_core::bail!("overlay: rows that are not on the GPU");
        };
        Ok((segments, shape))
    }
}

impl InplaceOp2 for Overlay<'_> {
    fn name(&self) -> &'static str {
        "ticket-overlay"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        self.overlays.check(self.weight, y_layout, x_layout)?;
        let x = elements::<f32>(x, x_layout)?;
        let y = Scattered::new(elements_mut::<f32>(y, y_layout)?);
        let parts = self
            .overlays
            .parts
            .iter()
            .filter_map(|part| part.of(self.weight));
        let pieces = parts.flat_map(|part| {
            let starts = part.rows.clone().step_by(WIDEST);
            starts.map(move |start| (part.clone(), start..part.rows.end.min(start + WIDEST)))
        });
        let parts: Vec<(Part, Range<usize>)> = pieces.collect();
        let mut pieces: Vec<Option<Piece>> = parts.iter().map(|_| None).collect();
        let made = Scattered::new(&mut pieces);
        let transposes = parts
            .iter()
            .any(|(part, rows)| Piece::is_vector(part, rows));
        let grain = if transposes { 1 } else { parts.len() };
        for_each_range(parts.len(), grain, |range| {
            for at in range {
                let (part, rows) = &parts[at];
                // SAFETY: each piece is made once.
                unsafe { made.write(at, Some(Piece::new(part, rows.clone(), x))) };
            }
        });
        let pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
        let blocks = |(piece, of): (usize, &Piece)| {
            (0..of.part.layout.blocks()).map(move |block| (piece, block))
        };
        let tasks: Vec<_> = pieces.iter().enumerate().flat_map(blocks).collect();
        for_each_range(tasks.len(), 1, |range| {
            for &(piece, block) in &tasks[range] {
                pieces[piece].add(block, &y);
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &mut candle_core::CudaStorage,
        y_layout: &Layout,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let (segments, _) = self.on_gpu(y_layout, x_layout)?;
        let (y, x) = ((y, y_layout), (x, x_layout));
        // SAFETY: the segments are of so many rows, and their weight has that shape (checked).
        unsafe { crate::kernels::cuda::overlay_dense(segments, self.weight, y, x) }
    }
}

#[cfg(feature = "cuda")]
impl candle_core::CustomOp2 for Overlay<'_> {
    fn name(&self) -> &'static str {
        "ticket-overlay"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        candle_core::bail!("overlay: on the CPU it is computed in place")
    }

    fn cuda_fwd(
        &self,
        y: &candle_core::CudaStorage,
        y_layout: &Layout,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, candle_core::Shape)> {
        let (segments, shape) = self.on_gpu(y_layout, x_layout)?;
        let (y, x) = ((y, y_layout), (x, x_layout));
        // SAFETY: as above.
        let sum = unsafe { crate::kernels::cuda::overlay(segments, self.weight, shape, y, x) }?;
        Ok((sum, y_layout.shape().clone()))
    }
}

impl OverlayRows<'_> {
    /// What is laid over these rows of a weight's product on the CPU, if anything.
    fn of(&self, weight: usize) -> Option<Part<'_>> {
        match self.ticket {
            Layouts::Cpu(layouts) => Some(Part {
                rows: self.rows.clone(),
                layout: layouts[weight].as_ref()?,
                scale: self.scale,
            }),
            #[cfg(feature = "cuda")]
            Layouts::Gpu(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
