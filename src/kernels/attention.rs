//! Causal attention of a ragged batch over KV blocks, with grouped queries and a sliding window.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::element::{Element, elements, with_element};
use super::kv::BLOCK;
use super::math;
use super::parallel::{Scattered, for_each_range};
use super::simd::{Arithmetic, LANES, Vectorised, dispatch};

/// The rows of one sequence in a batch, and where its keys and values lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The batch row of the first token.
    pub first_row: usize,
    /// How many tokens of the sequence are in the batch.
    pub rows: usize,
    /// The position of the first token in its sequence.
    pub first_position: usize,
    /// The sequence's block table: position `p` lies in `blocks[p / BLOCK]`.
    pub blocks: Vec<u32>,
}

// Scores of a block are whole vectors.
const _: () = assert!(BLOCK.is_multiple_of(LANES));

/// Softmax attention `softmax(q·Kᵀ·scale)·V` of queries `[rows, heads, dim]` over a layer's key and
/// value blocks (see [`super::kv`]), into which the batch's own keys are already written. The row
/// at position `p` sees positions `0..=p`, or the last `window` of them.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    spans: &[Span],
    window: Option<usize>,
    scale: f32,
) -> Result<Tensor> {
    let op = Attention {
        spans,
        window: window.unwrap_or(usize::MAX),
        scale,
    };
    queries.apply_op3_no_bwd(keys, values, &op)
}

struct Attention<'a> {
    spans: &'a [Span],
    window: usize,
    scale: f32,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, heads, dim) = queries_layout.shape().dims3()?;
        let (blocks, kv_heads, key_dim, block) = keys_layout.shape().dims4()?;
        let fits = key_dim == dim && block == BLOCK && heads.is_multiple_of(kv_heads);
        if !fits || values_layout.shape().dims() != [blocks, kv_heads, BLOCK, dim] {
            let (keys, values) = (keys_layout.shape(), values_layout.shape());
            candle_core::bail!(
                "attention: {heads} heads of {dim}, keys {keys:?}, values {values:?}"
            );
        }
        self.check(rows, blocks)?;
        let queries = elements::<f32>(queries, queries_layout)?;
        let mut y = vec![0f32; rows * heads * dim];
        with_element!(keys, T => {
            let cache = Cache {
                keys: elements::<T>(keys, keys_layout)?,
                values: elements::<T>(values, values_layout)?,
                kv_heads,
                dim,
            };
            self.run(queries, &cache, heads / kv_heads, &mut y);
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, heads, dim))))
    }
}

impl Attention<'_> {
    /// The spans cover the rows in order, and every position has a block.
    fn check(&self, rows: usize, blocks: usize) -> Result<()> {
        let mut next = 0;
        for span in self.spans {
            let positions = span.first_position + span.rows;
            let known = span.blocks.iter().all(|&b| (b as usize) < blocks);
            if span.first_row != next || span.blocks.len() * BLOCK < positions || !known {
                candle_core::bail!("attention: {span:?} does not fit {rows} rows, {blocks} blocks");
            }
            next += span.rows;
        }
        if next != rows {
            candle_core::bail!("attention: spans cover {next} rows of {rows}");
        }
        Ok(())
    }

    fn run<T: Element>(&self, queries: &[f32], cache: &Cache<T>, group: usize, y: &mut [f32]) {
        let dim = cache.dim;
        let rows: Vec<(&Span, usize)> = self
            .spans
            .iter()
            .flat_map(|span| (0..span.rows).map(move |i| (span, span.first_position + i)))
            .collect();
        let y = Scattered::new(y);
        // Heads outermost: a thread stays with one head's keys and values.
        for_each_range(rows.len() * cache.kv_heads, 1, |range| {
            let mut scores = Vec::new();
            for task in range {
                let (kv_head, row) = (task / rows.len(), task % rows.len());
                let (span, position) = rows[row];
                let start = (row * cache.kv_heads + kv_head) * group * dim;
                let size = group * dim;
                // SAFETY: each (row, kv head) is one task, and owns these query heads.
                let y = unsafe { y.slice(start..start + size) };
                dispatch(HeadGroup {
                    cache,
                    kv_head,
                    blocks: &span.blocks,
                    first: (position + 1).saturating_sub(self.window),
                    end: position + 1,
                    scale: self.scale,
                    queries: &queries[start..start + size],
                    scores: &mut scores,
                    y,
                });
            }
        });
    }
}

/// One layer's blocks.
struct Cache<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    kv_heads: usize,
    dim: usize,
}

impl<T> Cache<'_, T> {
    /// Where the block's part for one head starts, in keys and in values.
    #[inline(always)]
    fn offset(&self, block: u32, kv_head: usize) -> usize {
        (block as usize * self.kv_heads + kv_head) * self.dim * BLOCK
    }
}

/// The query heads of one row that share a key head, over positions `first..end`.
struct HeadGroup<'a, T> {
    cache: &'a Cache<'a, T>,
    kv_head: usize,
    blocks: &'a [u32],
    first: usize,
    end: usize,
    scale: f32,
    queries: &'a [f32],
    scores: &'a mut Vec<f32>,
    y: &'a mut [f32],
}

