//! Top-k selection: the positions with the largest scores, which a ticket keeps.
//!
//! Scores are neither copied nor sorted. Positive f32 values sort like their bits, so two
//! histograms find the exact threshold: one of the upper 16 bits, then one of the lower 16 bits
//! within the threshold's bucket of the first.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use serde::Serialize;

/// The set of weights that a density is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All parameters together, as in the LoTA paper: some parameters keep more than others.
    #[default]
    Global,
    /// Each parameter separately.
    Tensor,
}

/// The reason why no positions could be selected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TopKError {
    #[error("the density is {0}, expected a share above 0 and up to 1")]
    Density(f64),
    #[error(
        "parameter `{parameter}`: the score at position {position} is {score}, \
         expected a finite number"
    )]
    NotFinite {
        parameter: String,
        position: usize,
        score: f32,
    },
}

/// A string that is not a [`Scope`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a scope: expected `global` or `tensor`")]
pub struct ParseScopeError(String);

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "global" => Ok(Self::Global),
            "tensor" => Ok(Self::Tensor),
            _ => Err(ParseScopeError(text.to_owned())),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Tensor => "tensor",
        })
    }
}

/// Selects the positions of the k largest scores, with k = ⌊`density` · weights⌋ over all weights
/// of the scope, candidates or not. Returns the row-major positions of each parameter, strictly
/// increasing; a parameter that keeps none has an empty list.
///
/// A score of 0 or less is not a candidate: it marks a weight that did not move, or one that must
/// not move. If there are fewer than k candidates, all are kept. Ties go to the parameter whose
/// name comes first in byte order, then to the lower position.
///
/// ```
/// use std::collections::BTreeMap;
/// use tombola::ticket::top_k::{Scope, top_k_positions};
///
/// let scores = BTreeMap::from([
///     ("a".to_owned(), vec![5.0, 0.5, 4.0, 3.0]),
///     ("b".to_owned(), vec![1.0, 0.0, 2.0, 0.25]),
/// ]);
/// let kept = top_k_positions(&scores, 0.5, Scope::Global)?;
/// assert_eq!((&kept["a"], &kept["b"]), (&vec![0, 2, 3], &vec![2]));
/// # Ok::<(), tombola::ticket::top_k::TopKError>(())
/// ```
///
/// # Errors
/// `density` is outside (0, 1], or a score is not finite.
pub fn top_k_positions(
    scores: &BTreeMap<String, Vec<f32>>,
    density: f64,
    scope: Scope,
) -> Result<BTreeMap<String, Vec<usize>>, TopKError> {
    if !(density > 0.0 && density <= 1.0) {
        return Err(TopKError::Density(density));
    }
    check_finite(scores)?;
    let all: Vec<&[f32]> = scores.values().map(Vec::as_slice).collect();
    let kept = match scope {
        Scope::Global => top_k_of(&all, density),
        Scope::Tensor => all
            .par_iter()
            .flat_map(|&scores| top_k_of(&[scores], density))
            .collect(),
    };
    Ok(scores.keys().cloned().zip(kept).collect())
}

fn check_finite(scores: &BTreeMap<String, Vec<f32>>) -> Result<(), TopKError> {
    let parameters: Vec<_> = scores.iter().collect();
    let fault = parameters.par_iter().find_map_first(|(name, scores)| {
        let position = scores.iter().position(|score| !score.is_finite())?;
        Some(TopKError::NotFinite {
            parameter: (*name).clone(),
            position,
            score: scores[position],
        })
    });
    fault.map_or(Ok(()), Err)
}

