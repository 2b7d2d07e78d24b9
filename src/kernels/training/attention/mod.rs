//! Causal attention over whole sequences, forward and backward, for training: grouped queries, a
//! sliding window, no KV cache.
//!
//! Scores are formed a tile of queries at a time and not kept; the backward pass forms them again
//! from the softmax sums (as FlashAttention does, arXiv 2205.14135, section 3 and appendix B).

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels::cpu::element::values;
use crate::kernels::cpu::gemm::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::kernels::cpu::math;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch};

/// What is computed besides queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct CausalOptions<'a> {
    /// The rows of each sequence.
    pub sequences: &'a [Range<usize>],
    /// How many positions a row sees, its own among them; `None`: all before it.
    pub window: Option<usize>,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// Queries whose scores are held at once.
const TILE: usize = 64;

/// `softmax(q·Kᵀ·scale)·V` of each row over the rows of its sequence up to itself, for queries
/// `[rows, heads, dim]`, keys and values `[rows, kv heads, dim]`: the result `[rows, heads, dim]`, and
/// `[rows, heads]`, the natural logarithm of each softmax's sum, which the backward pass wants.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &CausalOptions,
) -> Result<(Tensor, Tensor)> {
    let (rows, heads, dim) = q.dims3()?;
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        check(q, k, v, options)?;
        return crate::kernels::cuda::training::Causal::new(q, k, options)?.forward([q, k, v]);
    }
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

/// The gradients of `q`, `k` and `v`, from that of the result `y`.
pub fn causal_attention_backward(
    [q, k, v]: [&Tensor; 3],
    y: &Tensor,
    log_sums: &Tensor,
    dy: &Tensor,
    options: &CausalOptions,
) -> Result<[Tensor; 3]> {
    let (rows, heads, _) = q.dims3()?;
    let shapes = y.dims() == q.dims() && dy.dims() == q.dims();
    if !shapes || log_sums.dims() != [rows, heads] {
        candle_core::bail!("causal attention: gradients and results have the queries' shape");
    }
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        check(q, k, v, options)?;
        let attention = crate::kernels::cuda::training::Causal::new(q, k, options)?;
        return attention.backward([q, k, v], y, log_sums, dy);
    }
    let (qv, kv, vv) = (values(q)?, values(k)?, values(v)?);
    let inputs = Inputs::new([&qv, &kv, &vv], q, k, v, options)?;
    let (y, log_sums, dy) = (values(y)?, values(log_sums)?, values(dy)?);
    let given = Given {
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
        let out = Out {
            dq: &dq,
            dk: &dk,
            dv: &dv,
        };
        inputs.each(|group| group.backward(&given, &out));
    }
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
}

/// Whether queries, keys and values fit each other and the sequences.
fn check(queries: &Tensor, keys: &Tensor, values: &Tensor, options: &CausalOptions) -> Result<()> {
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
        candle_core::bail!("causal attention: queries {q:?}, keys {k:?}, sequences to {last}");
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

    /// Runs `body` for every sequence and key head, on all cores.
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

/// The query heads of one sequence that share a key head.
struct Group<'a> {
    inputs: &'a Inputs<'a>,
    rows: Range<usize>,
    kv_head: usize,
}

/// What the backward pass is given besides the inputs.
struct Given<'a> {
    y: &'a [f32],
    log_sums: &'a [f32],
    dy: &'a [f32],
}

/// Where gradients go.
struct Out<'a> {
    dq: &'a Scattered<'a, f32>,
    dk: &'a Scattered<'a, f32>,
    dv: &'a Scattered<'a, f32>,
}

/// Some queries, and the keys that any of them sees.
#[derive(Clone)]
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Tile {
    /// Scores of a query are this far apart: whole vectors.
    fn stride(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }

    fn shape(&self) -> [usize; 2] {
        [self.queries.len(), self.keys.len()]
    }

    /// The scores' columns of the keys that a query sees.
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

    /// Where a row's part for one of `heads` heads starts.
    fn at(&self, row: usize, heads: usize, head: usize) -> usize {
        (row * heads + head) * self.inputs.dim
    }

    /// Some rows' part for one of `heads` heads.
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

    /// The same of a result.
    ///
    /// # Safety
    /// Nobody else may touch this part of the rows while the matrix lives.
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

    /// `scale·q·kᵀ` of a tile, in rows of the tile's stride.
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
    fn backward(&self, given: &Given, out: &Out) {
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

    /// Adds a tile's part of all three gradients.
    fn products(
        &self,
        tile: &Tile,
        head: usize,
        weights: &[f32],
        slopes: &[f32],
        given: &Given,
        out: &Out,
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
        // SAFETY: and so do a key head's.
        let mut dk = unsafe { self.part_mut(out.dk, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dk, Write::Add, 1.0, slopes.t(), q, Threads::One);
        // SAFETY: as above.
        let mut dv = unsafe { self.part_mut(out.dv, &tile.keys, kv_heads, self.kv_head) };
        multiply(&mut dv, Write::Add, 1.0, weights.t(), dy, Threads::One);
    }
}

/// Replaces a row of scores by their softmax over `seen`, zero elsewhere; gives the logarithm of the
/// sum of `e^score`.
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
        let (most, sum) = math::exponentials::<A>(self.scores);
        let share = 1.0 / sum;
        for score in self.scores.iter_mut() {
            *score *= share;
        }
        most + sum.ln()
    }
}

/// Replaces a row's scores by their softmax, and `dy·Vᵀ` by the scores' gradient.
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
