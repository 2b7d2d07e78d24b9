//! Causal attention over whole sequences, forward and backward.

use std::ops::Range;

use candle_core::DType::F32;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor};

use crate::kernels::cuda::present::launch::{Launch, WARP};
use crate::kernels::cuda::present::to_u32;
use crate::kernels::cuda::present::view::{NewTensor, View, pointer, upload, with_f32};
use crate::kernels::training::attention::backward::check_gradients;
use crate::kernels::training::attention::{CausalOptions, check};

/// Values per head, at most.
const MAX_DIM: usize = 256;

/// [`causal_attention`](crate::kernels::training::attention::causal_attention).
pub fn causal_attention(
    [q, k, v]: [&Tensor; 3],
    options: &CausalOptions,
) -> Result<(Tensor, Tensor)> {
    check(q, k, v, options)?;
    with_operands([q, k, v], |device, views| {
        let attention = CausalAttention::new(device, q, k, views, options)?;
        let CausalAttention { rows, heads, .. } = attention;
        let mut y = NewTensor::new(device, F32, q.shape())?;
        let mut log_sums = NewTensor::new(device, F32, (rows, heads))?;
        let launch = Launch::single(device, "causal_attention")?
            .write(&y.write()?)
            .write(&log_sums.write()?);
        // SAFETY: causal_attention's arguments; results for each row and head.
        unsafe { attention.run(launch, rows * heads) }?;
        Ok((y.into_tensor(), log_sums.into_tensor()))
    })
}

/// [`causal_attention_backward`](crate::kernels::training::attention::causal_attention_backward).
pub fn causal_attention_backward(
    [q, k, v]: [&Tensor; 3],
    y: &Tensor,
    log_sums: &Tensor,
    dy: &Tensor,
    options: &CausalOptions,
) -> Result<[Tensor; 3]> {
    check(q, k, v, options)?;
    check_gradients(q, y, log_sums, dy)?;
    with_operands([q, k, v], |device, views| {
        with_operands([y, log_sums, dy], |_, [y, log_sums, dy]| {
            let attention = CausalAttention::new(device, q, k, views, options)?;
            let CausalAttention { rows, heads, .. } = attention;
            let mut dq = NewTensor::new(device, F32, q.shape())?;
            let mut products = NewTensor::new(device, F32, (rows, heads))?;
            let launch = Launch::single(device, "causal_attention_dq")?
                .write(&dq.write()?)
                .write(&products.write()?)
                .read(&y)
                .read(&log_sums)
                .read(&dy);
            // SAFETY: causal_attention_dq's arguments; results for each row and head, as y, dy and
            // log_sums have them (checked).
            unsafe { attention.run(launch, rows * heads) }?;
            let mut dk = NewTensor::new(device, F32, k.shape())?;
            let mut dv = NewTensor::new(device, F32, v.shape())?;
            let launch = Launch::single(device, "causal_attention_dkv")?
                .write(&dk.write()?)
                .write(&dv.write()?)
                .read(&log_sums)
                .read(&dy)
                .read(&products.read()?);
            // SAFETY: causal_attention_dkv's arguments; results for each row and KV head, and the
            // products that the launch before writes.
            unsafe { attention.run(launch, rows * attention.kv_heads) }?;
            Ok([dq.into_tensor(), dk.into_tensor(), dv.into_tensor()])
        })
    })
}

/// Runs `body` on three tensors in f32 on one GPU.
fn with_operands<T>(
    [a, b, c]: [&Tensor; 3],
    body: impl FnOnce(&CudaDevice, [View; 3]) -> Result<T>,
) -> Result<T> {
    with_f32(a, |device, a| {
        with_f32(b, |_, b| with_f32(c, |_, c| body(device, [a, b, c])))
    })
}

/// The operands that the kernels share.
struct CausalAttention<'a> {
    /// `[q, k, v]`.
    operands: [View<'a>; 3],
    /// First row of each row's sequence, and its end.
    first: CudaSlice<u32>,
    last: CudaSlice<u32>,
    rows: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: u32,
    scale: f32,
}

impl<'a> CausalAttention<'a> {
    /// For queries `[rows, heads, dim]` and keys `[rows, kv heads, dim]`, which were checked.
    fn new(
        device: &CudaDevice,
        q: &Tensor,
        k: &Tensor,
        operands: [View<'a>; 3],
        options: &CausalOptions,
    ) -> Result<Self> {
        let (rows, heads, dim) = q.dims3()?;
        if dim > MAX_DIM {
            candle_core::bail!("causal attention: heads of {dim}; the GPU takes {MAX_DIM}");
        }
        let (mut first, mut last) = (vec![0u32; rows], vec![0u32; rows]);
        for Range { start, end } in options.sequences {
            first[*start..*end].fill(to_u32(*start)?);
            last[*start..*end].fill(to_u32(*end)?);
        }
        let window = options.window.map(|w| u32::try_from(w).unwrap_or(u32::MAX));
        Ok(Self {
            operands,
            first: upload(device, &first)?,
            last: upload(device, &last)?,
            rows,
            heads,
            kv_heads: k.dim(1)?,
            dim,
            window: window.unwrap_or(u32::MAX),
            scale: options.scale,
        })
    }

    /// Launches with the struct `CausalAttention` of `training.cuh` as the last argument, one warp
    /// per item.
    ///
    /// # Safety
    /// The arguments before it are the kernel's, for that many items.
    unsafe fn run(&self, launch: Launch, items: usize) -> Result<()> {
        const WARPS: u32 = 4;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [q, k, v] = self.operands;
        let launch = launch.words(&[
            q.pointer(),
            k.pointer(),
            v.pointer(),
            pointer(&self.first),
            pointer(&self.last),
            pair(to_u32(self.rows)?, to_u32(self.heads)?),
            pair(to_u32(self.kv_heads)?, to_u32(self.dim)?),
            pair(self.window, self.scale.to_bits()),
        ]);
        let blocks = to_u32(items.div_ceil(WARPS as usize))?;
        // SAFETY: the caller's promise; q, k and v have the shapes that were checked.
        unsafe { launch.run([blocks, 1, 1], WARPS * WARP, 0) }
    }
}
