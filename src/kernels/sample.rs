//! Token sampling from rows of logits, greedy or random. Non-finite logits count as −∞.

use candle_core::{Result, Tensor};

use super::cpu::element::values;
use super::cpu::parallel::{Scattered, for_each_range};
use super::cuda;

/// How a token is sampled from its row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplingMethod {
    /// The token with the largest logit, the first among equals.
    Greedy,
    /// A random token, drawn from the distribution.
    Random(RandomSampling),
}

/// Random sampling after temperature, min_p, top_k and top_p, applied in this order as in vLLM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomSampling {
    /// Above 0.
    pub temperature: f32,
    /// Minimum probability, relative to that of the likeliest token; 0 keeps all tokens.
    pub min_p: f32,
    /// Number of likeliest tokens to keep; at least 1.
    pub top_k: Option<usize>,
    /// Share of the remaining probability: the fewest likeliest tokens that reach it are kept, and
    /// at least one.
    pub top_p: f32,
    /// Uniform random number in `[0, 1)`: a position in the cumulative distribution of the
    /// remaining tokens in ascending order.
    pub random: f64,
}

impl SamplingMethod {
    /// Samples a token from a row of logits `[vocab]`; `None` if no logit is finite.
    pub fn sample(&self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        Some(match self {
            Self::Greedy => best,
            Self::Random(random) => random.sample(logits, best),
        })
    }
}

/// Samples one token per `(row, method)`, from logits `[rows, vocab]` in f32; `None` if the row has
/// no finite logit. On a GPU, only the tokens are copied to the host. There, weights are summed in
/// units of 2⁻⁴⁰ of the likeliest token's weight, so at a rounding boundary the same `random` may
/// give a different token than on the CPU.
///
/// # Errors
/// A row is out of range.
pub fn sample(logits: &Tensor, methods: &[(u32, SamplingMethod)]) -> Result<Vec<Option<u32>>> {
    if logits.device().is_cuda() {
        return cuda::sample(logits, methods);
    }
    let vocabulary = check(logits, methods)?;
    let logits = values(logits)?;
    let mut tokens = vec![None; methods.len()];
    let out = Scattered::new(&mut tokens);
    for_each_range(methods.len(), 1, |range| {
        for index in range {
            let (row, method) = &methods[index];
            let token = method.sample(&logits[*row as usize * vocabulary..][..vocabulary]);
            // SAFETY: each token belongs to one thread.
            unsafe { out.write(index, token) };
        }
    });
    Ok(tokens)
}

/// Checks the rows, and returns the vocabulary size.
pub(super) fn check(logits: &Tensor, methods: &[(u32, SamplingMethod)]) -> Result<usize> {
    let (rows, vocabulary) = logits.dims2()?;
    match methods.iter().find(|(row, _)| *row as usize >= rows) {
        Some((row, _)) => candle_core::bail!("sample: row {row} out of range ({rows} rows)"),
        None => Ok(vocabulary),
    }
}

/// Token with the largest finite logit, the first among equals; `None` if no logit is finite.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let finite = |logit: f32| {
        if logit.is_finite() {
            logit
        } else {
            f32::NEG_INFINITY
        }
    };
    let max = logits
        .iter()
        .fold(f32::NEG_INFINITY, |max, &x| max.max(finite(x)));
    let index = logits.iter().position(|&x| x == max)?;
    (max > f32::NEG_INFINITY).then_some(index as u32)
}

