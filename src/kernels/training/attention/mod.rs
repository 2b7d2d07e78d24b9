//! Causal attention over whole sequences for training, forward and backward, with grouped queries
//! and a sliding window, without a KV cache.
//!
//! Scores are computed per tile of queries and not stored; the backward pass recomputes them from
//! the softmax sums, as FlashAttention does (arXiv 2205.14135, section 3 and appendix B).

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels::cpu::element::values;
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::kernels::cpu::math;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch};
use crate::kernels::cuda;

/// Options of the attention.
#[derive(Clone, Copy, Debug)]
pub struct CausalOptions<'a> {
    /// Row ranges of the sequences, ascending.
    pub sequences: &'a [Range<usize>],
    /// Sliding window: number of positions that a row attends to, including itself; `None` for all.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
}

/// Queries per tile.
const TILE: usize = 64;

/// Causal attention `softmax(q·Kᵀ·scale)·V` within each sequence, for queries `[rows, heads, dim]`
/// and keys and values `[rows, kv heads, dim]`. Returns the result `[rows, heads, dim]` and, for
/// the backward pass, the natural logarithm of each softmax sum, `[rows, heads]`.
///
/// # Errors
/// The shapes do not fit each other or the sequences.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &CausalOptions,
) -> Result<(Tensor, Tensor)> {
    if q.device().is_cuda() {
        return cuda::causal_attention([q, k, v], options);
    }
    let (rows, heads, dim) = q.dims3()?;
    let (qv, kv, vv) = (values(q)?, values(k)?, values(v)?);
    let inputs = Inputs::new([&qv, &kv, &vv], q, k, v, options)?;
    let (mut y, mut log_sums) = (vec![0f32; rows * heads * dim], vec![0f32; rows * heads]);
    {
        let (y, log_sums) = (Scattered::new(&mut y), Scattered::new(&mut log_sums));
        inputs.each(|group| group.forward(&y, &log_sums));
    }
    Ok((
        Tensor::from_vec(y, (rows, heads, dim), q.device())?,
        Tensor::from_vec(log_sums, (rows, heads), q.device())?,
    ))
}

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

/// Checks that queries, keys and values fit each other and the sequences.
pub(in crate::kernels) fn check(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    options: &CausalOptions,
) -> Result<()> {
    let (rows, heads, dim) = queries.dims3()?;
    let (key_rows, kv_heads, key_dim) = keys.dims3()?;
    let sequences = options.sequences;
    let last = sequences.last().map_or(0, |range| range.end);
    let ordered = sequences
        .windows(2)
        .all(|pair| pair[0].end <= pair[1].start);
    let fits = (key_rows, key_dim, values.dims()) == (rows, dim, keys.dims());
    if !fits || !heads.is_multiple_of(kv_heads) || !ordered || last > rows {
        let (q, k) = (queries.shape(), keys.shape());
        candle_core::bail!(
            "causal attention: shapes do not match: queries {q:?}, keys {k:?}, \
             sequences to row {last}"
        );
    }
    Ok(())
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

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: usize,
    kv_heads: usize,
    dim: usize,
    options: &'a CausalOptions<'a>,
}

impl<'a> Inputs<'a> {
    fn new(
        [q, k, v]: [&'a [f32]; 3],
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        options: &'a CausalOptions<'a>,
    ) -> Result<Self> {
        check(queries, keys, values, options)?;
        let (_, heads, dim) = queries.dims3()?;
        let (_, kv_heads, _) = keys.dims3()?;
        Ok(Self {
            q,
            k,
            v,
            heads,
            kv_heads,
            dim,
            options,
        })
    }

    /// Runs `body` for each sequence and KV head, on all cores.
    fn each(&self, body: impl Fn(Group) + Sync) {
        let sequences = self.options.sequences;
        for_each_range(sequences.len() * self.kv_heads, 1, |range| {
            for task in range {
                body(Group {
                    inputs: self,
                    rows: sequences[task / self.kv_heads].clone(),
                    kv_head: task % self.kv_heads,
                });
            }
        });
    }
}

/// Query heads of one sequence that share a KV head.
struct Group<'a> {
    inputs: &'a Inputs<'a>,
    rows: Range<usize>,
    kv_head: usize,
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

/// Tile of queries, with the keys that at least one of them attends to.
#[derive(Clone)]
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Tile {
    /// Row stride of the scores, a multiple of [`LANES`].
    fn stride(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }

    fn shape(&self) -> [usize; 2] {
        [self.queries.len(), self.keys.len()]
    }

    /// Columns of the scores that a query attends to.
    fn seen(&self, query: usize, window: usize) -> Range<usize> {
        let first = (query + 1).saturating_sub(window).max(self.keys.start);
        first - self.keys.start..query + 1 - self.keys.start
    }
}

impl Group<'_> {
    fn query_heads(&self) -> Range<usize> {
        let group = self.inputs.heads / self.inputs.kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    fn window(&self) -> usize {
        self.inputs.options.window.unwrap_or(usize::MAX)
    }

    fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        let starts = self.rows.clone().step_by(TILE);
        starts.map(|start| Tile {
            queries: start..(start + TILE).min(self.rows.end),
            keys: (start + 1)
                .saturating_sub(self.window())
                .max(self.rows.start)..(start + TILE).min(self.rows.end),
        })
    }

