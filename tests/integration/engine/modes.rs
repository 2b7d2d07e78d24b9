//! Tickets applied and overlaid: the same answers in any batch and any mix of the two modes.

use std::io::Write as _;
use std::time::Instant;

use tombola::engine::{
    Costs, EngineConfig, Output, OutputStream, PerTicket, Request, SamplingParams, TicketMode,
    measure_costs,
};
use tombola::kernels::step::graphs::Graphs;
use tombola::model::Dtype;
use tombola::registry::{Condition, Lease, Name, Registry};
use tombola::ticket::TensorDelta;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{
    Running, base_is_as_loaded, config, drain, eventually, leases, near_in_bf16, overlay_config,
    registry, requests, same_tokens, start, tokens,
};

#[test]
fn tickets_in_one_batch_give_what_each_gives_alone() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let engine = same_tokens(dtype, &overlay_config(), 40);
        base_is_as_loaded(&engine);
        assert_eq!(engine.count("ticket_swaps_total"), 0);
        assert_eq!(engine.count("engine_steps_total{mode=\"apply\"}"), 0);
        // Several tickets per step: this is the number of nonzeros of one.
        let one = leases(1).0[0].ticket().nonzeros() as u64;
        let steps = engine.count("engine_steps_total{mode=\"overlay\"}");
        assert!(engine.count("overlay_nonzeros_total") > steps * one);
    }
}

/// Costs that make the engine apply tickets for prompts and overlay them for answers, unless a
/// ticket is alone. Both modes alternate on any machine.
fn flapping() -> Costs {
    let seconds = |fixed| PerTicket {
        fixed,
        per_nonzero: 0.0,
    };
    Costs::new(
        vec![(1, 1.0e-3), (24, 2.0e-3)],
        vec![(1, seconds(0.5e-3)), (24, seconds(12e-3))],
        seconds(3e-3),
        seconds(2e-3),
        seconds(0.0),
    )
}

fn auto(costs: Option<Costs>) -> EngineConfig {
    EngineConfig {
        ticket_mode: TicketMode::Auto,
        costs,
        ..config()
    }
}

/// Greedy requests for all log-probabilities, under each ticket and under none.
fn greedy_requests(count: usize, leases: &[Lease]) -> Vec<Request> {
    let mut requests = requests(count, leases);
    for request in &mut requests {
        request.scored.push(1..request.prompt.len());
        request.params = SamplingParams {
            temperature: 0.0,
            logprobs: Some(2),
            max_tokens: request.params.max_tokens,
            ignore_eos: true,
            ..Default::default()
        };
    }
    requests
}

/// Asserts that two runs agree in their log-probabilities up to `tolerance`, to the end or to the
/// first differing token, where the two best tokens must be as close.
fn assert_agree(want: &[Output], got: &[Output], tolerance: f32) {
    let near = |a: f32, b: f32| assert!((a - b).abs() < tolerance, "{a} {b}");
    let prompts = [want, got].map(|outputs| outputs[0].prompt_logprobs.clone().unwrap_or_default());
    assert_eq!(prompts[0].len(), prompts[1].len());
    std::iter::zip(&prompts[0], &prompts[1]).for_each(|(a, b)| near(a.chosen, b.chosen));
    assert_eq!(want.len(), got.len());
    for (want, got) in want.iter().zip(got) {
        let tops = [want, got].map(|output| output.logprobs.as_ref().unwrap().top.clone());
        near(tops[0][0].1, tops[1][0].1);
        if want.token != got.token {
            near(tops[0][0].1, tops[0][1].1);
            return;
        }
    }
}

#[test]
fn steps_of_both_modes_agree_with_either_in_any_interleaving() {
    let (leases, _folder) = leases(3);
    for (dtype, tolerance) in [(Dtype::F32, 1e-4), (Dtype::Bf16, near_in_bf16())] {
        let run_alone = |config: &EngineConfig| {
            let engine = start(dtype, config);
            let run = |request| drain(&mut engine.handle.submit(request).unwrap());
            let requests = greedy_requests(40, &leases).into_iter();
            requests.map(run).collect::<Vec<_>>()
        };
        let applied = run_alone(&config());
        for costs in [Some(flapping()), None] {
            let forced = costs.is_some();
            let engine = start(dtype, &auto(costs));
            let mut streams: Vec<(OutputStream, Vec<Output>)> = Vec::new();
            for (at, request) in greedy_requests(40, &leases).into_iter().enumerate() {
                // Some arrive while others run, and some find the engine nearly idle.
                if let Some((last, got)) = streams.last_mut().filter(|_| at % 8 == 7) {
                    got.push(last.blocking_recv().unwrap().unwrap());
                }
                streams.push((engine.handle.submit(request).unwrap(), Vec::new()));
            }
            for (want, (stream, got)) in applied.iter().zip(&mut streams) {
                got.extend(drain(stream));
                assert_agree(want, got, tolerance);
            }
            base_is_as_loaded(&engine);
            if forced {
                let steps = ["apply", "overlay"].map(|mode| {
                    let series = format!("engine_steps_total{{mode=\"{mode}\"}}");
                    engine.count(&series)
                });
                let swaps = engine.count("ticket_swaps_total");
                assert!(
                    steps[0] > 10 && steps[1] > 10 && swaps > 6,
                    "{steps:?} {swaps}"
                );
            }
        }
    }
}

