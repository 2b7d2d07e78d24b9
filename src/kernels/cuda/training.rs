//! What the trainer computes besides products, all of it in f32.

use std::ops::Range;

use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor};

use super::csr::CHUNK;
use super::launch::Launch;
use super::view::{View, ViewMut, alloc, download, pointer, upload};
use crate::kernels::cpu::element::contiguous;
use crate::kernels::training::attention::CausalOptions;
use crate::kernels::training::pattern::Pattern;

const THREADS: u32 = 256;
const WARP: usize = 32;

/// Runs `body` on a tensor's values, if it is in f32 on a GPU.
fn on_gpu<T>(tensor: &Tensor, body: impl FnOnce(&CudaDevice, View) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => {
            body(&storage.device, View::new(storage, layout)?.of(DType::F32)?)
        }
        _ => candle_core::bail!("a kernel of the GPU was given {tensor:?}"),
    }
}

/// A result of `n` values that a launch writes, and where it is to write them.
struct Fresh {
    storage: CudaStorage,
    n: usize,
}

impl Fresh {
    fn new(device: &CudaDevice, n: usize) -> Result<Self> {
        let storage = alloc(device, DType::F32, n)?;
        Ok(Self { storage, n })
    }

    fn view(&mut self) -> Result<ViewMut<'_>> {
        ViewMut::new(&mut self.storage, &Layout::contiguous(self.n))
    }

    fn read(&self) -> Result<Vec<f32>> {
        download(&self.storage, &Layout::contiguous(self.n))
    }

    fn tensor(self, like: &Tensor) -> Tensor {
        let shape = like.shape().clone();
        self.of_shape(shape)
    }

    fn of_shape(self, shape: impl Into<candle_core::Shape>) -> Tensor {
        let storage = Storage::Cuda(self.storage);
        Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false)
    }
}

/// Sets all values to zero.
pub fn clear(target: &mut CudaStorage, layout: &Layout) -> Result<()> {
    let (from, to) = contiguous(layout)?;
    let device = target.device.clone();
    let mut values = target.as_cuda_slice_mut::<f32>()?.slice_mut(from..to);
    device.cuda_stream().memset_zeros(&mut values).w()
}

/// A pattern's rows and columns on a GPU.
#[derive(Debug)]
pub struct DevicePattern {
    row_offsets: CudaSlice<u32>,
    columns: CudaSlice<u32>,
    blocks: u32,
}

impl DevicePattern {
    /// Copies a pattern to a GPU.
    pub fn new(device: &CudaDevice, pattern: &Pattern) -> Result<Self> {
        Ok(Self {
            row_offsets: upload(device, pattern.row_offsets())?,
            columns: upload(device, pattern.columns())?,
            blocks: super::narrow(pattern.nonzeros().div_ceil(CHUNK))?,
        })
    }
}

/// The values of a matrix at a pattern's positions.
///
/// # Safety
/// The matrix has the pattern's shape.
pub unsafe fn gather(matrix: &CudaStorage, layout: &Layout, pattern: &Pattern) -> Result<Vec<f32>> {
    let device = &matrix.device;
    let on_device = pattern.on_gpu(device)?;
    let mut values = Fresh::new(device, pattern.nonzeros())?;
    let launch = Launch::single(device, "gather_positions")?
        .write(&values.view()?)
        .read(&View::new(matrix, layout)?.of(DType::F32)?)
        .u64(pointer(&on_device.row_offsets))
        .u64(pointer(&on_device.columns))
        .size(pattern.rows())?
        .size(pattern.width())?;
    // SAFETY: gather_positions' arguments; positions lie in the matrix (the caller's promise).
    unsafe { launch.run([on_device.blocks, 1, 1], THREADS, 0) }?;
    values.read()
}

/// Writes values at a pattern's positions of a matrix.
///
/// # Safety
/// The matrix has the pattern's shape, and there is a value for each position.
pub unsafe fn set(
    (matrix, layout): (&mut CudaStorage, &Layout),
    values: View,
    pattern: &Pattern,
) -> Result<()> {
    let device = matrix.device.clone();
    let on_device = pattern.on_gpu(&device)?;
    let launch = Launch::single(&device, "set_positions")?
        .write(&ViewMut::new(matrix, layout)?.of(DType::F32)?)
        .read(&values.of(DType::F32)?)
        .u64(pointer(&on_device.row_offsets))
        .u64(pointer(&on_device.columns))
        .size(pattern.rows())?
        .size(pattern.width())?;
    // SAFETY: set_positions' arguments; the caller's promise.
    unsafe { launch.run([on_device.blocks, 1, 1], THREADS, 0) }
}

