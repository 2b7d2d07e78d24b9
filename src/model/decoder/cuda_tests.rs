//! Captured and replayed steps, on a GPU or its emulation.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Family, LoadOptions, RopeScaling, TicketLayout,
};
use crate::ticket::random_ticket;

const POSITIONS: usize = 600;
const SEQUENCES: usize = 12;

/// A base of synthetic weights on a GPU.
fn base(dtype: Dtype) -> Base {
    let config = ModelConfig {
        family: Family::Llama,
        hidden_size: 48,
        intermediate_size: 64,
        vocab_size: 96,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        max_position_embeddings: POSITIONS,
        tie_word_embeddings: true,
        qkv_bias: true,
        output_bias: false,
        mlp_bias: false,
        qk_norm: true,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        windows: vec![None, Some(40)],
        eos_token_ids: Vec::new(),
    };
    let options = LoadOptions {
        dtype,
        device: DeviceSpec::Cuda(0),
        max_positions: Some(POSITIONS),
        keep_quantized: false,
    };
    let folder = TempDir::new().unwrap();
    let cache = CacheDir::at(folder.path().to_owned());
    Base::load(
        "synthetic",
        &Checkpoint::synthetic(config),
        &options,
        &cache,
        &mut |_| (),
    )
    .unwrap()
}

/// Sequences that take steps, each with its own blocks.
struct Sequences {
    /// Next position of each sequence.
    next: [usize; SEQUENCES],
}

impl Sequences {
    /// A step of `tokens` tokens of each chosen sequence, with its ticket overlaid.
    fn step(
        &mut self,
        chosen: &[(usize, Option<&Arc<TicketLayout>>)],
        tokens: usize,
        rng: &mut StdRng,
    ) -> Batch {
        let blocks = POSITIONS.div_ceil(BLOCK);
        let mut batch = Batch::default();
        for &(sequence, ticket) in chosen {
            // The blocks of all sequences interleave.
            let table = |block| (block * SEQUENCES + sequence) as u32;
            let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..96)).collect();
            let start = self.next[sequence];
            let table: Vec<u32> = (0..(start + tokens).div_ceil(BLOCK).min(blocks))
                .map(table)
                .collect();
            batch.push(&ids, start, &table, true);
            if let Some(ticket) = ticket {
                batch.overlay(ticket);
            }
            self.next[sequence] += tokens;
        }
        batch
    }
}

#[test]
fn replayed_steps_give_the_bits_of_launched_ones() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let base = base(dtype);
        let ticket = |seed, density, of: &str| {
            let ticket =
                random_ticket(&base.manifest, density, seed, |name| name.contains(of)).unwrap();
            Arc::new(base.lay_out(&ticket).unwrap())
        };
        // The second ticket does not touch the first layer.
        let tickets = [ticket(1, 0.05, ""), ticket(2, 0.2, "layers.1.")];
        let blocks = SEQUENCES * POSITIONS.div_ceil(BLOCK);
        let caches = [(); 2].map(|()| base.kv_cache(blocks).unwrap());
        let mut graphs = Graphs::new(base.device());
        let mut rng = StdRng::seed_from_u64(5);
        // Some sequences soon cross into their next segment of positions.
        let mut sequences = Sequences {
            next: std::array::from_fn(|at| if at % 2 == 0 { at } else { 240 + at }),
        };
        for round in 0..90 {
            // Batches with different graph keys: one row, several rows, more than eight segments.
            let rows = [1, 3, 3, SEQUENCES][round / 2 % 4];
            let overlaid = |row: usize| match round % 3 {
                0 => None,
                1 => Some(&tickets[row % 2]),
                _ => Some(&tickets[1]).filter(|_| row > 0),
            };
            let first = rng.random_range(0..SEQUENCES);
            let chosen: Vec<_> = (0..rows)
                .map(|row| ((first + row) % SEQUENCES, overlaid(row)))
                .collect();
            // Chunks of prompts in between. The inputs of the longest need more room, so the
            // buffer is reallocated.
            let tokens = match round {
                46 => 40,
                _ if round % 9 == 8 => 2,
                _ => 1,
            };
            let batch = sequences.step(&chosen, tokens, &mut rng);
            let before = graphs.begin().start();
            let want = base.decoder.forward(&batch, &caches[0]).unwrap().unwrap();
            let got = base
                .decoder
                .forward_captured(&batch, &caches[1], &mut graphs);
            let [want, got] =
                [want, got.unwrap().unwrap()].map(|logits| logits.to_vec2::<f32>().unwrap());
            assert_eq!(want, got, "round {round}");
            let moved = graphs.begin().start() != before;
            assert_eq!(moved, round == 0 || round == 46, "round {round}");
        }
        assert!(graphs.captured() >= 4, "{} graphs", graphs.captured());
    }
}

#[test]
fn a_step_that_cannot_be_captured_still_runs() {
    let base = base(Dtype::F32);
    let mut graphs = Graphs::new(base.device());
    let batch = |position| {
        let mut batch = Batch::default();
        batch.push(&[7], position, &[0], true);
        batch
    };
    let tensor = Tensor::ones((2, 3), candle_core::DType::F32, base.device()).unwrap();
    for position in 0..4 {
        let batch = batch(position);
        let step = base.decoder.prepare(&batch, graphs.begin()).unwrap();
        graphs.upload().unwrap();
        let key = GraphKey::new(vec![tensor.id()], &step.spans, &step.overlays);
        assert!(key.is_some());
        let got = graphs.run(key, || {
            let double = (&tensor * 2.0)?;
            // Fails while the stream is captured.
            tensor.device().synchronize()?;
            &double * 3.0
        });
        assert_eq!(got.unwrap().to_vec2::<f32>().unwrap(), [[6.0; 3]; 2]);
    }
    assert_eq!(graphs.captured(), 0);
    // The failed attempt leaves nothing behind.
    let cache = base.kv_cache(1).unwrap();
    let mut graphs = Graphs::new(base.device());
    for position in 0..4 {
        let batch = batch(position);
        let want = base.decoder.forward(&batch, &cache).unwrap().unwrap();
        let got = base.decoder.forward_captured(&batch, &cache, &mut graphs);
        let [want, got] =
            [want, got.unwrap().unwrap()].map(|logits| logits.to_vec2::<f32>().unwrap());
        assert_eq!(want, got);
    }
    assert_eq!(graphs.captured(), 1);
}

#[test]
fn a_replayed_step_is_checked_as_a_launched_one() {
    let base = base(Dtype::F32);
    let cache = base.kv_cache(2).unwrap();
    let mut graphs = Graphs::new(base.device());
    let mut step = |change: fn(&mut Batch)| {
        let mut batch = Batch::default();
        batch.push(&[7], 3, &[0], true);
        change(&mut batch);
        base.decoder
            .forward_captured(&batch, &cache, &mut graphs)
            .map(|_| ())
    };
    for _ in 0..3 {
        step(|_| ()).unwrap();
    }
    let mut refused = |change, what: &str| {
        let error = step(change).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(
        |batch| batch.tokens[0] = 96,
        "token 96 out of range (0..96)",
    );
    refused(
        |batch| batch.positions[0] = 600,
        "position 600 out of range (0..600)",
    );
    refused(|batch| batch.slots[0] = 32, "slot 32 out of range (0..32)");
    refused(|batch| batch.spans[0].blocks[0] = 2, "does not fit");
    refused(|batch| batch.spans[0].first_position = 16, "does not fit");
    step(|_| ()).unwrap();
}
