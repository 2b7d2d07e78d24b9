//! Batches: neighbours change no token, preemption loses none, impossible limits are refused.

use std::sync::Arc;
use std::time::Duration;

use tombola::engine::{EngineConfig, Request, SamplingParams, spawn};
use tombola::metrics::Metrics;
use tombola::model::{BLOCK, Dtype};

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{base_is_as_loaded, config, drain, same_tokens, start};

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

/// A prompt token outside the vocabulary, which the server always rejects, makes a step panic. The
/// test runs it in a child process, which has to end.
#[test]
fn a_panic_in_the_engine_ends_the_process() {
    if std::env::var_os("TOMBOLA_TEST_PANIC").is_some() {
        let engine = start(Dtype::F32, &config());
        let params = SamplingParams::default();
        let request = Request {
            prompt: vec![999_999],
            params,
            ..Request::default()
        };
        drain(&mut engine.handle.submit(request).unwrap());
        std::thread::sleep(Duration::from_secs(20));
        std::process::exit(0);
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "engine::batches::a_panic_in_the_engine_ends_the_process",
            "--nocapture",
        ])
        .env("TOMBOLA_TEST_PANIC", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{text}");
    assert!(
        text.contains("a step failed") && text.contains("exiting"),
        "{text}"
    );
}
