//! Which positions a ticket keeps: those with the largest scores.
//!
//! Scores are neither copied nor sorted. Positive f32 values are in the order of their bits, so a
//! histogram of the upper half of the bits, then one of the lower half within the bucket that it
//! points at, find the exact threshold.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use serde::Serialize;

/// What share a density is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Of all parameters together, as the LoTA paper has it: some get more than others.
    #[default]
    Global,
    /// Of each parameter.
    Tensor,
}

/// Why no positions could be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SelectError {
    #[error("the density is {0}, expected a share above 0 and up to 1")]
    Density(f64),
    #[error(
        "parameter `{parameter}`: the score at position {position} is {score}, expected a finite number"
    )]
    NotFinite {
        parameter: String,
        position: usize,
        score: f32,
    },
}

/// A string that names no [`Scope`].
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

/// Positions kept of each parameter, strictly increasing, row-major: those of the
/// ⌊`density` · weights⌋ largest scores, where all weights count, and fewer where fewer are
/// candidates. Every parameter is in the result, if with no position.
///
/// A score of 0 or less is no candidate: it marks a weight that did not move, or one that must not.
/// Of equal scores those come first whose parameter does in byte order of the names, then those of
/// lower position.
///
/// # Errors
/// A density outside (0, 1]; a score that is not finite.
pub fn top_share(
    scores: &BTreeMap<String, Vec<f32>>,
    density: f64,
    scope: Scope,
) -> Result<BTreeMap<String, Vec<usize>>, SelectError> {
    if !(density > 0.0 && density <= 1.0) {
        return Err(SelectError::Density(density));
    }
    check_finite(scores)?;
    let all: Vec<&[f32]> = scores.values().map(Vec::as_slice).collect();
    let kept = match scope {
        Scope::Global => top_of(&all, density),
        Scope::Tensor => all
            .par_iter()
            .flat_map(|&scores| top_of(&[scores], density))
            .collect(),
    };
    Ok(scores.keys().cloned().zip(kept).collect())
}

fn check_finite(scores: &BTreeMap<String, Vec<f32>>) -> Result<(), SelectError> {
    let parameters: Vec<_> = scores.iter().collect();
    let found = parameters.par_iter().find_map_first(|(name, scores)| {
        let position = scores.iter().position(|score| !score.is_finite())?;
        Some(SelectError::NotFinite {
            parameter: (*name).clone(),
            position,
            score: scores[position],
        })
    });
    found.map_or(Ok(()), Err)
}

/// The positions that are kept of each of some parameters, which share one threshold.
fn top_of(parameters: &[&[f32]], density: f64) -> Vec<Vec<usize>> {
    let weights: usize = parameters.iter().map(|scores| scores.len()).sum();
    let Some(threshold) = Threshold::find(parameters, (density * weights as f64) as usize) else {
        return vec![Vec::new(); parameters.len()];
    };
    let counts: Vec<Counts> = parameters
        .par_iter()
        .map(|scores| threshold.count(scores))
        .collect();
    let mut left = threshold.ties;
    let ties = counts.iter().map(|counts| {
        let taken = counts.equal.min(left);
        left -= taken;
        taken
    });
    let ties: Vec<usize> = ties.collect();
    (parameters, &counts, &ties)
        .into_par_iter()
        .map(|(scores, counts, &ties)| threshold.keep(scores, counts.above + ties, ties))
        .collect()
}

/// The smallest score that is kept, and how many of those that equal it are.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Threshold {
    /// See [`key`]; never that of a score that is no candidate.
    key: u32,
    ties: usize,
}

/// How many scores of a parameter lie above a threshold, and on it.
struct Counts {
    above: usize,
    equal: usize,
}

/// A score's place in the order of scores: its bits, or 0 where it is no candidate.
fn key(score: f32) -> u32 {
    if score > 0.0 { score.to_bits() } else { 0 }
}

const HALF_BITS: u32 = 16;
const BUCKETS: usize = 1 << HALF_BITS;

