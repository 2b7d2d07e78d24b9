//! Attention of a tile: the queries of a few rows of one sequence that share a KV head.

use std::ops::Range;

use crate::kernels::cpu::element::Element;
use crate::kernels::cpu::math;
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, Wide, prefetch};
use crate::kernels::kv::BLOCK;

/// Largest number of queries that are processed together: as many as fit in registers.
pub const MAX_QUERIES: usize = 6;

/// Keys and values of one layer, in blocks.
pub struct Cache<'a, T> {
    pub keys: &'a [T],
    pub values: &'a [T],
    pub kv_heads: usize,
    pub dim: usize,
}

impl<T> Cache<'_, T> {
    /// Start of a block's part for one head, in keys and in values.
    #[inline(always)]
    fn offset(&self, block: u32, kv_head: usize) -> usize {
        (block as usize * self.kv_heads + kv_head) * self.dim * BLOCK
    }
}

/// One query: its values `x` `[dim]`, its result `y` `[dim]`, and the positions that it sees.
struct Query<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    seen: Range<usize>,
}

/// Queries of one KV head, each over its own range of positions.
pub struct Tile<'a, T> {
    cache: &'a Cache<'a, T>,
    kv_head: usize,
    blocks: &'a [u32],
    scale: f32,
    queries: Vec<Query<'a>>,
    /// Buffer of the scores, reused from tile to tile.
    scores: &'a mut Vec<f32>,
}

impl<'a, T: Element> Tile<'a, T> {
    /// A tile without queries, over the sequence whose block table is `blocks`.
    pub fn new(
        cache: &'a Cache<'a, T>,
        kv_head: usize,
        blocks: &'a [u32],
        scale: f32,
        scores: &'a mut Vec<f32>,
    ) -> Self {
        let queries = Vec::with_capacity(MAX_QUERIES);
        Self {
            cache,
            kv_head,
            blocks,
            scale,
            queries,
            scores,
        }
    }

    /// Adds the queries of a row, which see the same positions.
    pub fn push(&mut self, queries: &'a [f32], y: &'a mut [f32], seen: &Range<usize>) {
        let dim = self.cache.dim;
        let heads = queries.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
        self.queries.extend(heads.map(|(x, y)| Query {
            x,
            y,
            seen: seen.clone(),
        }));
    }
}

impl<T: Element> Vectorised for Tile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(mut self) {
        let mut queries = std::mem::take(&mut self.queries);
        for queries in queries.chunks_mut(MAX_QUERIES) {
            match queries {
                [a] => self.attend::<A, 1>([a]),
                [a, b] => self.attend::<A, 2>([a, b]),
                [a, b, c] => self.attend::<A, 3>([a, b, c]),
                [a, b, c, d] => self.attend::<A, 4>([a, b, c, d]),
                [a, b, c, d, e] => self.attend::<A, 5>([a, b, c, d, e]),
                [a, b, c, d, e, f, ..] => self.attend::<A, 6>([a, b, c, d, e, f]),
                [] => {}
            }
        }
    }
}