/// Positions kept of each of `parameters`, which share one threshold.
fn top_k_of(parameters: &[&[f32]], density: f64) -> Vec<Vec<usize>> {
    let weights: usize = parameters.iter().map(|scores| scores.len()).sum();
    let Some(threshold) = Threshold::find(parameters, (density * weights as f64) as usize) else {
        return vec![Vec::new(); parameters.len()];
    };
    let counts: Vec<Counts> = parameters
        .par_iter()
        .map(|scores| threshold.count(scores))
        .collect();
    let mut remaining = threshold.ties;
    let mut ties = Vec::with_capacity(counts.len());
    for counts in &counts {
        let taken = counts.equal.min(remaining);
        remaining -= taken;
        ties.push(taken);
    }
    (parameters, &counts, &ties)
        .into_par_iter()
        .map(|(scores, counts, &ties)| threshold.keep(scores, counts.above + ties, ties))
        .collect()
}

/// The smallest score that is kept, and the number of scores equal to it that are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Threshold {
    /// [`key`] of the score, which is always a candidate's.
    key: u32,
    ties: usize,
}

/// Number of scores of a parameter above a threshold, and equal to it.
struct Counts {
    above: usize,
    equal: usize,
}

/// Sort key of a score: its bits, or 0 if it is not a candidate.
fn key(score: f32) -> u32 {
    if score > 0.0 { score.to_bits() } else { 0 }
}

const HALF_BITS: u32 = 16;
const BUCKETS: usize = 1 << HALF_BITS;

impl Threshold {
    /// The threshold that `k` candidates pass, or all candidates if there are fewer. `None` if no
    /// candidate passes.
    fn find(parameters: &[&[f32]], k: usize) -> Option<Self> {
        let high = histogram(parameters, |key| Some(key >> HALF_BITS));
        let candidates: usize = high.iter().sum();
        let k = k.min(candidates);
        if k == 0 {
            return None;
        }
        let (high, rank) = bucket_of(&high, k);
        let low = histogram(parameters, |key| {
            (key >> HALF_BITS == high).then_some(key & (BUCKETS as u32 - 1))
        });
        let (low, ties) = bucket_of(&low, rank);
        let key = high << HALF_BITS | low;
        Some(Self { key, ties })
    }

    fn count(&self, scores: &[f32]) -> Counts {
        let mut counts = Counts { above: 0, equal: 0 };
        for &score in scores {
            counts.above += usize::from(key(score) > self.key);
            counts.equal += usize::from(key(score) == self.key);
        }
        counts
    }

    /// Positions above the threshold and the first `ties` equal to it, `len` in total.
    fn keep(&self, scores: &[f32], len: usize, mut ties: usize) -> Vec<usize> {
        let mut kept = Vec::with_capacity(len);
        for (position, &score) in scores.iter().enumerate() {
            let key = key(score);
            if key > self.key {
                kept.push(position);
            } else if key == self.key && ties > 0 {
                ties -= 1;
                kept.push(position);
            }
        }
        kept
    }
}

/// Number of candidates in each bucket. `bucket` maps a key to its bucket, or to `None` to skip it.
fn histogram(parameters: &[&[f32]], bucket: impl Fn(u32) -> Option<u32> + Sync) -> Vec<usize> {
    let empty = || vec![0; BUCKETS];
    let count = |mut counts: Vec<usize>, scores: &&[f32]| {
        let keys = scores
            .iter()
            .map(|&score| key(score))
            .filter(|&key| key > 0);
        for bucket in keys.filter_map(&bucket) {
            counts[bucket as usize] += 1;
        }
        counts
    };
    let add = |mut counts: Vec<usize>, other: Vec<usize>| {
        counts.iter_mut().zip(other).for_each(|(a, b)| *a += b);
        counts
    };
    parameters.par_iter().fold(empty, count).reduce(empty, add)
}

/// The bucket of the candidate with the given `rank` (1 is the largest), and the rank within that
/// bucket. The buckets must hold at least `rank` candidates.
fn bucket_of(counts: &[usize], mut rank: usize) -> (u32, usize) {
    let mut bucket = counts.len() - 1;
    while rank > counts[bucket] {
        rank -= counts[bucket];
        bucket -= 1;
    }
    (bucket as u32, rank)
}