impl Threshold {
    /// The threshold that `most` candidates pass, or all of them where there are fewer. `None` if
    /// none passes.
    fn find(parameters: &[&[f32]], most: usize) -> Option<Self> {
        let high = histogram(parameters, |key| Some(key >> HALF_BITS));
        let candidates: usize = high.iter().sum();
        let most = most.min(candidates);
        if most == 0 {
            return None;
        }
        let (high, within) = bucket_of(&high, most);
        let low = histogram(parameters, |key| {
            (key >> HALF_BITS == high).then_some(key & (BUCKETS as u32 - 1))
        });
        let (low, ties) = bucket_of(&low, within);
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

    /// The positions above the threshold and the first `ties` on it: `len` in all.
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

/// How many candidates fall into each bucket; `None` leaves one out.
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

/// The bucket that holds number `rank` (from 1) counted from the top, and its rank within the
/// bucket. The buckets hold that many.
fn bucket_of(counts: &[usize], mut rank: usize) -> (u32, usize) {
    let mut bucket = counts.len() - 1;
    while rank > counts[bucket] {
        rank -= counts[bucket];
        bucket -= 1;
    }
    (bucket as u32, rank)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Scores = BTreeMap<String, Vec<f32>>;

    fn scores(parameters: &[(&str, &[f32])]) -> Scores {
        let own = |(name, scores): &(&str, &[f32])| ((*name).to_owned(), scores.to_vec());
        parameters.iter().map(own).collect()
    }

    fn top(scores: &Scores, density: f64, scope: Scope) -> Vec<Vec<usize>> {
        let kept = top_share(scores, density, scope).unwrap();
        assert!(kept.keys().eq(scores.keys()));
        kept.into_values().collect()
    }

    /// By sorting everything.
    fn sorted(scores: &Scores, density: f64) -> Vec<Vec<usize>> {
        let mut all: Vec<(f32, usize, usize)> = Vec::new();
        for (parameter, scores) in scores.values().enumerate() {
            all.extend(
                scores
                    .iter()
                    .enumerate()
                    .map(|(i, &score)| (score, parameter, i)),
            );
        }
        let most = (density * all.len() as f64).floor() as usize;
        all.retain(|&(score, ..)| score > 0.0);
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut kept = vec![Vec::new(); scores.len()];
        for &(_, parameter, position) in all.iter().take(most) {
            kept[parameter].push(position);
        }
        kept.iter_mut()
            .for_each(|positions| positions.sort_unstable());
        kept
    }

    #[test]
    fn the_largest_are_kept_wherever_they_are_or_in_each_parameter() {
        let scores = scores(&[("a", &[5.0, 0.5, 4.0, 3.0]), ("b", &[1.0, 0.0, 2.0, 0.25])]);
        assert_eq!(top(&scores, 0.5, Scope::Global), [vec![0, 2, 3], vec![2]]);
        assert_eq!(top(&scores, 0.5, Scope::Tensor), [vec![0, 2], vec![0, 2]]);
        // ⌊0.24 · 8⌋ is 1, ⌊0.24 · 4⌋ is 0.
        assert_eq!(top(&scores, 0.24, Scope::Global), [vec![0], vec![]]);
        assert_eq!(top(&scores, 0.24, Scope::Tensor), vec![vec![0; 0]; 2]);
    }

    #[test]
    fn ties_go_to_the_first_parameter_and_the_first_position() {
        let scores = scores(&[("b", &[1.0, 1.0, 2.0]), ("a", &[1.0, 0.0, 1.0])]);
        assert_eq!(top(&scores, 0.5, Scope::Global), [vec![0, 2], vec![2]]);
        assert_eq!(top(&scores, 0.7, Scope::Global), [vec![0, 2], vec![0, 2]]);
    }

    #[test]
    fn what_did_not_move_is_no_candidate() {
        let scores = scores(&[("a", &[0.0, -0.0, -1.0, f32::MIN, 1e-45]), ("b", &[])]);
        for scope in [Scope::Global, Scope::Tensor] {
            assert_eq!(top(&scores, 1.0, scope), [vec![4], vec![]]);
        }
        assert_eq!(
            top(&Scores::new(), 1.0, Scope::Global),
            Vec::<Vec<usize>>::new()
        );
    }

    #[test]
    fn a_score_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let scores = scores(&[("a", &[1.0]), ("b", &[1.0, bad]), ("c", &[bad])]);
            let error = top_share(&scores, 0.5, Scope::Global)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("parameter `b`: the score at position 1 is"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_density_is_a_share() {
        for density in [0.0, -0.1, 1.1, f64::NAN] {
            let error = top_share(&scores(&[("a", &[1.0])]), density, Scope::Global);
            assert!(matches!(error, Err(SelectError::Density(_))), "{density}");
        }
    }

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for scope in [Scope::Global, Scope::Tensor] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("local".parse::<Scope>().is_err());
    }

    /// Scores of which many are equal, many differ in their last bits alone, and some are none.
    fn any_scores() -> impl Strategy<Value = Vec<f32>> {
        let few = proptest::sample::select(vec![-1.0, 0.0, 0.5, 1.0, f32::MAX, f32::MIN_POSITIVE]);
        let near = (0u32..40).prop_map(|bits| f32::from_bits(0x3f7f_ffec + bits));
        let any = any::<u32>().prop_map(f32::from_bits);
        let finite = any.prop_filter("finite", |score| score.is_finite());
        proptest::collection::vec(prop_oneof![few, near, finite], 0..60)
    }

    proptest! {
        #[test]
        fn as_by_sorting(
            parameters in proptest::collection::vec(any_scores(), 0..5),
            density in prop_oneof![Just(1.0), 0.001..1.0f64],
        ) {
            let named = parameters.into_iter().enumerate();
            let scores: Scores = named.map(|(i, scores)| (i.to_string(), scores)).collect();
            prop_assert_eq!(top(&scores, density, Scope::Global), sorted(&scores, density));
            let each = scores.iter().flat_map(|(name, one)| {
                sorted(&Scores::from([(name.clone(), one.clone())]), density)
            });
            prop_assert_eq!(top(&scores, density, Scope::Tensor), each.collect::<Vec<_>>());
        }
    }
}
