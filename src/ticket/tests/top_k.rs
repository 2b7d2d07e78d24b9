//! Top-k selection, against sorting everything.

use proptest::prelude::*;

use super::*;
use crate::ticket::top_k::{Scope, TopKError, top_k_positions};

type Scores = BTreeMap<String, Vec<f32>>;

fn scores(parameters: &[(&str, &[f32])]) -> Scores {
    let owned = |(name, scores): &(&str, &[f32])| ((*name).to_owned(), scores.to_vec());
    parameters.iter().map(owned).collect()
}

fn top(scores: &Scores, density: f64, scope: Scope) -> Vec<Vec<usize>> {
    let kept = top_k_positions(scores, density, scope).unwrap();
    assert!(kept.keys().eq(scores.keys()));
    kept.into_values().collect()
}

/// The same selection by sorting all scores.
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
    let k = (density * all.len() as f64).floor() as usize;
    all.retain(|&(score, ..)| score > 0.0);
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut kept = vec![Vec::new(); scores.len()];
    for &(_, parameter, position) in all.iter().take(k) {
        kept[parameter].push(position);
    }
    kept.iter_mut()
        .for_each(|positions| positions.sort_unstable());
    kept
}

#[test]
fn the_largest_scores_are_kept_over_all_parameters_or_per_parameter() {
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
fn weights_that_did_not_move_are_not_candidates() {
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
        let error = top_k_positions(&scores, 0.5, Scope::Global)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("parameter `b`: the score at position 1 is"),
            "{error}"
        );
    }
}

#[test]
fn densities_outside_0_to_1_are_refused() {
    for density in [0.0, -0.1, 1.1, f64::NAN] {
        let error = top_k_positions(&scores(&[("a", &[1.0])]), density, Scope::Global);
        assert!(matches!(error, Err(TopKError::Density(_))), "{density}");
    }
}

#[test]
fn scopes_parse_as_they_display() {
    for scope in [Scope::Global, Scope::Tensor] {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
    assert!("local".parse::<Scope>().is_err());
}

/// Scores with many ties, many that differ only in their last bits, and some non-candidates.
fn any_scores() -> impl Strategy<Value = Vec<f32>> {
    let few = proptest::sample::select(vec![-1.0, 0.0, 0.5, 1.0, f32::MAX, f32::MIN_POSITIVE]);
    let near = (0u32..40).prop_map(|bits| f32::from_bits(0x3f7f_ffec + bits));
    let any = any::<u32>().prop_map(f32::from_bits);
    let finite = any.prop_filter("finite", |score| score.is_finite());
    proptest::collection::vec(prop_oneof![few, near, finite], 0..60)
}

proptest! {
    #[test]
    fn selection_equals_sorting(
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
