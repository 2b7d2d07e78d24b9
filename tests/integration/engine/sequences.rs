//! Single sequences, from the first token to the finish reason.

use tombola::engine::{FinishReason, OutputStream, Request, SamplingParams, SequenceError};
use tombola::model::Dtype;
use tombola::registry::Lease;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{
    config, drain, eventually, leases, overlay_config, registry, start, tokens,
};
use crate::support::player::Player;

#[test]
fn greedy_tokens_are_the_decoders() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let prompt = vec![5, 6, 7, 8];
    let want = Player::new(&base, 1, 40).greedy(&prompt, 12);
    let engine = start(Dtype::F32, &config());
    let params = SamplingParams {
        max_tokens: 12,
        temperature: 0.0,
        ignore_eos: true,
        logprobs: Some(2),
        ..Default::default()
    };
    let request = Request {
        prompt,
        params,
        ..Request::default()
    };
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    assert_eq!(outputs.iter().map(|o| o.token).collect::<Vec<_>>(), want);
    assert_eq!(outputs[11].finish, Some(FinishReason::Length));
    for output in outputs {
        let logprobs = output.logprobs.unwrap();
        assert_eq!(logprobs.top[0], (output.token, logprobs.chosen));
        assert!(logprobs.top[1].1 <= logprobs.chosen && logprobs.chosen < 0.0);
    }
}

#[test]
fn a_stop_token_ends_the_sequence_and_is_its_last() {
    let engine = start(Dtype::F32, &config());
    let run = |params| {
        let request = Request {
            prompt: vec![5, 6, 7, 8],
            params,
            ..Request::default()
        };
        drain(&mut engine.handle.submit(request).unwrap())
    };
    let greedy = SamplingParams {
        temperature: 0.0,
        ignore_eos: true,
        max_tokens: 12,
        ..Default::default()
    };
    let free = run(greedy.clone());
    let stop = free[5].token;
    let at = free.iter().position(|output| output.token == stop).unwrap();
    let outputs = run(SamplingParams {
        stop_token_ids: vec![stop].into(),
        ..greedy.clone()
    });
    assert_eq!(outputs.len(), at + 1);
    assert_eq!(outputs[at].token, stop);
    assert_eq!(outputs[at].finish, Some(FinishReason::Stop));
    let later = run(SamplingParams {
        stop_token_ids: vec![stop].into(),
        min_tokens: at + 2,
        ..greedy
    });
    assert!(later.len() >= at + 2 && later[at].token != stop);
}

#[test]
fn the_context_bounds_a_sequence() {
    let engine = start(Dtype::F32, &config());
    let limit = engine.handle.limits().max_model_len;
    let params = SamplingParams {
        max_tokens: 10_000,
        ignore_eos: true,
        ..Default::default()
    };
    let request = Request {
        prompt: vec![9; limit - 3],
        params,
        ..Request::default()
    };
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    assert_eq!(outputs.len(), 3);
    assert_eq!(outputs[2].finish, Some(FinishReason::Length));
}

#[test]
fn a_dropped_stream_is_gone_after_a_step_and_frees_its_blocks() {
    let engine = start(Dtype::F32, &config());
    let endless = || Request {
        prompt: vec![3; 20],
        params: SamplingParams {
            max_tokens: 480,
            ignore_eos: true,
            ..Default::default()
        },
        ..Request::default()
    };
    let streams = (0..5).map(|_| engine.handle.submit(endless()).unwrap());
    let mut streams: Vec<OutputStream> = streams.collect();
    streams[0].blocking_recv().unwrap().unwrap();
    drop(streams);
    let steps = || engine.metrics.engine.num_steps();
    let at_drop = steps();
    eventually("the engine is idle", || {
        engine.metrics.engine.requests_running.get() == 0
            && engine.metrics.engine.kv_cache_usage.get() == 0.0
    });
    // At most the step in progress.
    assert!(steps() - at_drop <= 1, "{} steps", steps() - at_drop);
}

#[test]
fn a_ticket_that_breaks_the_model_ends_its_own_sequences_only() {
    let (registry, _folder) = registry(1, 1e38, 1 << 24);
    let engine = start(Dtype::F32, &config());
    let request = |ticket| Request {
        prompt: vec![5, 6, 7],
        params: SamplingParams {
            temperature: 0.0,
            ..Default::default()
        },
        ticket,
        ..Request::default()
    };
    let before = tokens(&mut engine.handle.submit(request(None)).unwrap());
    let broken = request(Some(registry.lease(None, "t0").unwrap()));
    let mut stream = engine.handle.submit(broken).unwrap();
    assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::NotFinite)));
    assert_eq!(stream.blocking_recv(), None);
    let after = tokens(&mut engine.handle.submit(request(None)).unwrap());
    assert_eq!(after, before);
}

#[test]
fn a_ticket_that_breaks_the_model_leaves_its_batch_alone() {
    let (registry, _folder) = registry(2, 1e38, 1 << 24);
    let (good, _good_folder) = leases(1);
    let engine = start(Dtype::F32, &overlay_config());
    let request = |ticket: Option<&Lease>| Request {
        prompt: vec![5, 6, 7],
        params: SamplingParams {
            temperature: 0.0,
            max_tokens: 40,
            ignore_eos: true,
            ..Default::default()
        },
        ticket: ticket.cloned(),
        ..Request::default()
    };
    let alone = [None, Some(&good[0])];
    let alone = alone.map(|lease| tokens(&mut engine.handle.submit(request(lease)).unwrap()));
    let broken = registry.lease(None, "t0").unwrap();
    let company = [None, Some(&broken), Some(&good[0]), Some(&broken)];
    let streams = company.map(|lease| engine.handle.submit(request(lease)).unwrap());
    let [mut base, mut first, mut fine, mut second] = streams;
    for stream in [&mut first, &mut second] {
        assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::NotFinite)));
        assert_eq!(stream.blocking_recv(), None);
    }
    assert_eq!([tokens(&mut base), tokens(&mut fine)], alone);
}
