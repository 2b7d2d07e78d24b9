//! From rows of logits to tokens: the likeliest, or drawn. What is no finite number is never chosen.

use candle_core::{Result, Storage, Tensor};

use super::cpu::element::elements;
use super::cpu::parallel::{Scattered, for_each_range};

/// How a token is chosen by its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplingMethod {
    /// The greatest logit, the first among equals.
    Greedy,
    Random(RandomSampling),
}

/// From the distribution that temperature, min_p, top_k and top_p leave, in this order, as vLLM does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomSampling {
    /// Above 0.
    pub temperature: f32,
    /// The least share of the likeliest token's probability that is kept.
    pub min_p: f32,
    /// How many of the likeliest are kept; at least 1.
    pub top_k: Option<usize>,
    /// The likeliest are kept that have this share of the rest together; at least one is.
    pub top_p: f32,
    /// Where in what is left, in the order of the tokens: from 0 to below 1.
    pub random: f64,
}

impl SamplingMethod {
    /// The token by a row of logits `[vocab]`; `None` where none is finite.
    pub fn of(&self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        Some(match self {
            Self::Greedy => best,
            Self::Random(drawing) => drawing.draw(logits, best),
        })
    }
}

/// Tokens by rows of logits `[rows, vocab]` (f32): each choice with its row; `None` where a row has no finite number.
/// Where the logits are on a GPU, the tokens alone are copied from it. (What is drawn there by the same number may be
/// another token where rounding decides: weights are summed in units of 2⁻⁴⁰ of the likeliest's.)
///
/// # Errors
/// There is no such row.
pub fn sample(logits: &Tensor, choices: &[(u32, SamplingMethod)]) -> Result<Vec<Option<u32>>> {
    let (rows, vocabulary) = logits.dims2()?;
    if let Some((row, _)) = choices.iter().find(|(row, _)| *row as usize >= rows) {
        candle_core::bail!("choose: row {row} of {rows}");
    }
    let (storage, layout) = logits.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let logits = elements::<f32>(storage, layout)?;
            let mut tokens = vec![None; choices.len()];
            let out = Scattered::new(&mut tokens);
            for_each_range(choices.len(), 1, |range| {
                for at in range {
                    let (row, choice) = &choices[at];
                    let token = choice.of(&logits[*row as usize * vocabulary..][..vocabulary]);
                    // SAFETY: each is one thread's.
                    unsafe { out.write(at, token) };
                }
            });
            Ok(tokens)
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            let logits = super::cuda::View::new(storage, layout)?;
            // SAFETY: the rows are there (checked).
            unsafe { super::cuda::sample(&storage.device, logits, vocabulary, choices) }
        }
        _ => candle_core::bail!("nothing is chosen on this device"),
    }
}

/// The greatest finite logit of a row, the first among equals; `None` where there is none.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let finite = |logit: f32| {
        if logit.is_finite() {
            logit
        } else {
            f32::NEG_INFINITY
        }
    };
    let most = logits
        .iter()
        .fold(f32::NEG_INFINITY, |most, &x| most.max(finite(x)));
    let at = logits.iter().position(|&x| x == most)?;
    (most > f32::NEG_INFINITY).then_some(at as u32)
}

impl RandomSampling {
    fn draw(&self, logits: &[f32], best: u32) -> u32 {
        let most = logits[best as usize];
        // Relative to the best token, so that no exponential overflows.
        let weight = |logit: f32| match logit.is_finite() {
            true => ((logit - most) / self.temperature).exp(),
            false => 0.0,
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
        // In a fixed order, so that a seed's tokens do not hang on how a partial sort left them.
        kept.sort_unstable_by_key(|&(token, _)| token);
        let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let mut left = self.random * total;
        for &(token, weight) in &kept {
            left -= f64::from(weight);
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a crumb of the total.
        kept.last().map_or(best, |&(token, _)| token)
    }
}

/// Heavier first; among equals the lower token.
pub fn heavier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the heaviest tokens whose weights reach the share `top_p` of the total, at least one.
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let wanted = total * f64::from(top_p);
    // Mostly a few tokens suffice: sort no more than needed.
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
    fn the_first_of_the_greatest_finite_logits_is_taken() {
        let rows = [
            [1.0, 3.0, 2.0, 3.0],
            [f32::NAN, f32::INFINITY, -5.0, f32::NEG_INFINITY],
            [f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY],
        ];
        let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
        let of = |rows: &[u32]| {
            let choices: Vec<_> = rows
                .iter()
                .map(|&row| (row, SamplingMethod::Greedy))
                .collect();
            sample(&logits, &choices)
        };
        assert_eq!(of(&[0, 1, 2]).unwrap(), [Some(1), Some(2), None]);
        assert_eq!(of(&[2, 0]).unwrap(), [None, Some(1)]);
        assert!(of(&[3]).is_err());
    }

    #[test]
    fn tokens_are_drawn_in_their_order() {
        // Weights 1, 1/2, 1/4, nothing, 1/4.
        let logits = [0f32, -2f32.ln(), -4f32.ln(), f32::NAN, -4f32.ln()];
        let drawn = |random, change: fn(&mut RandomSampling)| {
            let mut drawing = RandomSampling {
                temperature: 1.0,
                min_p: 0.0,
                top_k: None,
                top_p: 1.0,
                random,
            };
            change(&mut drawing);
            SamplingMethod::Random(drawing).of(&logits).unwrap()
        };
        let all = |change| [0.0, 0.49, 0.51, 0.74, 0.76, 0.88, 0.99].map(|r| drawn(r, change));
        assert_eq!(all(|_| ()), [0, 0, 1, 1, 2, 4, 4]);
        assert_eq!(all(|d| d.top_k = Some(3)), [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(all(|d| d.top_p = 0.7), [0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(all(|d| d.min_p = 0.6), [0; 7]);
        assert_eq!(all(|d| d.temperature = 1e-3), [0; 7]);
    }

    proptest! {
        /// The partial sort of top_p keeps just what a whole sort keeps.
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