    /// Index of the first value of a row and head, for `heads` heads per row.
    fn at(&self, row: usize, heads: usize, head: usize) -> usize {
        (row * heads + head) * self.inputs.dim
    }

    /// Matrix `[rows, dim]` of one head, for `heads` heads per row.
    fn part<'v>(
        &self,
        values: &'v [f32],
        rows: &Range<usize>,
        heads: usize,
        head: usize,
    ) -> Matrix<'v> {
        let dim = self.inputs.dim;
        let start = self.at(rows.start, heads, head);
        Matrix::new(&values[start..], [rows.len(), dim], heads * dim)
    }

    /// Like [`Self::part`], for writes.
    ///
    /// # Safety
    /// No other reference to these values of the rows is used while the matrix lives.
    unsafe fn part_mut<'v>(
        &self,
        values: &'v Scattered<'_, f32>,
        rows: &Range<usize>,
        heads: usize,
        head: usize,
    ) -> MatrixMut<'v> {
        let dim = self.inputs.dim;
        let start = self.at(rows.start, heads, head);
        // SAFETY: the caller's promise.
        unsafe { MatrixMut::scattered(values, start, [rows.len(), dim], heads * dim) }
    }

    /// Computes `scale·q·kᵀ` of a tile, with rows of the tile's stride.
    fn scores(&self, tile: &Tile, head: usize, scores: &mut Vec<f32>) {
        let Inputs {
            heads, kv_heads, ..
        } = *self.inputs;
        scores.clear();
        scores.resize(tile.queries.len() * tile.stride(), 0.0);
        let q = self.part(self.inputs.q, &tile.queries, heads, head);
        let k = self.part(self.inputs.k, &tile.keys, kv_heads, self.kv_head);
        let mut y = MatrixMut::new(scores, tile.shape(), tile.stride());
        let scale = self.inputs.options.scale;
        multiply(&mut y, Write::Replace, scale, q, k.t(), Threads::One);
    }

    fn forward(&self, y: &Scattered<f32>, log_sums: &Scattered<f32>) {
        let Inputs {
            heads, kv_heads, ..
        } = *self.inputs;
        let mut scores = Vec::new();
        for head in self.query_heads() {
            for tile in self.tiles() {
                self.scores(&tile, head, &mut scores);
                let rows = scores.chunks_exact_mut(tile.stride());
                for (query, scores) in tile.queries.clone().zip(rows) {
                    let seen = tile.seen(query, self.window());
                    let log_sum = dispatch(Softmax { scores, seen });
                    // SAFETY: a query head's row belongs to this group alone.
                    unsafe { log_sums.write(query * heads + head, log_sum) };
                }
                let weights = Matrix::new(&scores, tile.shape(), tile.stride());
                let v = self.part(self.inputs.v, &tile.keys, kv_heads, self.kv_head);
                // SAFETY: as above.
                let mut y = unsafe { self.part_mut(y, &tile.queries, heads, head) };
                multiply(&mut y, Write::Replace, 1.0, weights, v, Threads::One);
            }
        }
    }

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
        // SAFETY: a key head's rows belong to this group alone.
        let mut dk = unsafe { self.part_mut(out.dk, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dk, Write::Add, 1.0, slopes.t(), q, Threads::One);
        // SAFETY: as above.
        let mut dv = unsafe { self.part_mut(out.dv, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dv, Write::Add, 1.0, weights.t(), dy, Threads::One);
    }
}

/// Replaces a row of scores with their softmax over the columns `seen`, and zeros elsewhere.
/// Returns the logarithm of the sum of `e^score`.
struct Softmax<'a> {
    scores: &'a mut [f32],
    seen: Range<usize>,
}

impl Vectorised for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> f32 {
        self.scores[..self.seen.start].fill(f32::NEG_INFINITY);
        self.scores[self.seen.end..].fill(f32::NEG_INFINITY);
        let (max, sum) = math::exponentials::<A>(self.scores);
        let share = 1.0 / sum;
        for score in self.scores.iter_mut() {
            *score *= share;
        }
        max + sum.ln()
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

#[cfg(test)]
mod tests;