impl RandomSampling {
    /// Samples a token from a row of logits; `best` is its argmax.
    fn sample(&self, logits: &[f32], best: u32) -> u32 {
        let max = logits[best as usize];
        // Relative to the best token, so that no exponential overflows.
        let weight = |logit: f32| {
            if logit.is_finite() {
                ((logit - max) / self.temperature).exp()
            } else {
                0.0
            }
        };
        let weights = logits.iter().map(|&logit| weight(logit));
        let keep = |weight: f32| weight > 0.0 && weight >= self.min_p;
        let mut kept: Vec<(u32, f32)> = (0u32..)
            .zip(weights)
            .filter(|&(_, weight)| keep(weight))
            .collect();
        if let Some(k) = self.top_k.filter(|&k| k < kept.len()) {
            kept.select_nth_unstable_by(k - 1, heavier);
            kept.truncate(k);
        }
        if self.top_p < 1.0 {
            keep_top_p(&mut kept, self.top_p);
        }
        // A fixed order, so that a seed gives the same token however the partial sort left the
        // rest.
        kept.sort_unstable_by_key(|&(token, _)| token);
        let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let mut left = self.random * total;
        for &(token, weight) in &kept {
            left -= f64::from(weight);
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a remainder.
        kept.last().map_or(best, |&(token, _)| token)
    }
}

/// Order by descending weight, then by ascending token.
pub fn heavier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest heaviest tokens whose weights sum to at least `top_p` of the total, and at
/// least one.
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let wanted = total * f64::from(top_p);
    // Usually a few tokens suffice, so sort as few as possible.
    let mut sorted = 64;
    loop {
        sorted = sorted.min(kept.len());
        if sorted < kept.len() {
            kept.select_nth_unstable_by(sorted, heavier);
        }
        kept[..sorted].sort_unstable_by(heavier);
        let mut sum = 0.0;
        let reach = kept[..sorted].iter().position(|&(_, weight)| {
            sum += f64::from(weight);
            sum >= wanted
        });
        match reach {
            Some(last) => return kept.truncate(last + 1),
            None if sorted == kept.len() => return,
            None => sorted *= 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greedy_sampling_takes_the_first_of_the_largest_finite_logits() {
        let rows = [
            [1.0, 3.0, 2.0, 3.0],
            [f32::NAN, f32::INFINITY, -5.0, f32::NEG_INFINITY],
            [f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY],
        ];
        let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
        let greedy = |rows: &[u32]| {
            let methods = rows.iter().map(|&row| (row, SamplingMethod::Greedy));
            sample(&logits, &methods.collect::<Vec<_>>())
        };
        assert_eq!(greedy(&[0, 1, 2]).unwrap(), [Some(1), Some(2), None]);
        assert_eq!(greedy(&[2, 0]).unwrap(), [None, Some(1)]);
        assert!(greedy(&[3]).is_err());
    }

    #[test]
    fn random_sampling_walks_the_tokens_in_ascending_order() {
        // Weights 1, 1/2, 1/4, 0, 1/4.
        let logits = [0f32, -2f32.ln(), -4f32.ln(), f32::NAN, -4f32.ln()];
        let sampled = |random, change: fn(&mut RandomSampling)| {
            let mut method = RandomSampling {
                temperature: 1.0,
                min_p: 0.0,
                top_k: None,
                top_p: 1.0,
                random,
            };
            change(&mut method);
            SamplingMethod::Random(method).sample(&logits).unwrap()
        };
        let all = |change| [0.0, 0.49, 0.51, 0.74, 0.76, 0.88, 0.99].map(|r| sampled(r, change));
        assert_eq!(all(|_| ()), [0, 0, 1, 1, 2, 4, 4]);
        assert_eq!(all(|d| d.top_k = Some(3)), [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(all(|d| d.top_p = 0.7), [0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(all(|d| d.min_p = 0.6), [0; 7]);
        assert_eq!(all(|d| d.temperature = 1e-3), [0; 7]);
    }

    proptest! {
        /// The partial sort of top_p keeps exactly the tokens that a full sort keeps.
        #[test]
        fn top_p_equals_a_full_sort(
            weights in prop::collection::vec(0.001f32..1.0, 1..700), top_p in 0.0f32..1.0,
        ) {
            let all: Vec<(u32, f32)> = (0u32..).zip(weights).collect();
            let mut want = all.clone();
            want.sort_by(heavier);
            let total: f64 = want.iter().map(|w| f64::from(w.1)).sum();
            let mut sum = 0.0;
            let reach = want.iter().position(|w| {
                sum += f64::from(w.1);
                sum >= total * f64::from(top_p)
            });
            want.truncate(reach.map_or(want.len(), |i| i + 1));
            let mut got = all;
            keep_top_p(&mut got, top_p);
            // Sums in another order may differ in the last place.
            prop_assert!(got.len().abs_diff(want.len()) <= 1);
            let common = got.len().min(want.len());
            prop_assert_eq!(&got[..common], &want[..common]);
        }
    }
}
