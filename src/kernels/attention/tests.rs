use candle_core::{DType, Device, IndexOp, Tensor};
use proptest::prelude::*;

use super::*;
use crate::kernels::step::indices::Indices;

/// The dense history of a sequence: queries `[n, heads, dim]`, keys and values
/// `[n, kv heads, dim]`.
struct Sequence {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Sequence {
    fn random(positions: usize, heads: usize, kv_heads: usize, dim: usize) -> Self {
        let random = |h| Tensor::randn(0f32, 1., (positions, h, dim), &Device::Cpu).unwrap();
        Self {
            queries: random(heads),
            keys: random(kv_heads),
            values: random(kv_heads),
        }
    }

    /// Textbook attention of the query at `position`, `[heads, dim]`.
    fn reference(&self, position: usize, window: Option<usize>, scale: f32) -> Vec<f32> {
        let (_, heads, _) = self.queries.dims3().unwrap();
        let group = heads / self.keys.dim(1).unwrap();
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = Vec::new();
        for head in 0..heads {
            let seen = |t: &Tensor| t.i((first..=position, head / group)).unwrap();
            let query = self.queries.i((position, head)).unwrap();
            let keys = seen(&self.keys);
            let scores = keys.matmul(&query.unsqueeze(1).unwrap()).unwrap();
            let scores = (scores.squeeze(1).unwrap() * f64::from(scale)).unwrap();
            let weights = candle_nn::ops::softmax(&scores, 0).unwrap();
            let y = weights
                .unsqueeze(0)
                .unwrap()
                .matmul(&seen(&self.values))
                .unwrap();
            out.extend(y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        out
    }
}

/// Runs the last `chunk` positions of each sequence as one batch over scattered blocks.
fn paged(sequences: &[Sequence], chunks: &[usize], window: Option<usize>, dtype: DType) -> Tensor {
    let (_, kv_heads, dim) = sequences[0].keys.dims3().unwrap();
    let total: usize = sequences
        .iter()
        .map(|s| s.keys.dim(0).unwrap().div_ceil(BLOCK))
        .sum();
    // Stale blocks hold infinities, which must not reach any row.
    let stale = Tensor::full(
        f32::INFINITY,
        (2, total, kv_heads, dim * BLOCK),
        &Device::Cpu,
    );
    let stale = stale.unwrap().to_dtype(dtype).unwrap();
    let cached = KvBlocks::new(stale, dim).unwrap();
    let (mut spans, mut queries, mut first_row, mut next_block) = (vec![], vec![], 0, total as u32);
    for (sequence, &rows) in sequences.iter().zip(chunks) {
        let positions = sequence.keys.dim(0).unwrap();
        // Block tables run backwards, so that memory order differs from sequence order.
        let blocks: Vec<u32> = (0..positions.div_ceil(BLOCK))
            .map(|_| {
                next_block -= 1;
                next_block
            })
            .collect();
        let slot = |p: usize| blocks[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32;
        let slots: Vec<u32> = (0..positions).map(slot).collect();
        let slots = Indices::uploaded(&slots, &Device::Cpu).unwrap();
        let fresh = Tensor::cat(&[&sequence.keys, &sequence.values], 1).unwrap();
        cached.write(&fresh, &slots).unwrap();
        let first_position = positions - rows;
        queries.push(sequence.queries.narrow(0, first_position, rows).unwrap());
        spans.push(Span {
            first_row,
            rows,
            first_position,
            blocks,
        });
        first_row += rows;
    }
    let queries = Tensor::cat(&queries, 0).unwrap();
    let group = queries.dim(1).unwrap() / kv_heads;
    let spans = Spans::new(&spans, group, &mut Inputs::new(&Device::Cpu)).unwrap();
    attention(&queries, &cached, &spans, window, 0.3).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_the_textbook_and_ignores_the_batch(
        lengths in prop::collection::vec((1usize..70, 1usize..70), 1..4),
        (kv_heads, group) in (1usize..3, 1usize..8),
        dim in prop::sample::select(vec![8usize, 16, 32, 48]),
        window in prop::option::of(1usize..40),
    ) {
        let heads = kv_heads * group;
        let chunks: Vec<usize> = lengths.iter().map(|(n, chunk)| *chunk.min(n)).collect();
        let sequences: Vec<Sequence> =
            lengths.iter().map(|(n, _)| Sequence::random(*n, heads, kv_heads, dim)).collect();
        let got = paged(&sequences, &chunks, window, DType::F32);
        let mut row = 0;
        for (sequence, &chunk) in sequences.iter().zip(&chunks) {
            let positions = sequence.keys.dim(0).unwrap();
            let alone = paged(std::slice::from_ref(sequence), &[chunk], window, DType::F32);
            for i in 0..chunk {
                let got: Vec<f32> = got.i(row).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let alone = alone.i(i).unwrap().flatten_all().unwrap();
                prop_assert_eq!(&got, &alone.to_vec1::<f32>().unwrap());
                let want = sequence.reference(positions - chunk + i, window, 0.3);
                for (got, want) in got.iter().zip(&want) {
                    prop_assert!((got - want).abs() < 2e-5, "{got} {want}");
                }
                row += 1;
            }
        }
    }
}

#[test]
fn bf16_blocks_are_near_f32_blocks() {
    let sequence = [Sequence::random(100, 6, 2, 32)];
    let exact = paged(&sequence, &[100], None, DType::F32);
    let rounded = paged(&sequence, &[100], None, DType::BF16);
    let worst = (exact - rounded).unwrap().abs().unwrap().max_all().unwrap();
    let worst: f32 = worst.to_scalar().unwrap();
    assert!(worst > 0. && worst < 0.03, "{worst}");
}

#[test]
fn refuses_a_block_table_that_is_too_short() {
    let queries = Tensor::zeros((1, 2, 16), DType::F32, &Device::Cpu).unwrap();
    let cached = KvBlocks::zeros([4, 1, 16], DType::F32, &Device::Cpu).unwrap();
    let run = |first_position, blocks| {
        let span = Span {
            first_row: 0,
            rows: 1,
            first_position,
            blocks,
        };
        let span = [span];
        let spans = Spans::new(&span, 2, &mut Inputs::new(&Device::Cpu)).unwrap();
        attention(&queries, &cached, &spans, None, 1.0)
    };
    assert!(run(15, vec![3]).is_ok());
    assert!(run(16, vec![3]).is_err());
    assert!(run(0, vec![4]).is_err());
}
