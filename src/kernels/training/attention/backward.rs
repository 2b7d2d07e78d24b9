//! Backward pass of [`causal_attention`](super::causal_attention).

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{CausalOptions, Group, Inputs, Tile};
use crate::kernels::cpu::element::values;
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::kernels::cpu::math;
use crate::kernels::cpu::parallel::Scattered;
use crate::kernels::cpu::simd::{Arithmetic, Vectorised, dispatch};
use crate::kernels::cuda;

/// Gradients of `q`, `k` and `v` from the gradient `dy` of the result `y`.
///
/// # Errors
/// The shapes do not fit each other or the sequences.
pub fn causal_attention_backward(
    [q, k, v]: [&Tensor; 3],
    y: &Tensor,
    log_sums: &Tensor,
    dy: &Tensor,
    options: &CausalOptions,
) -> Result<[Tensor; 3]> {
    if q.device().is_cuda() {
        return cuda::causal_attention_backward([q, k, v], y, log_sums, dy, options);
    }
    check_gradients(q, y, log_sums, dy)?;
    let (qv, kv, vv) = (values(q)?, values(k)?, values(v)?);
    let inputs = Inputs::new([&qv, &kv, &vv], q, k, v, options)?;
    let (y, log_sums, dy) = (values(y)?, values(log_sums)?, values(dy)?);
    let given = BackwardInputs {
        y: &y,
        log_sums: &log_sums,
        dy: &dy,
    };
    let mut dq = vec![0f32; qv.len()];
    let (mut dk, mut dv) = (vec![0f32; kv.len()], vec![0f32; kv.len()]);
    {
        let (dq, dk, dv) = (
            Scattered::new(&mut dq),
            Scattered::new(&mut dk),
            Scattered::new(&mut dv),
        );
        let out = Gradients {
            dq: &dq,
            dk: &dk,
            dv: &dv,
        };
        inputs.each(|group| group.backward(&given, &out));
    }
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
}

/// Checks that the result, its gradient and the logarithms fit the queries.
pub(in crate::kernels) fn check_gradients(
    q: &Tensor,
    y: &Tensor,
    log_sums: &Tensor,
    dy: &Tensor,
) -> Result<()> {
    let (rows, heads, _) = q.dims3()?;
    let shapes = y.dims() == q.dims() && dy.dims() == q.dims();
    if !shapes || log_sums.dims() != [rows, heads] {
        candle_core::bail!("causal attention: results and gradients must have the queries' shape");
    }
    Ok(())
}

/// Inputs of the backward pass besides queries, keys and values.
struct BackwardInputs<'a> {
    y: &'a [f32],
    log_sums: &'a [f32],
    dy: &'a [f32],
}

/// Gradients to write.
struct Gradients<'a> {
    dq: &'a Scattered<'a, f32>,
    dk: &'a Scattered<'a, f32>,
    dv: &'a Scattered<'a, f32>,
}

impl Group<'_> {
    /// With `P` the softmax and `D = Σ dy·y` of a row: `dV = Pᵀ·dy`, `dS = P∘(dy·Vᵀ − D)·scale`,
    /// `dQ = dS·K`, `dK = dSᵀ·Q`.
    fn backward(&self, given: &BackwardInputs, out: &Gradients) {
        let Inputs {
            heads,
            kv_heads,
            dim,
            ..
        } = *self.inputs;
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for head in self.query_heads() {
            for tile in self.tiles() {
                self.scores(&tile, head, &mut weights);
                slopes.clear();
                slopes.resize(weights.len(), 0.0);
                let dy = self.part(given.dy, &tile.queries, heads, head);
                let v = self.part(self.inputs.v, &tile.keys, kv_heads, self.kv_head);
                let mut y = MatrixMut::new(&mut slopes, tile.shape(), tile.stride());
                multiply(&mut y, Write::Replace, 1.0, dy, v.t(), Threads::One);
                let rows = weights.chunks_exact_mut(tile.stride());
                let rows = rows.zip(slopes.chunks_exact_mut(tile.stride()));
                for (query, (weights, slopes)) in tile.queries.clone().zip(rows) {
                    let at = self.at(query, heads, head);
                    dispatch(SoftmaxBackward {
                        weights,
                        slopes,
                        seen: tile.seen(query, self.window()),
                        log_sum: given.log_sums[query * heads + head],
                        y: &given.y[at..at + dim],
                        dy: &given.dy[at..at + dim],
                        scale: self.inputs.options.scale,
                    });
                }
                self.products(&tile, head, &weights, &slopes, given, out);
            }
        }
    }

    /// Adds the tile's contribution to the three gradients.
    fn products(
        &self,
        tile: &Tile,
        head: usize,
        weights: &[f32],
        slopes: &[f32],
        given: &BackwardInputs,
        out: &Gradients,
    ) {
        let Inputs {
            heads, kv_heads, ..
        } = *self.inputs;
        let weights = Matrix::new(weights, tile.shape(), tile.stride());
        let slopes = Matrix::new(slopes, tile.shape(), tile.stride());
        let dy = self.part(given.dy, &tile.queries, heads, head);
        let q = self.part(self.inputs.q, &tile.queries, heads, head);
        let k = self.part(self.inputs.k, &tile.keys, kv_heads, self.kv_head);
        // SAFETY: a query head's rows belong to this group alone.
        let mut dq = unsafe { self.part_mut(out.dq, &tile.queries, heads, head) };
        multiply(&mut dq, Write::Replace, 1.0, slopes, k, Threads::One);
        // SAFETY: a KV head's rows belong to this group alone.
        let mut dk = unsafe { self.part_mut(out.dk, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dk, Write::Add, 1.0, slopes.t(), q, Threads::One);
        // SAFETY: as above.
        let mut dv = unsafe { self.part_mut(out.dv, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dv, Write::Add, 1.0, weights.t(), dy, Threads::One);
    }
}

/// Replaces a row of scores with their softmax, and `dy·Vᵀ` with the gradient of the scores.
struct SoftmaxBackward<'a> {
    weights: &'a mut [f32],
    slopes: &'a mut [f32],
    seen: Range<usize>,
    log_sum: f32,
    y: &'a [f32],
    dy: &'a [f32],
    scale: f32,
}

impl Vectorised for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        self.weights[..self.seen.start].fill(f32::NEG_INFINITY);
        self.weights[self.seen.end..].fill(f32::NEG_INFINITY);
        let products = self.y.iter().zip(self.dy).map(|(y, dy)| y * dy);
        let mean: f32 = products.sum();
        for (weight, slope) in self.weights.iter_mut().zip(self.slopes) {
            *weight = math::exp::<A>(*weight - self.log_sum);
            *slope = *weight * (*slope - mean) * self.scale;
        }
    }
}