#[test]
fn measuring_costs_leaves_the_base_as_loaded_and_applies_no_ticket() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut base = load_tiny(LLAMA, dtype);
        let mut graphs = Graphs::new(base.device());
        let start = Instant::now();
        let measured = measure_costs(&mut base, &mut graphs).unwrap();
        assert!(measured.took <= start.elapsed());
        assert_eq!(base.resident.applied(), None);
        assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
        let costs = measured.costs;
        assert!(
            costs.step(1) > 0.0 && costs.step(512) >= costs.step(1),
            "{costs}"
        );
        assert!(
            costs.swap(10_000) > 0.0 && costs.overlay(10_000, 16) > 0.0,
            "{costs}"
        );
    }
}

/// A ticket without requests gets no layout; requested tickets get one per content, under any
/// alias.
#[test]
fn aliases_of_one_content_share_a_group_and_a_layout() {
    let (registry, folder) = registry(2, 0.5, 1 << 24);
    let content = registry.get(None, "t0").unwrap();
    let bytes = std::fs::read(folder.path().join("t0.safetensors")).unwrap();
    publish(&registry, "twin", &bytes);
    assert_eq!(
        registry.get(None, "twin").unwrap().digest(),
        content.digest()
    );
    let engine = start(Dtype::F32, &overlay_config());
    let names = ["t0", "twin", "twin", "t0"];
    let leases = names.map(|name| registry.lease(None, name).unwrap());
    let streams = leases.map(|lease| engine.handle.submit(endless(Some(lease), 40)).unwrap());
    let answers = streams.map(|mut stream| tokens(&mut stream));
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(engine.count("overlay_build_seconds_count"), 1);
    let steps = engine.count("engine_steps_total{mode=\"overlay\"}");
    let nonzeros = content.nonzeros() as u64;
    assert_eq!(engine.count("overlay_nonzeros_total"), steps * nonzeros);
}

#[test]
fn a_ticket_is_replaced_and_deleted_while_it_is_overlaid() {
    let (registry, folder) = registry(2, 0.5, 1 << 24);
    let other = std::fs::read(folder.path().join("t1.safetensors")).unwrap();
    let engine = start(Dtype::F32, &overlay_config());
    let lease = |name| registry.lease(None, name).unwrap();
    let want = {
        let mut alone = engine
            .handle
            .submit(endless(Some(lease("t0")), 200))
            .unwrap();
        tokens(&mut alone)
    };
    // This sequence outlives the test, so that the engine is never idle.
    let base = engine.handle.submit(endless(None, 400)).unwrap();
    let mut old = engine
        .handle
        .submit(endless(Some(lease("t0")), 200))
        .unwrap();
    let first = old.blocking_recv().unwrap().unwrap().token;
    publish(&registry, "t0", &other);
    let mut new = engine
        .handle
        .submit(endless(Some(lease("t0")), 20))
        .unwrap();
    let second = old.blocking_recv().unwrap().unwrap().token;
    registry
        .remove(Name::public("t0"), &Condition::default())
        .unwrap();
    let rest = tokens(&mut old);
    assert_eq!([&[first, second], &rest[..]].concat(), want);
    let by_name = tokens(&mut new);
    let mut same = engine
        .handle
        .submit(endless(Some(lease("t1")), 20))
        .unwrap();
    assert_eq!(by_name, tokens(&mut same));
    assert!(registry.lease(None, "t0").is_err());
    drop(base);
    base_is_as_loaded(&engine);
    eventually("the old content leaves the memory", || {
        registry.resident() == 1
    });
}