impl<T: Element> Tile<'_, T> {
    /// Computes the results of `Q` queries.
    #[inline(always)]
    fn attend<A: Arithmetic, const Q: usize>(&mut self, queries: [&mut Query; Q]) {
        let first = queries.iter().map(|query| query.seen.start).min();
        let end = queries.iter().map(|query| query.seen.end).max();
        let blocks = first.unwrap_or(0) / BLOCK..end.unwrap_or(0).div_ceil(BLOCK);
        let start = blocks.start * BLOCK;
        let width = blocks.len() * BLOCK;
        self.scores.resize(Q * width, 0.0);
        self.score::<A, Q>(std::array::from_fn(|q| queries[q].x), &blocks, width);
        let mut sums = [0f32; Q];
        for (q, scores) in self.scores.chunks_exact_mut(width).take(Q).enumerate() {
            // Positions that a query does not see get weight 0.
            let seen = &queries[q].seen;
            scores[..seen.start - start].fill(f32::NEG_INFINITY);
            scores[seen.end - start..].fill(f32::NEG_INFINITY);
            sums[q] = math::exponentials::<A>(scores).1;
        }
        let dim = self.cache.dim;
        let whole = dim - dim % LANES;
        for d in (0..whole).step_by(LANES) {
            let totals = self.weigh::<A, Q>(&blocks, end.unwrap_or(0), width, d);
            for (q, total) in totals.into_iter().enumerate() {
                let y: &mut [f32; LANES] = (&mut queries[q].y[d..d + LANES])
                    .try_into()
                    .expect("LANES values");
                total.store(y);
                y.iter_mut().for_each(|y| *y /= sums[q]);
            }
        }
        for d in whole..dim {
            let totals = self.weigh_one::<A, Q>(&blocks, end.unwrap_or(0), width, d);
            for (q, total) in totals.into_iter().enumerate() {
                queries[q].y[d] = total / sums[q];
            }
        }
    }

    /// `scores[q, p] = scale · q·k_p`, one block of positions at a time.
    #[inline(always)]
    fn score<A: Arithmetic, const Q: usize>(
        &mut self,
        queries: [&[f32]; Q],
        blocks: &Range<usize>,
        width: usize,
    ) {
        let dim = self.cache.dim;
        let size = dim * BLOCK;
        for (i, at) in blocks.clone().enumerate() {
            let keys = self.cache.offset(self.blocks[at], self.kv_head);
            // Prefetch the keys of the next block or, after the last, the values of the first.
            let (next, ahead) = match self.blocks[..blocks.end].get(at + 1) {
                Some(&next) => (self.cache.offset(next, self.kv_head), self.cache.keys),
                None => {
                    let first = self.blocks[blocks.start];
                    (self.cache.offset(first, self.kv_head), self.cache.values)
                }
            };
            let keys = self.cache.keys[keys..keys + size].as_chunks::<LANES>().0;
            let mut sums = [A::Wide::zero(); Q];
            for (d, keys) in keys.iter().enumerate() {
                prefetch(ahead, next + d * LANES);
                let keys: A::Wide = T::widen_lanes(keys);
                for (sum, query) in sums.iter_mut().zip(queries) {
                    *sum = A::Wide::splat(query[d]).mul_add(keys, *sum);
                }
            }
            for (q, sum) in sums.into_iter().enumerate() {
                let scores: &mut [f32; BLOCK] = (&mut self.scores[q * width + i * BLOCK..]
                    [..BLOCK])
                    .try_into()
                    .expect("a block of scores");
                sum.store(scores);
                scores.iter_mut().for_each(|score| *score *= self.scale);
            }
        }
    }

    /// `Σ_p scores[q, p]·v_p[d..d + LANES]` over the positions below `end`, in ascending order. The
    /// rest of the last block may hold any values, including infinities.
    #[inline(always)]
    fn weigh<A: Arithmetic, const Q: usize>(
        &self,
        blocks: &Range<usize>,
        end: usize,
        width: usize,
        d: usize,
    ) -> [A::Wide; Q] {
        let dim = self.cache.dim;
        let mut totals = [A::Wide::zero(); Q];
        for (i, at) in blocks.clone().enumerate() {
            let offset = self.cache.offset(self.blocks[at], self.kv_head);
            let next = match self.blocks[..blocks.end].get(at + 1) {
                Some(&next) => self.cache.offset(next, self.kv_head),
                None => offset,
            };
            let weights: [&[f32]; Q] =
                std::array::from_fn(|q| &self.scores[q * width + i * BLOCK..][..BLOCK]);
            let values = &self.cache.values[offset..offset + dim * BLOCK];
            for p in 0..BLOCK.min(end - at * BLOCK) {
                prefetch(self.cache.values, next + p * dim + d);
                let value = values[p * dim + d..].first_chunk().expect("LANES values");
                let value: A::Wide = T::widen_lanes(value);
                for (total, weights) in totals.iter_mut().zip(weights) {
                    *total = A::Wide::splat(weights[p]).mul_add(value, *total);
                }
            }
        }
        totals
    }

    /// Like [`Self::weigh`], for the single value `d`.
    #[inline(always)]
    fn weigh_one<A: Arithmetic, const Q: usize>(
        &self,
        blocks: &Range<usize>,
        end: usize,
        width: usize,
        d: usize,
    ) -> [f32; Q] {
        let dim = self.cache.dim;
        let mut totals = [0f32; Q];
        for position in blocks.start * BLOCK..end {
            let offset = self
                .cache
                .offset(self.blocks[position / BLOCK], self.kv_head);
            let value = self.cache.values[offset + position % BLOCK * dim + d].widen();
            for (q, total) in totals.iter_mut().enumerate() {
                let weight = self.scores[q * width + position - blocks.start * BLOCK];
                *total = A::mul_add(weight, value, *total);
            }
        }
        totals
    }
}