/// Adds the weight gradient at a pattern's positions, for `x` `[rows, width]` and `dy` `[rows, out]`.
///
/// # Safety
/// They have those shapes, and there is a gradient for each position.
pub unsafe fn add_sddmm_gradient(
    device: &CudaDevice,
    gradient: &ViewMut,
    pattern: &Pattern,
    [x, dy]: [View; 2],
    rows: usize,
) -> Result<()> {
    let on_device = pattern.on_gpu(device)?;
    // SAFETY: the caller's promise.
    let mut x = unsafe { transposed(device, x, [rows, pattern.width()]) }?;
    // SAFETY: as above.
    let mut dy = unsafe { transposed(device, dy, [rows, pattern.rows()]) }?;
    let launch = Launch::single(device, "sampled_gradient")?
        .write(gradient)
        .u64(pointer(&on_device.row_offsets))
        .u64(pointer(&on_device.columns))
        .write(&x.view()?)
        .write(&dy.view()?)
        .size(pattern.rows())?
        .size(rows)?;
    // SAFETY: sampled_gradient's arguments; positions lie in [out, width].
    unsafe { launch.run([on_device.blocks, 1, 1], THREADS, 0) }
}

/// A matrix by columns.
///
/// # Safety
/// It has that shape.
unsafe fn transposed(
    device: &CudaDevice,
    matrix: View,
    [rows, columns]: [usize; 2],
) -> Result<Fresh> {
    let mut result = Fresh::new(device, rows * columns)?;
    let launch = Launch::single(device, "transpose")?
        .write(&result.view()?)
        .read(&matrix.of(DType::F32)?)
        .size(rows)?
        .size(columns)?;
    let grid = [columns.div_ceil(WARP), rows.div_ceil(WARP)];
    let grid = [super::narrow(grid[0])?, super::narrow(grid[1])?, 1];
    // SAFETY: transpose's arguments; both matrices have so many values.
    unsafe { launch.run(grid, THREADS, 0) }?;
    Ok(result)
}

/// The sum of squares of a contiguous tensor, in one order.
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    const BLOCK: usize = 1 << 14;
    on_gpu(tensor, |device, values| {
        let blocks = tensor.elem_count().div_ceil(BLOCK);
        let mut sums = Fresh::new(device, blocks)?;
        let launch = Launch::single(device, "sum_of_squares")?
            .write(&sums.view()?)
            .read(&values)
            .u64(tensor.elem_count() as u64)
            .size(BLOCK)?;
        // SAFETY: sum_of_squares' arguments; a sum for each block.
        unsafe { launch.run_rows(blocks) }?;
        let sums = sums.read()?;
        Ok(sums.into_iter().map(f64::from).sum())
    })
}

/// The gradient of a norm's weight `[n]`, for `x` and `dy` `[rows, n]`.
pub fn rms_norm_weight_gradient(x: &Tensor, dy: &Tensor, n: usize, eps: f32) -> Result<Tensor> {
    if x.elem_count() != dy.elem_count() {
        candle_core::bail!("rms-norm: {x:?} and {dy:?}");
    }
    let rows = x.elem_count() / n.max(1);
    on_gpu(x, |device, x| {
        on_gpu(dy, |_, dy| {
            let mut inverse = Fresh::new(device, rows)?;
            let launch = Launch::single(device, "rms_inverse")?
                .write(&inverse.view()?)
                .read(&x)
                .size(n)?
                .f32(eps);
            // SAFETY: rms_inverse's arguments; x has rows of n values.
            unsafe { launch.run_rows(rows) }?;
            let mut gradient = Fresh::new(device, n)?;
            let launch = Launch::single(device, "rms_norm_weight_gradient")?
                .write(&gradient.view()?)
                .read(&x)
                .read(&dy)
                .write(&inverse.view()?)
                .size(rows)?
                .size(n)?;
            // SAFETY: rms_norm_weight_gradient's arguments; x and dy have rows of n values.
            unsafe { launch.run_columns(n) }?;
            Ok(gradient.of_shape(n))
        })
    })
}

/// The losses of targets, one a row, below `vocabulary`; the logits become the gradient of `weight` times their sum.
///
/// # Safety
/// The logits are `[targets, vocabulary]`.
pub unsafe fn cross_entropy(
    device: &CudaDevice,
    logits: ViewMut,
    targets: &[u32],
    vocabulary: usize,
    weight: f32,
) -> Result<Vec<f32>> {
    let logits = logits.of(DType::F32)?.pointer();
    // SAFETY: the caller's promise; the logits are borrowed to be replaced.
    unsafe { losses(device, logits, targets, vocabulary, Some(weight)) }
}

/// # Safety
/// There are logits `[targets, vocabulary]`, which may be written where `weight` is given.
unsafe fn losses(
    device: &CudaDevice,
    logits: u64,
    targets: &[u32],
    vocabulary: usize,
    weight: Option<f32>,
) -> Result<Vec<f32>> {
    let mut losses = Fresh::new(device, targets.len())?;
    let on_device = upload(device, targets)?;
    let launch = Launch::single(device, "cross_entropy")?
        .write(&losses.view()?)
        .u64(logits)
        .u64(pointer(&on_device))
        .size(vocabulary)?
        .f32(weight.unwrap_or(0.0))
        .u32(u32::from(weight.is_some()));
    // SAFETY: cross_entropy's arguments; the caller's promise.
    unsafe { launch.run_rows(targets.len()) }?;
    losses.read()
}