/// A greedy request for exactly `max_tokens` tokens.
fn endless(ticket: Option<Lease>, max_tokens: usize) -> Request {
    Request {
        prompt: vec![5, 6, 7, 8],
        params: SamplingParams {
            temperature: 0.0,
            max_tokens,
            ignore_eos: true,
            ..Default::default()
        },
        ticket,
        ..Request::default()
    }
}

fn publish(registry: &Registry, alias: &str, bytes: &[u8]) {
    let mut file = registry.stage().unwrap();
    file.write_all(bytes).unwrap();
    registry
        .publish(Name::public(alias), file, &Condition::upsert())
        .unwrap();
}

/// Log-probabilities of a long prompt under a ticket.
fn scores(engine: &Running, ticket: &Lease) -> Vec<f32> {
    let prompt: Vec<u32> = (0..60).map(|i| 3 + i * 37 % 250).collect();
    let request = Request {
        scored: vec![1..30, 30..prompt.len()],
        prompt,
        params: SamplingParams {
            max_tokens: 1,
            ..Default::default()
        },
        ticket: Some(ticket.clone()),
        ..Request::default()
    };
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    let scored = outputs[0].prompt_logprobs.as_ref();
    let scored = scored.expect("they were requested").iter();
    scored.map(|scored| scored.chosen).collect()
}

#[test]
fn the_memory_of_a_ticket_covers_its_overlay() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let (leases, _folder) = leases(1);
    let ticket = leases[0].ticket();
    let made = base.lay_out(ticket).unwrap();
    assert_eq!(made.nonzeros(), ticket.nonzeros());
    let takes = ticket.resident_bytes() + made.bytes();
    let counted = base
        .ticket_memory(true)
        .bytes_of(ticket, &base.manifest)
        .total();
    assert!(takes <= counted, "{takes} of {counted} bytes");
    let other = load_tiny("qwen2", Dtype::F32);
    let error = other.lay_out(ticket).unwrap_err().to_string();
    let fingerprint = other.manifest.fingerprint.to_string();
    assert!(error.contains(&fingerprint), "{error}");
    // Besides the offsets, less than 16 bytes per nonzero and 4 per row.
    let rows: usize = ticket.tensors().values().map(TensorDelta::rows).sum();
    let bound = 16 * ticket.nonzeros() + 4 * rows + 100 * ticket.tensors().len();
    assert!(counted <= bound, "{counted} of {bound} bytes");
}

#[test]
fn overlaid_and_applied_tickets_agree() {
    let (leases, _folder) = leases(2);
    for (dtype, tolerance) in [(Dtype::F32, 1e-4), (Dtype::Bf16, near_in_bf16())] {
        let [applied, overlaid] = [&config(), &overlay_config()].map(|config| {
            let engine = start(dtype, config);
            [0, 1].map(|ticket| scores(&engine, &leases[ticket]))
        });
        for ticket in [0, 1] {
            let [own, others] = [ticket, 1 - ticket].map(|reference| {
                let pairs = std::iter::zip(&overlaid[ticket], &applied[reference]);
                pairs.map(|(a, b)| (a - b).abs()).collect::<Vec<_>>()
            });
            let worst = own.iter().copied().fold(0.0, f32::max);
            assert!(worst < tolerance, "{dtype}: {worst}");
            let [own, others] = [own, others].map(|off| off.iter().sum::<f32>());
            assert!(
                40.0 * own < others,
                "{dtype}: {own}, and the other's {others}"
            );
        }
    }
}

#[test]
fn an_idle_engine_holds_no_ticket() {
    for mode in TicketMode::ALL {
        idle_engine_holds_no_ticket(mode);
    }
}

fn idle_engine_holds_no_ticket(ticket_mode: TicketMode) {
    let one = {
        let (registry, _folder) = registry(1, 0.5, 1 << 24);
        registry.get(None, "t0").unwrap().resident_bytes()
    };
    // Memory for one of two tickets.
    let (registry, _folder) = registry(2, 0.5, one + one / 2);
    let engine = start(
        Dtype::F32,
        &EngineConfig {
            ticket_mode,
            ..config()
        },
    );
    for turn in 0..4 {
        let mut lease = None;
        eventually("memory for the other ticket", || {
            lease = registry.lease(None, &format!("t{}", turn % 2)).ok();
            lease.is_some()
        });
        let request = Request {
            prompt: vec![5, 6, 7],
            params: SamplingParams::default(),
            ticket: lease,
            ..Request::default()
        };
        assert!(!tokens(&mut engine.handle.submit(request).unwrap()).is_empty());
    }
}
