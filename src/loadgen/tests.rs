use std::time::Duration;

use super::*;

fn workload(popularity: Popularity) -> Workload {
    Workload {
        requests: 2000,
        prompt_tokens: 64,
        max_tokens: 64,
        arrivals: Arrivals::Closed { concurrency: 4 },
        popularity,
        warmup: 1,
        seed: 7,
    }
}

#[test]
fn adapters_are_chosen_by_their_popularity() {
    let counts = |popularity| {
        let workload = workload(popularity);
        let mut counts = [0; 4];
        (0..workload.requests).for_each(|i| counts[workload.adapter(i, 4).unwrap()] += 1);
        counts
    };
    assert_eq!(counts(Popularity::Uniform), [500; 4]);
    let zipf = counts(Popularity::Zipf);
    // Weights of 1, 1/2, 1/3, 1/4: 960, 480, 320, 240 of 2,000.
    for (count, want) in zipf.iter().zip([960i32, 480, 320, 240]) {
        assert!((count - want).abs() < 100, "{zipf:?}");
    }
    assert_eq!(workload(Popularity::Zipf).adapter(3, 0), None);
}

#[test]
fn an_open_loop_arrives_at_its_rate() {
    let workload = workload(Popularity::Uniform);
    let times: Vec<f64> = workload.arrivals(50.0).collect();
    assert!(times.is_sorted() && times.len() == 2000);
    // 2,000 arrivals at 50 per second take 40 s, with a standard deviation of 0.9 s.
    assert!((times[1999] - 40.0).abs() < 4.0, "{}", times[1999]);
    assert_eq!(times, workload.arrivals(50.0).collect::<Vec<_>>());
}

#[test]
fn percentiles_use_the_nearest_rank() {
    let times = (1..=200).rev().map(Duration::from_millis);
    let all = Percentiles::of(times).unwrap();
    assert_eq!((all.p50, all.p95, all.p99), (100.0, 190.0, 198.0));
    let one = Percentiles::of(std::iter::once(Duration::from_millis(3))).unwrap();
    assert_eq!((one.p50, one.p99), (3.0, 3.0));
    assert_eq!(Percentiles::of(std::iter::empty()), None);
}

#[test]
fn a_tokenizer_without_words_is_refused() {
    let text = crate::text::tests::chat_text("");
    let error = PromptWords::new(&text).err().unwrap().to_string();
    assert!(error.contains("has 0 lower-case words"), "{error}");
}
