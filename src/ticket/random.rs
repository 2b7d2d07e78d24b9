//! Random tickets, for measurements and tests.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{
    BaseManifest, BoundTicket, Deltas, Metadata, ParameterInfo, TensorDelta, Ticket, TicketError,
};

/// A ticket for `base` with small deltas at random positions of the adaptable parameters whose
/// names `touches` accepts. Each weight is kept independently with probability `density`, and at
/// least one weight of each parameter is kept.
///
/// # Errors
/// `touches` accepts no adaptable parameter.
pub fn random_ticket(
    base: &BaseManifest,
    density: f64,
    seed: u64,
    touches: impl Fn(&str) -> bool,
) -> Result<BoundTicket, TicketError> {
    let parameters = base.parameters.iter().filter(|(_, p)| p.adaptable);
    let parameters: Vec<_> = parameters.filter(|(name, _)| touches(name)).collect();
    let delta = |&(name, parameter): &(&String, &ParameterInfo)| {
        // Seeded per parameter, so that it does not depend on which others are touched.
        let mut hasher = DefaultHasher::new();
        (seed, name).hash(&mut hasher);
        let mut rng = StdRng::seed_from_u64(hasher.finish());
        let shape = [parameter.shape[0], parameter.shape[1]];
        let kept = positions(shape[0] * shape[1], density, &mut rng);
        let deltas = kept
            .iter()
            .map(|_| bf16::from_f32(rng.random_range(-1e-3..1e-3)));
        let deltas = Deltas::Bf16(deltas.collect());
        let delta = TensorDelta::from_flat(shape, &kept, deltas);
        (
            name.clone(),
            delta.expect("ascending positions within the parameter"),
        )
    };
    let tensors: BTreeMap<String, TensorDelta> = parameters.par_iter().map(delta).collect();
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let metadata = Metadata::new("random", base, nonzeros);
    Ticket::new(metadata, tensors)?.bind(base, false)
}

/// Positions kept of `count`, at least one. Draws the gaps between them, not each position.
fn positions(count: usize, density: f64, rng: &mut StdRng) -> Vec<usize> {
    let mut gap = || (rng.random::<f64>().ln() / (1.0 - density).ln()) as usize;
    let first = gap();
    let next = |&at: &usize| Some(at + 1 + gap());
    let all = std::iter::successors(Some(first), next);
    let mut kept: Vec<usize> = all.take_while(|&at| at < count).collect();
    if kept.is_empty() {
        kept.push(rng.random_range(0..count));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_have_the_requested_density() {
        let mut rng = StdRng::seed_from_u64(1);
        for density in [0.001, 0.01, 0.1, 0.9] {
            let kept = positions(1 << 20, density, &mut rng);
            let found = kept.len() as f64 / f64::from(1 << 20);
            assert!((found / density - 1.0).abs() < 0.2, "{found} for {density}");
            assert!(kept.is_sorted() && kept.windows(2).all(|pair| pair[0] < pair[1]));
        }
        assert_eq!(positions(1, 0.001, &mut rng), [0]);
    }
}
