//! Tests of the sampler.

use proptest::prelude::*;

use super::*;
use crate::engine::constraint::tests::mask_of;

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..Default::default()
    }
}

fn first(params: SamplingParams, logits: &[f32]) -> u32 {
    let mut sampler = Sampler::new(params, &[], &[]);
    sampler.sample(&mut logits.to_vec(), None).unwrap().token
}

#[test]
fn greedy_takes_the_most_likely_token_and_the_lowest_id_among_equals() {
    assert_eq!(first(greedy(), &[0.0, 3.0, 3.0, 1.0]), 1);
    assert_eq!(first(greedy(), &[f32::NAN, -3.0, f32::INFINITY]), 1);
}

#[test]
fn the_device_samples_only_from_raw_logits() {
    let plain = |sampler: &Sampler| sampler.sampling_method();
    let best = Some(SamplingMethod::Greedy);
    assert_eq!(plain(&Sampler::new(greedy(), &[], &[1])), best);
    let mut sampler = Sampler::new(
        SamplingParams {
            min_tokens: 1,
            ..greedy()
        },
        &[],
        &[1],
    );
    assert_eq!(plain(&sampler), None);
    assert_eq!(sampler.record(3).token, 3);
    assert_eq!(plain(&sampler), best);
    let others: [fn(&mut SamplingParams); 5] = [
        |params| params.logprobs = Some(0),
        |params| params.logit_bias = vec![(1, 1.0)].into(),
        |params| params.repetition_penalty = 1.1,
        |params| params.presence_penalty = 0.1,
        |params| params.frequency_penalty = 0.1,
    ];
    for change in others {
        let mut params = greedy();
        change(&mut params);
        assert_eq!(plain(&Sampler::new(params, &[], &[])), None);
    }
}

#[test]
fn the_device_samples_the_token_that_the_host_would() {
    let params = SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        top_k: Some(6),
        min_p: 0.01,
        seed: Some(3),
        ..Default::default()
    };
    let sampler = || Sampler::new(params.clone(), &[], &[]);
    let (mut device, mut host) = (sampler(), sampler());
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..50 {
        let logits: Vec<f32> = (0..9).map(|i| (i * i + step) as f32 % 7.0 * 0.4).collect();
        let method = device.sampling_method().unwrap();
        let token = method.sample(&logits).unwrap();
        device.record(token);
        assert_eq!(host.sample(&mut logits.clone(), None).unwrap().token, token);
        seen.insert(token);
    }
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn broken_logits_give_no_token() {
    let mut sampler = Sampler::new(greedy(), &[], &[]);
    assert_eq!(sampler.sample(&mut [f32::NAN; 4], None), None);
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 4], None), None);
}

#[test]
fn end_tokens_are_not_sampled_before_min_tokens() {
    let params = SamplingParams {
        min_tokens: 2,
        stop_token_ids: vec![2].into(),
        ..greedy()
    };
    let mut sampler = Sampler::new(params, &[], &[1]);
    let mut next = || {
        sampler
            .sample(&mut [0.0, 5.0, 4.0, 1.0], None)
            .unwrap()
            .token
    };
    assert_eq!([next(), next(), next()], [3, 3, 1]);
    assert!(sampler.ends_with(1) && sampler.ends_with(2) && !sampler.ends_with(3));
    let params = SamplingParams {
        ignore_eos: true,
        ..greedy()
    };
    assert!(!Sampler::new(params, &[], &[1]).ends_with(1));
}

