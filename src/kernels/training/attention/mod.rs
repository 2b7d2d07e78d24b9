//! Causal attention over whole sequences for training, forward and backward, with grouped queries
//! and a sliding window, without a KV cache.
//!
//! Scores are computed per tile of queries and not stored; the backward pass recomputes them from
//! the softmax sums, as FlashAttention does (arXiv 2205.14135, section 3 and appendix B).

pub(in crate::kernels) mod backward;

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels::cpu::element::values;
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::kernels::cpu::math;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch};
use crate::kernels::cuda;
pub use backward::causal_attention_backward;

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

#[cfg(test)]
mod tests;
