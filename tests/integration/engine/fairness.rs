//! Fairness in the running engine: between tenants, and by priority within one.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tombola::engine::{EngineConfig, OutputStream, Request, SamplingParams};
use tombola::model::Dtype;

use crate::support::engine::{Running, config, start, tokens};

/// An engine that runs one sequence at a time.
fn one_at_a_time() -> Running {
    let config = EngineConfig {
        max_num_seqs: 1,
        ..config()
    };
    start(Dtype::F32, &config)
}

/// Submits a request for ten tokens.
fn submit(engine: &Running, tenant: &str, priority: i32) -> OutputStream {
    let request = Request {
        prompt: vec![5, 6, 7, 8],
        params: SamplingParams {
            max_tokens: 10,
            ignore_eos: true,
            ..Default::default()
        },
        tenant: Some(tenant.parse().unwrap()),
        priority,
        ..Request::default()
    };
    engine.handle.submit(request).unwrap()
}

/// Whether all outputs of a stream are there. Takes them.
fn has_ended(stream: &mut OutputStream) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match pin!(stream.recv()).poll(&mut context) {
            Poll::Ready(Some(output)) => drop(output.unwrap()),
            Poll::Ready(None) => return true,
            Poll::Pending => return false,
        }
    }
}

#[test]
fn a_tenants_requests_run_by_priority() {
    let engine = one_at_a_time();
    let mut first = submit(&engine, "north", 0);
    first.blocking_recv().unwrap().unwrap();
    let mut streams: Vec<_> = [3, -2, 1]
        .into_iter()
        .map(|priority| submit(&engine, "north", priority))
        .collect();
    // The least important one begins when the others have ended.
    streams[0].blocking_recv().unwrap().unwrap();
    assert!(streams[1..].iter_mut().all(has_ended));
    streams[2] = submit(&engine, "north", 9);
    streams[2].blocking_recv().unwrap().unwrap();
    assert!(has_ended(&mut streams[0]));
}

#[test]
fn a_flood_of_one_tenant_delays_another_by_no_more_than_its_share() {
    let engine = one_at_a_time();
    let mut flood: Vec<_> = (0..40).map(|_| submit(&engine, "north", 0)).collect();
    flood[0].blocking_recv().unwrap().unwrap();
    for _ in 0..5 {
        tokens(&mut submit(&engine, "south", 0));
    }
    let ended = flood.iter_mut().map(has_ended).filter(|ended| *ended);
    let ended = ended.count();
    // The flood had its turns too: about as many requests as the other tenant.
    assert!((1..=20).contains(&ended), "{ended} of 40");
}
