//! The mask: scores of the adaptable weights, and the positions a ticket may hold.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::backprop::Slot;
use super::start::Start;
use super::task_vector;
use crate::kernels::Pattern;
use crate::model::{Projection, layers};
use crate::ticket::{BaseManifest, BoundTicket, TensorDelta};

/// Scores of all weights of the adaptable parameters, row-major. Weights with a negative score are
/// never chosen.
pub type Scores = BTreeMap<String, Vec<f32>>;

/// Flat, row-major positions of the chosen weights by parameter, strictly increasing.
pub type Positions = BTreeMap<String, Vec<usize>>;

/// Scores `|w − w_0|`, for tuned values `w` of the parameters and the start `w_0`.
pub fn task_vector(
    start: &Start,
    mut tuned: impl FnMut(&str) -> Result<Tensor, TrainError>,
) -> Result<Scores, TrainError> {
    let score = |name: &String| {
        // The start is on the CPU, regardless of the base's device.
        let tuned = tuned(name)?.to_device(&Device::Cpu)?;
        let distance = task_vector::distance(tuned, start.parameter(name)?)?;
        Ok((name.clone(), distance))
    };
    adaptable(&start.manifest).map(score).collect()
}

/// Scores by parameter from sums of absolute gradients by slot, times `|w_0|` for saliency.
pub fn gradients(
    start: &Start,
    sums: &BTreeMap<Slot, Tensor>,
    saliency: bool,
) -> Result<Scores, TrainError> {
    let mut scores = Scores::new();
    for (slot, sums) in sums {
        for (name, first, rows) in parts(*slot, &start.manifest) {
            // The start is on the CPU, regardless of the base's device.
            let mut part = sums.narrow(0, first, rows)?.to_device(&Device::Cpu)?;
            if saliency {
                part = (part * start.parameter(&name)?.abs()?)?;
            }
            scores.insert(name, part.flatten_all()?.to_vec1()?);
        }
    }
    Ok(scores)
}

/// Uniform random scores in (0, 1], drawn from a seed.
pub fn random(manifest: &BaseManifest, seed: u64) -> Scores {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |name: &String| {
        let weights = manifest.parameters[name].shape.iter().product();
        let scores = (0..weights).map(|_| 1.0 - rng.random::<f32>()).collect();
        (name.clone(), scores)
    };
    adaptable(manifest).map(&mut draw).collect()
}

/// Excludes the positions of a ticket from the choice.
pub fn exclude(scores: &mut Scores, ticket: &BoundTicket, manifest: &BaseManifest) {
    for (name, positions) in of_ticket(ticket, manifest) {
        let scores = scores
            .get_mut(&name)
            .expect("tickets hold adaptable parameters");
        for position in positions {
            scores[position] = -1.0;
        }
    }
}

/// The positions a ticket holds.
pub fn of_ticket(ticket: &BoundTicket, manifest: &BaseManifest) -> Positions {
    let positions = |(name, delta): (&String, &TensorDelta)| {
        let width = manifest.parameters[name].shape[1];
        let flat = delta.entries().map(|(row, column, _)| row * width + column);
        (name.clone(), flat.collect())
    };
    ticket.tensors().iter().map(positions).collect()
}

/// Slots of the fused weights that tickets adapt.
pub fn slots(manifest: &BaseManifest) -> impl Iterator<Item = Slot> {
    (0..layers(manifest)).flat_map(|layer| Projection::ALL.map(|p| Slot::Weight(layer, p)))
}

/// Sparsity patterns of the fused weights for the positions by parameter; weights without positions
/// are left out.
pub fn patterns(manifest: &BaseManifest, positions: &Positions) -> BTreeMap<Slot, Pattern> {
    let pattern = |slot: Slot| {
        let part = |(name, _, rows): (String, usize, usize)| {
            let kept = positions.get(&name).map_or(&[][..], Vec::as_slice);
            let width = manifest.parameters[&name].shape[1];
            Pattern::from_flat([rows, width], kept)
        };
        let parts: Vec<Pattern> = parts(slot, manifest).into_iter().map(part).collect();
        let pattern = Pattern::stack(&parts.iter().collect::<Vec<_>>());
        (pattern.nonzeros() > 0).then_some((slot, pattern))
    };
    slots(manifest).filter_map(pattern).collect()
}

/// The parameters stacked in a fused weight: name, first row and number of rows of each. Empty for
/// slots that tickets do not adapt.
pub fn parts(slot: Slot, manifest: &BaseManifest) -> Vec<(String, usize, usize)> {
    match slot {
        Slot::Weight(layer, projection) => projection.parts(layer, manifest),
        _ => Vec::new(),
    }
}

fn adaptable(manifest: &BaseManifest) -> impl Iterator<Item = &String> {
    let parameters = manifest.parameters.iter();
    let adaptable = parameters.filter(|(_, info)| info.adaptable);
    adaptable.map(|(name, _)| name)
}
