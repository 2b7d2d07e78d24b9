//! Failing steps, the verification of the base under load, and what is left when all is done.

use std::thread;

use tombola::engine::{EngineConfig, OutputStream, Request, SamplingParams, SequenceError};
use tombola::model::Dtype;
use tombola::registry::Lease;

use crate::support::engine::{
    Running, base_is_as_loaded, config, eventually, foreign_lease, leases, overlay_config, start,
    tokens,
};

fn request(prompt: Vec<u32>, ticket: Option<&Lease>, max_tokens: usize) -> Request {
    Request {
        prompt,
        params: SamplingParams {
            temperature: 0.0,
            max_tokens,
            ignore_eos: true,
            ..Default::default()
        },
        ticket: ticket.cloned(),
        ..Request::default()
    }
}

fn submit(engine: &Running, request: Request) -> OutputStream {
    engine.handle.submit(request).unwrap()
}

/// Asserts that nothing is left of any request.
fn everything_is_free(engine: &Running) {
    let gauges = &engine.metrics.engine;
    eventually("everything is free", || {
        let counts =
            [&gauges.requests_running, &gauges.requests_waiting].map(prometheus::IntGauge::get);
        counts == [0, 0] && gauges.kv_cache_usage.get() == 0.0 && engine.handle.admitted() == 0
    });
}

#[test]
fn a_ticket_of_another_base_ends_its_own_sequences_and_the_engine_lives() {
    let (foreign, _folder) = foreign_lease();
    let (own, _own_folder) = leases(1);
    for config in [config(), overlay_config()] {
        let engine = start(Dtype::F32, &config);
        let alone = [None, Some(&own[0])]
            .map(|lease| tokens(&mut submit(&engine, request(vec![5, 6, 7], lease, 30))));
        let company = [None, Some(&foreign), Some(&own[0]), Some(&foreign)];
        let streams = company.map(|lease| submit(&engine, request(vec![5, 6, 7], lease, 30)));
        let [mut base, mut first, mut ticket, mut second] = streams;
        for stream in [&mut first, &mut second] {
            assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::StepFailed)));
            assert_eq!(stream.blocking_recv(), None);
        }
        assert_eq!([tokens(&mut base), tokens(&mut ticket)], alone);
        assert!(engine.count("failed_steps_total") >= 1);
        base_is_as_loaded(&engine);
        everything_is_free(&engine);
    }
}

#[test]
fn a_step_that_fails_ends_its_sequences_and_the_engine_lives() {
    let (leases, _folder) = leases(1);
    for config in [config(), overlay_config()] {
        let engine = start(Dtype::F32, &config);
        let good = || request(vec![5, 6, 7], Some(&leases[0]), 12);
        let before = tokens(&mut submit(&engine, good()));
        // The server refuses such a token; without it, the embedding's row does not exist.
        let broken = request(vec![5, 1_000_000], Some(&leases[0]), 5);
        let mut stream = submit(&engine, broken);
        assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::StepFailed)));
        assert_eq!(stream.blocking_recv(), None);
        assert_eq!(tokens(&mut submit(&engine, good())), before);
        assert!(engine.handle.is_running());
        base_is_as_loaded(&engine);
        everything_is_free(&engine);
    }
}

#[test]
fn the_base_is_verified_while_sequences_run_and_all_callers_share_the_answer() {
    let (leases, _folder) = leases(2);
    for config in [config(), overlay_config()] {
        let config = EngineConfig {
            kv_cache_bytes: 4 << 20,
            ..config
        };
        let engine = start(Dtype::F32, &config);
        let work = || request(vec![5, 6, 7], Some(&leases[0]), 200);
        let before = tokens(&mut submit(&engine, work()));
        let mut streams: Vec<_> = (0..4).map(|_| submit(&engine, work())).collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| base_is_as_loaded(&engine));
            }
        });
        for stream in &mut streams {
            assert_eq!(tokens(stream), before);
        }
        base_is_as_loaded(&engine);
    }
}

#[test]
fn a_stream_that_nobody_reads_frees_its_place_when_the_engine_is_done() {
    let config = EngineConfig {
        max_num_seqs: 2,
        max_queue: 0,
        ..config()
    };
    let engine = start(Dtype::F32, &config);
    let unread: Vec<_> = (0..2)
        .map(|_| submit(&engine, request(vec![5, 6], None, 20)))
        .collect();
    everything_is_free(&engine);
    assert!(engine.handle.unread_bytes() > 0);
    assert_eq!(
        tokens(&mut submit(&engine, request(vec![5, 6], None, 20))).len(),
        20
    );
    drop(unread);
    assert_eq!(engine.handle.unread_bytes(), 0);
}
