use std::time::Duration;

use super::*;

fn work(popularity: Popularity) -> Work {
    Work {
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
        let work = work(popularity);
        let mut counts = [0; 4];
        (0..work.requests).for_each(|i| counts[work.adapter(i, 4).unwrap()] += 1);
        counts
    };
    assert_eq!(counts(Popularity::Uniform), [500; 4]);
    let zipf = counts(Popularity::Zipf);
    // Weights of 1, 1/2, 1/3, 1/4: 960, 480, 320, 240 of 2000.
    for (count, want) in zipf.iter().zip([960i32, 480, 320, 240]) {
        assert!((count - want).abs() < 100, "{zipf:?}");
    }
    assert_eq!(work(Popularity::Zipf).adapter(3, 0), None);
}

#[test]
fn an_open_loop_arrives_at_its_rate() {
    let work = work(Popularity::Uniform);
    let times: Vec<f64> = work.arrivals(50.0).collect();
    assert!(times.is_sorted() && times.len() == 2000);
    // 2000 arrivals at 50 a second take 40 s, give or take 0.9 s.
    assert!((times[1999] - 40.0).abs() < 4.0, "{}", times[1999]);
    assert_eq!(times, work.arrivals(50.0).collect::<Vec<_>>());
}

#[test]
fn percentiles_are_of_the_nearest_rank() {
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
    let error = Words::new(&text).err().unwrap().to_string();
    assert!(error.contains("has 0 lower-case words"), "{error}");
}
