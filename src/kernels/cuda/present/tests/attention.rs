//! Tests of attention and the KV cache against the CPU.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::{assert_near, both, dtypes, gpu, random, unit, uploaded};
use crate::kernels::attention::{Span, Spans, attention};
use crate::kernels::kv::{BLOCK, KvBlocks};
use crate::kernels::step::indices::Indices;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn attention_equals_the_cpus(
        lengths in prop::collection::vec((1usize..70, 1usize..20), 1..4),
        long in prop::option::of(Just((600usize, 3usize))),
        (kv_heads, group) in (1usize..3, 1usize..9),
        dim in prop::sample::select(vec![6usize, 16, 64, 80, 128, 136, 256]),
        window in prop::option::of(1usize..40),
        dtype in dtypes(),
    ) {
        let gpu = gpu();
        let lengths: Vec<(usize, usize)> = lengths.into_iter().chain(long).collect();
        attend(&lengths, [kv_heads, group, dim], window, dtype, &gpu).unwrap();
    }
}

/// Computes attention on the CPU and on the GPU, for sequences of `(positions, queries)`: the last
/// positions are the queries.
fn attend(
    lengths: &[(usize, usize)],
    [kv_heads, group, dim]: [usize; 3],
    window: Option<usize>,
    dtype: DType,
    gpu: &Device,
) -> Result<()> {
    let tables: Vec<usize> = lengths.iter().map(|(n, _)| n.div_ceil(BLOCK)).collect();
    let total = tables.iter().sum::<usize>();
    let blocks = |device, dtype| KvBlocks::zeros([total, kv_heads, dim], dtype, device);
    let (here, there) = (blocks(&Device::Cpu, DType::F32)?, blocks(gpu, dtype)?);
    let (mut spans, mut queries, mut next_block) = (Vec::new(), Vec::new(), total);
    for (&(positions, rows), table) in lengths.iter().zip(&tables) {
        let rows = rows.min(positions);
        // Reversed, so that the order in memory differs from that of the sequence.
        let blocks: Vec<u32> = (next_block - table..next_block)
            .rev()
            .map(|b| b as u32)
            .collect();
        next_block -= table;
        let slot = |p: usize| blocks[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32;
        let slots: Vec<u32> = (0..positions).map(slot).collect();
        let (fresh, fresh_there) = both(&random((positions, 2 * kv_heads, dim)), dtype, gpu);
        let slots_on = |device| Indices::uploaded(&slots, device).unwrap();
        here.write(&fresh, &slots_on(&Device::Cpu))?;
        there.write(&fresh_there, &slots_on(gpu))?;
        spans.push(Span {
            first_row: queries.iter().map(|q: &Tensor| q.dim(0).unwrap()).sum(),
            rows,
            first_position: positions - rows,
            blocks,
        });
        queries.push(random((rows, kv_heads * group, dim)));
    }
    let (queries, queries_there) = both(&Tensor::cat(&queries, 0)?, dtype, gpu);
    let spans_on = |device: &Device| uploaded(device, |inputs| Spans::new(&spans, group, inputs));
    let want = attention(&queries, &here, &spans_on(&Device::Cpu), window, 0.3)?;
    let got = attention(&queries_there, &there, &spans_on(gpu), window, 0.3)?;
    assert_near(&want, &got, 2.0 * unit(dtype));
    Ok(())
}
