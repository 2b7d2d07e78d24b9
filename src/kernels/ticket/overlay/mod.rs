//! Tickets overlaid on the rows of a batch: sparse products `y[rows] += scale·x[rows]·Δᵀ` next to
//! the dense product.

mod by_column;
mod by_row;
mod layout;
mod tile;

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, Device, InplaceOp2, Layout, Result, Storage, Tensor,
};
use rayon::prelude::*;

use crate::kernels::cpu::element::{elements, elements_mut};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cuda;
use crate::kernels::step::inputs::Inputs;
use crate::ticket::TensorDelta;
pub use layout::OverlayLayout;
use tile::{Input, MAX_ROWS, Segment, Tile};

/// Deltas of a ticket for one weight of the base.
#[derive(Clone, Debug)]
pub struct WeightDeltas<'a> {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Deltas of the parameters that are fused into the weight, each with the parameter's first
    /// row; ascending.
    pub parts: Vec<(usize, &'a TensorDelta)>,
}

/// Device layout of a ticket: its deltas per weight, arranged for the sparse products.
pub enum DeviceLayout {
    /// Layouts on the CPU; `None` for weights that the ticket does not touch.
    Cpu(Vec<Option<OverlayLayout>>),
    /// Layout on a GPU, also used by apply and revert.
    Gpu(Box<cuda::DeviceTicket>),
}

impl DeviceLayout {
    /// Arranges the deltas, indexed by weight number; `None` for weights that the ticket does not
    /// touch.
    ///
    /// # Errors
    /// The GPU is out of memory.
    ///
    /// # Panics
    /// If a delta is outside its weight, which is impossible for a bound ticket.
    pub fn new(weights: &[Option<WeightDeltas>], device: &Device) -> Result<Self> {
        match device {
            Device::Cuda(device) => Self::on_gpu(weights, device),
            _ => Ok(Self::Cpu(weights.par_iter().map(arrange).collect())),
        }
    }

    /// As [`Self::new`], but on the calling thread alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn on_this_thread(weights: &[Option<WeightDeltas>], device: &Device) -> Result<Self> {
        match device {
            Device::Cuda(device) => Self::on_gpu(weights, device),
            _ => Ok(Self::Cpu(weights.iter().map(arrange).collect())),
        }
    }

    /// Copies the deltas to a GPU.
    fn on_gpu(weights: &[Option<WeightDeltas>], device: &CudaDevice) -> Result<Self> {
        let ticket = cuda::DeviceTicket::new(device, weights)?;
        Ok(Self::Gpu(Box::new(ticket)))
    }

    /// Number of weights of the base, whether touched or not.
    fn weights(&self) -> usize {
        match self {
            Self::Cpu(layouts) => layouts.len(),
            Self::Gpu(ticket) => ticket.weights(),
        }
    }

    /// `[out, in]` of a weight; `None` if the ticket does not touch it.
    pub fn shape(&self, weight: usize) -> Option<[usize; 2]> {
        match self {
            Self::Cpu(layouts) => Some(layouts[weight].as_ref()?.shape()),
            Self::Gpu(ticket) => ticket.shape(weight),
        }
    }

    /// Number of deltas in all weights.
    pub fn nonzeros(&self) -> usize {
        match self {
            Self::Cpu(layouts) => layouts.iter().flatten().map(OverlayLayout::nonzeros).sum(),
            Self::Gpu(ticket) => ticket.nonzeros(),
        }
    }

    /// Size in bytes of device memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cpu(layouts) => {
                let heap = layouts.iter().flatten().map(OverlayLayout::bytes);
                size_of_val(&layouts[..]) + heap.sum::<usize>()
            }
            Self::Gpu(ticket) => ticket.bytes(),
        }
    }

    /// Upper bound on [`Self::bytes`] of the layout that [`Self::new`] would return.
    pub fn bytes_for(weights: &[Option<WeightDeltas>], device: &Device) -> usize {
        let deltas = |weight: &WeightDeltas| match device {
            Device::Cuda(_) => cuda::DeviceTicket::bytes_for(weight),
            _ => OverlayLayout::bytes_for(weight),
        };
        let entry = size_of::<Option<OverlayLayout>>();
        let bytes = weights
            .iter()
            .map(|weight| entry + weight.as_ref().map_or(0, deltas));
        bytes.sum()
    }
}

