//! Batches: neighbours change no token, preemption loses none, impossible limits are refused.

use std::sync::Arc;

use tombola::engine::{EngineConfig, spawn};
use tombola::metrics::Metrics;
use tombola::model::{BLOCK, Dtype};

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{base_is_as_loaded, config, same_tokens};

#[test]
fn neighbours_change_no_token_and_swaps_leave_the_base_as_loaded() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let engine = same_tokens(dtype, &config(), 40);
        base_is_as_loaded(&engine);
        assert!(engine.count("ticket_swaps_total") >= 4);
        assert_eq!(engine.count("engine_steps_total{mode=\"overlay\"}"), 0);
        assert!(engine.count("engine_steps_total{mode=\"apply\"}") > 0);
    }
}

#[test]
fn preempted_sequences_give_the_same_tokens() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let tight = EngineConfig {
        kv_cache_bytes: 10 * base.block_bytes(),
        ..config()
    };
    let engine = same_tokens(Dtype::F32, &tight, 30);
    assert!(
        engine.metrics.engine.preemptions.get() > 0,
        "nothing was preempted"
    );
    assert_eq!(engine.handle.limits().max_model_len, 10 * BLOCK);
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let small = EngineConfig {
        max_num_batched_tokens: 4,
        ..config()
    };
    let refusal = |config: &EngineConfig| {
        let metrics = Arc::new(Metrics::new(512).unwrap());
        let spawned = spawn(load_tiny(LLAMA, Dtype::F32), config, metrics);
        spawned.err().expect("a refusal").to_string()
    };
    let error = refusal(&small);
    assert!(error.contains("4 tokens per step"), "{error}");
    let tiny = EngineConfig {
        kv_cache_bytes: 100,
        ..config()
    };
    let error = refusal(&tiny);
    assert!(error.contains("100 bytes"), "{error}");
}