impl<T: Element> Vectorised for HeadGroup<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(mut self) {
        let heads = self.queries.len() / self.cache.dim;
        let mut head = 0;
        while head < heads {
            head += match heads - head {
                1 => self.heads::<A, 1>(head),
                2 => self.heads::<A, 2>(head),
                3 => self.heads::<A, 3>(head),
                _ => self.heads::<A, 4>(head),
            };
        }
    }
}

impl<T: Element> HeadGroup<'_, T> {
    /// Attention of `Q` heads from `head` on; returns `Q`.
    #[inline(always)]
    fn heads<A: Arithmetic, const Q: usize>(&mut self, head: usize) -> usize {
        let first_block = self.first / BLOCK;
        let width = self.end.div_ceil(BLOCK) * BLOCK - first_block * BLOCK;
        self.scores.clear();
        self.scores.resize(Q * width, 0.0);
        self.score::<A, Q>(head, first_block, width);
        let mut sums = [0f32; Q];
        for (sum, scores) in sums.iter_mut().zip(self.scores.chunks_exact_mut(width)) {
            scores[..self.first - first_block * BLOCK].fill(f32::NEG_INFINITY);
            scores[self.end - first_block * BLOCK..].fill(f32::NEG_INFINITY);
            *sum = math::exponentials::<A>(scores).1;
        }
        let dim = self.cache.dim;
        let whole = dim - dim % LANES;
        for d in (0..whole).step_by(LANES) {
            self.weigh::<A, Q, LANES>(head, first_block, width, &sums, d);
        }
        for d in whole..dim {
            self.weigh::<A, Q, 1>(head, first_block, width, &sums, d);
        }
        Q
    }

    /// `scores[q, p] = scale · q·k_p`, a block of positions at a time.
    #[inline(always)]
    fn score<A: Arithmetic, const Q: usize>(
        &mut self,
        head: usize,
        first_block: usize,
        width: usize,
    ) {
        let dim = self.cache.dim;
        let queries: [&[f32]; Q] =
            std::array::from_fn(|q| &self.queries[(head + q) * dim..(head + q + 1) * dim]);
        for (i, &block) in self.blocks[first_block..][..width / BLOCK]
            .iter()
            .enumerate()
        {
            let offset = self.cache.offset(block, self.kv_head);
            let keys = &self.cache.keys[offset..offset + dim * BLOCK];
            // Two sums a query, so that additions of one do not wait for each other.
            let mut sums = [[[0f32; BLOCK]; 2]; Q];
            for (pair, keys) in keys.chunks(2 * BLOCK).enumerate() {
                for (half, keys) in keys.chunks_exact(BLOCK).enumerate() {
                    let keys: &[T; BLOCK] = keys.try_into().expect("a chunk of BLOCK");
                    let keys = keys.map(T::widen);
                    for q in 0..Q {
                        let query = queries[q][2 * pair + half];
                        for l in 0..BLOCK {
                            sums[q][half][l] = A::mul_add(query, keys[l], sums[q][half][l]);
                        }
                    }
                }
            }
            for (q, [even, odd]) in sums.into_iter().enumerate() {
                let scores = &mut self.scores[q * width + i * BLOCK..][..BLOCK];
                for l in 0..BLOCK {
                    scores[l] = (even[l] + odd[l]) * self.scale;
                }
            }
        }
    }

    /// `y[q, d..d + D] = Σ_p weights[q, p]·v_p[d..d + D] / sums[q]`.
    #[inline(always)]
    fn weigh<A: Arithmetic, const Q: usize, const D: usize>(
        &mut self,
        head: usize,
        first_block: usize,
        width: usize,
        sums: &[f32; Q],
        d: usize,
    ) {
        let dim = self.cache.dim;
        let weights: [&[f32]; Q] =
            std::array::from_fn(|q| &self.scores[q * width..(q + 1) * width]);
        let mut totals = [[[0f32; D]; 2]; Q];
        for (i, &block) in self.blocks[first_block..][..width / BLOCK]
            .iter()
            .enumerate()
        {
            let offset = self.cache.offset(block, self.kv_head);
            let values = &self.cache.values[offset..offset + dim * BLOCK];
            let start = (first_block + i) * BLOCK;
            // Positions that the row does not see may hold anything, infinities too.
            for p in self.first.max(start)..self.end.min(start + BLOCK) {
                let value: &[T; D] = values[(p - start) * dim + d..][..D]
                    .try_into()
                    .expect("D values");
                let value = value.map(T::widen);
                for q in 0..Q {
                    let weight = weights[q][p - first_block * BLOCK];
                    let total = &mut totals[q][p % 2];
                    for l in 0..D {
                        total[l] = A::mul_add(weight, value[l], total[l]);
                    }
                }
            }
        }
        for (q, [even, odd]) in totals.into_iter().enumerate() {
            let y = &mut self.y[(head + q) * dim + d..][..D];
            for l in 0..D {
                y[l] = (even[l] + odd[l]) / sums[q];
            }
        }
    }
}

#[cfg(test)]
mod tests;