/// Rows of a batch with the same ticket.
#[derive(Clone)]
pub struct OverlayRows<'a> {
    /// The batch rows.
    pub rows: Range<usize>,
    /// Layout of the ticket on the base's device.
    pub ticket: &'a DeviceLayout,
    /// Factor of the deltas.
    pub scale: f32,
}

/// Tickets overlaid on the rows of a step, staged for the device.
pub struct Overlays<'a> {
    overlaid: Vec<OverlayRows<'a>>,
    /// Number of rows of the step, with and without a ticket.
    rows: usize,
    pub(in crate::kernels) on_gpu: Option<cuda::DeviceSegments<'a>>,
}

impl<'a> Overlays<'a> {
    /// Overlays for a step of `rows` rows, staged with the step's other inputs. The ranges of
    /// `overlaid` must ascend and not overlap.
    ///
    /// # Errors
    /// The ranges do not ascend or exceed the step's rows, or a ticket's layout is for another
    /// device.
    pub fn new(overlaid: Vec<OverlayRows<'a>>, rows: usize, inputs: &mut Inputs) -> Result<Self> {
        let mut free = 0;
        for OverlayRows { rows: part, .. } in &overlaid {
            if part.start < free || part.end < part.start || part.end > rows {
                candle_core::bail!("overlay: rows {part:?} must lie in {free}..{rows} and ascend");
            }
            free = part.end;
        }
        let on_gpu = match &mut inputs.on_gpu {
            Some(staging) => Some(cuda::DeviceSegments::new(&overlaid, rows, staging)?),
            None => None,
        };
        Ok(Self {
            overlaid,
            rows,
            on_gpu,
        })
    }

    /// Part of the step's graph key; `None` on the CPU, and if the step's launches are unique to
    /// it.
    pub(in crate::kernels) fn graph_key(&self) -> Option<Vec<usize>> {
        let mut counts = self.on_gpu.as_ref()?.graph_key()?.to_vec();
        let weights = self.overlaid.iter().map(|rows| rows.ticket.weights());
        let touched = (0..weights.max().unwrap_or(0)).filter(|&weight| self.touches(weight));
        counts.extend(touched);
        Some(counts)
    }

    /// Whether any of the tickets touches the weight.
    pub fn touches(&self, weight: usize) -> bool {
        self.overlaid
            .iter()
            .any(|rows| rows.ticket.shape(weight).is_some())
    }

    /// Checks that `y` and `x` have the step's rows and that the deltas fit, and returns the
    /// weight's `[out, in]`.
    pub(in crate::kernels) fn check(
        &self,
        weight: usize,
        y: &Layout,
        x: &Layout,
    ) -> Result<[usize; 2]> {
        let ((rows, out), (x_rows, inner)) = (y.shape().dims2()?, x.shape().dims2()?);
        if rows != x_rows {
            candle_core::bail!("overlay: x has {x_rows} rows, but y has {rows}");
        }
        self.check_fit(weight, [out, inner], rows)?;
        Ok([out, inner])
    }

    /// Checks that the deltas have the weight's shape, and that the step has `rows` rows.
    pub(crate) fn check_fit(&self, weight: usize, shape: [usize; 2], rows: usize) -> Result<()> {
        if rows != self.rows {
            candle_core::bail!("overlay: {rows} rows in a step of {}", self.rows);
        }
        for overlaid in &self.overlaid {
            let deltas = overlaid.ticket.shape(weight);
            if deltas.is_some_and(|deltas| deltas != shape) {
                candle_core::bail!("overlay: a delta {deltas:?} does not fit a weight {shape:?}");
            }
        }
        Ok(())
    }
}