/// [`nll`](crate::kernels::training::cross_entropy::nll), once the targets are known to fit.
pub fn nll(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let (_, vocabulary) = logits.dims2()?;
    on_gpu(logits, |device, logits| {
        // SAFETY: logits of that shape, which stay as they are.
        unsafe { losses(device, logits.pointer(), targets, vocabulary, None) }
    })
}

/// Attention over whole sequences: what its kernels share.
pub struct Causal {
    first: CudaSlice<u32>,
    last: CudaSlice<u32>,
    rows: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: u32,
    scale: f32,
}

impl Causal {
    /// For queries `[rows, heads, dim]` and keys `[rows, kv heads, dim]` that are known to fit.
    pub fn new(q: &Tensor, k: &Tensor, options: &CausalOptions) -> Result<Self> {
        let (rows, heads, dim) = q.dims3()?;
        if dim > 256 {
            candle_core::bail!("causal attention: heads of {dim}; the GPU takes 256");
        }
        let (mut first, mut last) = (vec![0u32; rows], vec![0u32; rows]);
        for Range { start, end } in options.sequences {
            first[*start..*end].fill(super::narrow(*start)?);
            last[*start..*end].fill(super::narrow(*end)?);
        }
        on_gpu(q, |device, _| {
            Ok(Self {
                first: upload(device, &first)?,
                last: upload(device, &last)?,
                rows,
                heads,
                kv_heads: k.dim(1)?,
                dim,
                window: options
                    .window
                    .map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX)),
                scale: options.scale,
            })
        })
    }

    /// The result, and the logarithms of the softmax sums.
    pub fn forward(&self, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Tensor)> {
        on_gpu(q, |device, _| {
            let items = self.rows * self.heads;
            let (mut y, mut log_sums) = (
                Fresh::new(device, items * self.dim)?,
                Fresh::new(device, items)?,
            );
            let launch = Launch::single(device, "causal_forward")?
                .write(&y.view()?)
                .write(&log_sums.view()?);
            self.run(launch, [q, k, v], items)?;
            Ok((y.tensor(q), log_sums.of_shape((self.rows, self.heads))))
        })
    }

    /// The gradients of queries, keys and values.
    pub fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        y: &Tensor,
        log_sums: &Tensor,
        dy: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (items, kv_items) = (self.rows * self.heads, self.rows * self.kv_heads);
        on_gpu(y, |device, y| {
            on_gpu(log_sums, |_, log_sums| {
                on_gpu(dy, |_, dy| {
                    let mut dq = Fresh::new(device, items * self.dim)?;
                    let mut products = Fresh::new(device, items)?;
                    let launch = Launch::single(device, "causal_queries")?
                        .write(&dq.view()?)
                        .write(&products.view()?)
                        .read(&y)
                        .read(&log_sums)
                        .read(&dy);
                    self.run(launch, [q, k, v], items)?;
                    let mut dk = Fresh::new(device, kv_items * self.dim)?;
                    let mut dv = Fresh::new(device, kv_items * self.dim)?;
                    let launch = Launch::single(device, "causal_keys")?
                        .write(&dk.view()?)
                        .write(&dv.view()?)
                        .read(&log_sums)
                        .read(&dy)
                        .write(&products.view()?);
                    self.run(launch, [q, k, v], kv_items)?;
                    Ok([dq.tensor(q), dk.tensor(k), dv.tensor(v)])
                })
            })
        })
    }

    /// Launches with the struct `Causal` of `train.cuh` as the last argument, a warp for each item.
    fn run(&self, launch: Launch, [q, k, v]: [&Tensor; 3], items: usize) -> Result<()> {
        const WARPS: usize = 4;
        on_gpu(q, |_, q| {
            on_gpu(k, |_, k| {
                on_gpu(v, |_, v| {
                    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
                    let (rows, heads) = (super::narrow(self.rows)?, super::narrow(self.heads)?);
                    let (kv_heads, dim) = (super::narrow(self.kv_heads)?, super::narrow(self.dim)?);
                    let launch = launch.words(&[
                        q.pointer(),
                        k.pointer(),
                        v.pointer(),
                        pointer(&self.first),
                        pointer(&self.last),
                        pair(rows, heads),
                        pair(kv_heads, dim),
                        pair(self.window, self.scale.to_bits()),
                    ]);
                    let blocks = super::narrow(items.div_ceil(WARPS))?;
                    // SAFETY: the kernels' arguments; tensors of the shapes that were checked when this was made.
                    unsafe { launch.run([blocks, 1, 1], (WARPS * WARP) as u32, 0) }
                })
            })
        })
    }
}