#[test]
fn penalties_push_seen_tokens_down() {
    // The repetition penalty counts the prompt, presence and frequency penalties do not.
    let repetition = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    };
    let mut sampler = Sampler::new(repetition, &[1], &[]);
    assert_eq!(sampler.sample(&mut [3.0, 4.0], None).unwrap().token, 0);
    let presence = SamplingParams {
        presence_penalty: 1.5,
        ..greedy()
    };
    let mut sampler = Sampler::new(presence, &[1], &[]);
    let mut next = || sampler.sample(&mut [3.0, 4.0], None).unwrap().token;
    assert_eq!([next(), next(), next()], [1, 0, 1]);
    let frequency = SamplingParams {
        frequency_penalty: 0.6,
        ..greedy()
    };
    let mut sampler = Sampler::new(frequency, &[], &[]);
    let mut next = || sampler.sample(&mut [3.0, 4.0], None).unwrap().token;
    assert_eq!([next(), next(), next()], [1, 1, 0]);
    let bias = SamplingParams {
        logit_bias: vec![(0, 2.0), (99, 1.0)].into(),
        ..greedy()
    };
    assert_eq!(first(bias, &[3.0, 4.0]), 0);
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let params = SamplingParams {
        logprobs: Some(2),
        logit_bias: vec![(0, 9.0)].into(),
        ..greedy()
    };
    let mut sampler = Sampler::new(params, &[], &[]);
    let sampled = sampler
        .sample(&mut [0.0, 2f32.ln(), 5f32.ln()], None)
        .unwrap();
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!(sampled.token, 0);
    assert!((logprobs.chosen - (1f32 / 8.0).ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
    assert!((logprobs.top[0].1 - (5f32 / 8.0).ln()).abs() < 1e-6);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let mut sampler = Sampler::new(
        SamplingParams {
            seed: Some(1),
            ..Default::default()
        },
        &[],
        &[],
    );
    let logits: Vec<f32> = [0.5f32, 0.3, 0.2].map(f32::ln).to_vec();
    let mut counts = [0; 3];
    for _ in 0..10_000 {
        counts[sampler.sample(&mut logits.clone(), None).unwrap().token as usize] += 1;
    }
    for (count, want) in counts.iter().zip([5000i32, 3000, 2000]) {
        assert!((count - want).abs() < 200, "{counts:?}");
    }
}

/// Tokens that `params` can sample, found by 2,000 draws.
fn reachable(params: SamplingParams, logits: &[f32]) -> HashSet<u32> {
    let mut sampler = Sampler::new(
        SamplingParams {
            seed: Some(7),
            ..params
        },
        &[],
        &[],
    );
    (0..2000)
        .map(|_| sampler.sample(&mut logits.to_vec(), None).unwrap().token)
        .collect()
}

#[test]
fn each_filter_keeps_the_tokens_of_its_definition() {
    let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln).to_vec();
    let set = |ids: &[u32]| ids.iter().copied().collect::<HashSet<_>>();
    let reach = |params| reachable(params, &logits);
    let params = SamplingParams::default;
    assert_eq!(reach(params()), set(&[0, 1, 2, 3]));
    assert_eq!(
        reach(SamplingParams {
            top_k: Some(2),
            ..params()
        }),
        set(&[1, 3])
    );
    assert_eq!(
        reach(SamplingParams {
            top_p: 0.6,
            ..params()
        }),
        set(&[1, 3])
    );
    assert_eq!(
        reach(SamplingParams {
            top_p: 0.01,
            ..params()
        }),
        set(&[1])
    );
    assert_eq!(
        reach(SamplingParams {
            min_p: 0.45,
            ..params()
        }),
        set(&[1, 2, 3])
    );
    assert_eq!(
        reach(SamplingParams {
            temperature: 0.01,
            ..params()
        }),
        set(&[1])
    );
}

proptest! {
    #[test]
    fn same_seed_same_tokens(
        seed in any::<u64>(), logits in prop::collection::vec(-4.0f32..4.0, 2..200),
    ) {
        let params = SamplingParams {
            seed: Some(seed), top_p: 0.9, top_k: Some(50), ..Default::default()
        };
        let run = || {
            let mut sampler = Sampler::new(params.clone(), &[], &[]);
            let next = |_| sampler.sample(&mut logits.clone(), None).unwrap().token;
            (0..20).map(next).collect::<Vec<u32>>()
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_constraint_masks_the_logits_but_not_the_log_probabilities() {
    let params = SamplingParams {
        logprobs: Some(1),
        ..greedy()
    };
    let mut sampler = Sampler::constrained(params, &[], &[4]);
    assert_eq!(sampler.sampling_method(), None);
    let allowed = sampler.allowed(mask_of(&[0, 2], false));
    let mut logits = [0.0, 5f32.ln(), 2f32.ln(), 0.0, 0.0];
    let sampled = sampler.sample(&mut logits, Some(&allowed)).unwrap();
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!((sampled.token, logprobs.top[0].0), (2, 1));
    assert!((logprobs.chosen - 0.2f32.ln()).abs() < 1e-6);
    let nothing = sampler.allowed(mask_of(&[], false));
    assert_eq!(sampler.sample(&mut [1.0; 5], Some(&nothing)), None);
}

#[test]
fn a_constraint_overrules_min_tokens_and_ignored_ends_if_only_the_end_is_left() {
    let sampler = |change: fn(&mut SamplingParams)| {
        let mut params = greedy();
        change(&mut params);
        Sampler::constrained(params, &[], &[4])
    };
    let plain = sampler(|_| ());
    assert_eq!(plain.allowed(mask_of(&[1], false)), mask_of(&[1], false));
    assert_eq!(plain.allowed(mask_of(&[1], true)), mask_of(&[1, 4], true));
    let others: [fn(&mut SamplingParams); 2] = [
        |params| params.ignore_eos = true,
        |params| {
            params.min_tokens = 1;
            params.stop_token_ids = vec![3].into();
        },
    ];
    for change in others {
        let later = sampler(change);
        assert_eq!(later.allowed(mask_of(&[1], true)), mask_of(&[1], true));
        assert_eq!(later.allowed(mask_of(&[], true)), mask_of(&[4], true));
        assert!(later.ends_with(4));
    }
    let allowed = sampler(others[1]).allowed(mask_of(&[1, 3], false));
    assert_eq!(allowed, mask_of(&[1], false));
}
