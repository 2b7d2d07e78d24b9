//! Sparse products beside a dense one: `y[rows] += scale·x[rows]·Δᵀ`, for a batch whose rows are under
//! different tickets.

mod by_column;
mod by_row;
mod layout;
mod piece;

use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use super::element::{elements, elements_mut};
use super::inputs::Inputs;
use super::parallel::{Scattered, for_each_range};
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
    Gpu(Box<super::cuda::DeviceTicket>),
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
                let ticket = super::cuda::DeviceTicket::new(device, weights)?;
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
            Device::Cuda(_) => super::cuda::DeviceTicket::bytes_for(weight),
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
    #[cfg(feature = "cuda")]
    on_gpu: Option<super::cuda::DeviceSegments<'a>>,
}

impl<'a> Overlays<'a> {
    /// For `parts` whose rows ascend and do not overlap; to be uploaded with the other inputs of a step.
    ///
    /// # Errors
    /// They do not; or a ticket was arranged for another device.
    pub fn new(parts: Vec<OverlayRows<'a>>, inputs: &mut Inputs) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = inputs;
        let mut free = 0;
        for OverlayRows { rows, .. } in &parts {
            if rows.start < free || rows.end < rows.start {
                candle_core::bail!("overlay: rows {rows:?} behind row {free}");
            }
            free = rows.end;
        }
        Ok(Self {
            #[cfg(feature = "cuda")]
            on_gpu: match &mut inputs.on_gpu {
                Some(staging) => Some(on_gpu(&parts, staging)?),
                None => None,
            },
            parts,
        })
    }

    /// What the launches for these rows hang on, on a GPU; `None` where they are of this step alone.
    pub(super) fn form(&self) -> Option<Vec<usize>> {
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

    /// `[out, in]` of the weight, once the batch's rows are known to hold all parts.
    fn check(&self, weight: usize, y: &Layout, x: &Layout) -> Result<[usize; 2]> {
        let ((rows, out), (x_rows, inner)) = (y.shape().dims2()?, x.shape().dims2()?);
        if rows != x_rows {
            candle_core::bail!("overlay: x has {x_rows} rows, y {rows}");
        }
        self.check_fit(weight, [out, inner], rows)?;
        Ok([out, inner])
    }

    /// Checks that the deltas for a weight are of its shape, and that the parts lie in a batch of `rows` rows.
    pub(crate) fn check_fit(&self, weight: usize, of: [usize; 2], rows: usize) -> Result<()> {
        for part in &self.parts {
            let shape = part.ticket.shape(weight);
            if part.rows.end > rows || shape.is_some_and(|shape| shape != of) {
                candle_core::bail!(
                    "overlay: rows {:?} of a delta {shape:?} for {rows} rows and a weight {of:?}",
                    part.rows,
                );
            }
        }
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn on_gpu<'a>(
    parts: &[OverlayRows<'a>],
    staging: &mut super::cuda::Staging,
) -> Result<super::cuda::DeviceSegments<'a>> {
    let part = |part: &OverlayRows<'a>| match part.ticket {
        Layouts::Gpu(ticket) => Ok(super::cuda::DeviceRows {
            ticket,
            first_row: part.rows.start,
            rows: part.rows.len(),
            scale: part.scale,
        }),
        Layouts::Cpu(_) => candle_core::bail!("overlay: a ticket that is not on the GPU"),
    };
    let parts: Result<Vec<_>> = parts.iter().map(part).collect();
    super::cuda::DeviceSegments::new(parts?, staging)
}

/// `y[rows] += scale·x[rows]·Δᵀ` for each of the parts, with the deltas of one weight, by its number; `x` is
/// `[rows, in]`, `y` is `[rows, out]`, both in the activations' dtype.
///
/// The nonzeros of a row of the weight are added in one order, whatever the number of batch rows: a
/// row's result does not depend on the batch that it is in. (On a GPU that holds for as long as it is not so many
/// rows of one ticket that its deltas are better expanded.)
///
/// # Errors
/// If shapes do not fit.
pub fn overlay(y: &Tensor, x: &Tensor, overlays: &Overlays, weight: usize) -> Result<()> {
    y.inplace_op2(x, &Overlay { overlays, weight })
}

struct Overlay<'a> {
    overlays: &'a Overlays<'a>,
    weight: usize,
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
        let shape = self.overlays.check(self.weight, y_layout, x_layout)?;
        let Some(segments) = &self.overlays.on_gpu else {
            candle_core::bail!("overlay: rows that are not on the GPU");
        };
        let device = y.device.clone();
        let (y, x) = ((y, y_layout), (x, x_layout));
        // SAFETY: the parts lie in the rows, and their weight has that shape (checked).
        unsafe { super::cuda::overlay(&device, segments, self.weight, shape, y, x) }
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