/// `y[rows] + scale·x[rows]·Δᵀ` in the overlaid rows, with the deltas of weight number `weight`,
/// and `y` in all other rows. `x` is `[rows, in]`. `y` is `[rows, out]` in f32 and the result in
/// the dtype of `x`: added to a rounded product, small deltas would be lost. `y` is consumed: it
/// may be overwritten, and on the CPU it is the result.
///
/// The nonzeros of a weight row are added in the same order for any number of batch rows. So for
/// given `y`, a row's result does not depend on its batch. (Exception: if a ticket has many rows on
/// a GPU, its deltas are expanded for a dense product.)
///
/// # Errors
/// The shapes do not match.
pub fn overlay(y: Tensor, x: &Tensor, overlays: &Overlays, weight: usize) -> Result<Tensor> {
    let op = Overlay {
        overlays,
        weight,
        rounded: OnceLock::new(),
    };
    y.inplace_op2(x, &op)?;
    Ok(match op.rounded.into_inner() {
        Some(rounded) => (rounded, y.shape()).into(),
        None => y,
    })
}

struct Overlay<'a> {
    overlays: &'a Overlays<'a>,
    weight: usize,
    /// Result on a GPU, in the dtype of `x`.
    rounded: OnceLock<Storage>,
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
        let overlaid = self.overlays.overlaid.iter();
        let segments = overlaid.filter_map(|rows| rows.segment(self.weight));
        let tile_rows = segments.flat_map(|segment| {
            let starts = segment.rows.clone().step_by(MAX_ROWS);
            starts.map(move |start| {
                let end = segment.rows.end.min(start + MAX_ROWS);
                (segment.clone(), start..end)
            })
        });
        let tile_rows: Vec<(Segment, Range<usize>)> = tile_rows.collect();
        let tiles = tiles(&tile_rows, x);
        let blocks = |(number, tile): (usize, &Tile)| {
            (0..tile.segment.layout.blocks()).map(move |block| (number, block))
        };
        let tasks: Vec<_> = tiles.iter().enumerate().flat_map(blocks).collect();
        for_each_range(tasks.len(), 1, |range| {
            for &(tile, block) in &tasks[range] {
                tiles[tile].add(block, &y);
            }
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        y: &mut CudaStorage,
        y_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let (y, x) = ((y, y_layout), (x, x_layout));
        let rounded = cuda::overlay(y, x, self.overlays, self.weight)?;
        let set = self.rounded.set(Storage::Cuda(rounded));
        assert!(set.is_ok(), "an operation runs once");
        Ok(())
    }
}

fn arrange(weight: &Option<WeightDeltas>) -> Option<OverlayLayout> {
    weight.as_ref().map(OverlayLayout::new)
}

/// Tiles for `tile_rows`, built in parallel if any of them transposes its rows of `x`.
fn tiles<'a>(tile_rows: &'a [(Segment<'a>, Range<usize>)], x: &'a [f32]) -> Vec<Tile<'a>> {
    let mut tiles: Vec<Option<Tile>> = tile_rows.iter().map(|_| None).collect();
    let built = Scattered::new(&mut tiles);
    let transposes = tile_rows
        .iter()
        .any(|(segment, rows)| Tile::is_transposed(segment, rows));
    let grain = if transposes { 1 } else { tile_rows.len() };
    for_each_range(tile_rows.len(), grain, |range| {
        for index in range {
            let (segment, rows) = &tile_rows[index];
            // SAFETY: each tile is written once.
            unsafe { built.write(index, Some(Tile::new(segment, rows.clone(), x))) };
        }
    });
    tiles.into_iter().flatten().collect()
}

impl OverlayRows<'_> {
    /// The rows with the CPU layout of a weight, if the ticket touches it.
    fn segment(&self, weight: usize) -> Option<Segment<'_>> {
        match self.ticket {
            DeviceLayout::Cpu(layouts) => Some(Segment {
                rows: self.rows.clone(),
                layout: layouts[weight].as_ref()?,
                scale: self.scale,
            }),
            DeviceLayout::Gpu(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
