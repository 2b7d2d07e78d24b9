//! Histogram buckets; those of latencies and tokens are vLLM's.

/// Seconds to the first token.
pub(super) const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

/// Seconds between tokens.
pub(super) const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];

/// Seconds of a whole request, or of its wait.
pub(super) const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// Seconds of a swap or a step: from a tiny ticket on a fast machine to a large model on a slow
/// one.
pub(super) const STEP_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Completions per request.
pub(super) const COMPLETIONS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Tokens: 1, 2, 5, 10, 20, 50 … up to `max`.
pub(super) fn tokens(max: usize) -> Vec<f64> {
    std::iter::successors(Some(1_usize), |decade| decade.checked_mul(10))
        .flat_map(|decade| [1, 2, 5].map(|factor| decade.saturating_mul(factor)))
        .take_while(|&bucket| bucket <= max.max(1))
        .map(|bucket| bucket as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_buckets_reach_the_context_length() {
        assert_eq!(tokens(30), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(tokens(0), [1.0]);
    }
}
