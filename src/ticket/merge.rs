//! Sums of tickets (task arithmetic, arXiv 2212.04089): merged into a file, or composed in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::json;

use super::{
    BaseManifest, BoundTicket, DeltaDtype, DeltaError, Deltas, Digest, Metadata, TensorDelta,
    Ticket, TicketError,
};

/// Merges tickets into one whose delta at each position is the sum of theirs, each times its scale.
/// Tickets with disjoint positions, as LoTTO trains them, keep their deltas (up to the scale).
///
/// # Errors
/// `name` is not a valid ticket name; a sum is not finite as `dtype`; no weight would change.
pub fn merge(
    tickets: &[(BoundTicket, f32)],
    base: &BaseManifest,
    name: &str,
    dtype: DeltaDtype,
    license: Option<String>,
) -> Result<Ticket, TicketError> {
    super::validate_name(name)?;
    let parts: Vec<Part> = tickets.iter().map(|(part, scale)| (part, *scale)).collect();
    let tensors = sum(&parts, base, dtype)?;
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let source = |(ticket, scale): &(BoundTicket, f32)| {
        json!({
            "name": ticket.metadata().name,
            "digest": ticket.digest().to_string(),
            "scale": scale,
        })
    };
    let metadata = Metadata {
        license,
        training: Some(json!({
            "merged_from": tickets.iter().map(source).collect::<Vec<_>>(),
            "tool": concat!("tombola ", env!("CARGO_PKG_VERSION")),
        })),
        ..Metadata::new(name, base, nonzeros)
    };
    Ticket::new(metadata, tensors)
}

/// Merges tickets in memory: the deltas of [`merge`] in the [`merged_dtype`] of the parts, under
/// the identity of [`composition_digest`].
///
/// # Errors
/// A sum is not finite; no weight would change.
pub fn compose(
    parts: &[(&BoundTicket, f32)],
    base: &BaseManifest,
) -> Result<BoundTicket, TicketError> {
    let dtype = merged_dtype(parts.iter().map(|(part, _)| part.widest()));
    let tensors = sum(parts, base, dtype)?;
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let identities: Vec<_> = parts
        .iter()
        .map(|(p, scale)| (p.digest(), *scale))
        .collect();
    let ticket = Ticket::composed(
        Metadata::new("composition", base, nonzeros),
        tensors,
        composition_digest(&identities),
        identities.iter().map(|(part, _)| *part).collect(),
    )?;
    ticket.bind(base, false)
}

/// Data type of a sum that is not asked for another: the widest of its parts'.
pub fn merged_dtype(parts: impl Iterator<Item = DeltaDtype>) -> DeltaDtype {
    parts.max().unwrap_or_default()
}

/// Identity of a composition: SHA-256 of a text that lists the digests of its parts, each with the
/// bits of its scale. The deltas follow from it, as each digest names one content.
///
/// Addition is commutative but not associative, so the order of the first two parts does not count
/// and that of the others does.
pub fn composition_digest(parts: &[(Digest, f32)]) -> Digest {
    let mut parts: Vec<_> = parts.iter().map(|(part, s)| (*part, s.to_bits())).collect();
    let first_two = parts.len().min(2);
    parts[..first_two].sort_unstable();
    let mut text = "tombola composition 1\n".to_owned();
    for (part, scale) in parts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{part} {scale:08x}");
    }
    Digest::of(text.as_bytes())
}

type Part<'a> = (&'a BoundTicket, f32);

/// The sum of the tickets' deltas by parameter, each times its scale: in f32, in the order of the
/// tickets, rounded to `dtype`.
fn sum(
    parts: &[Part],
    base: &BaseManifest,
    dtype: DeltaDtype,
) -> Result<BTreeMap<String, TensorDelta>, TicketError> {
    let names = parts.iter().flat_map(|(ticket, _)| ticket.tensors().keys());
    let names: BTreeSet<&String> = names.collect();
    let mut tensors = BTreeMap::new();
    for parameter in names {
        let shape = base.projection(parameter)?;
        let touching = parts.iter().filter_map(|(ticket, scale)| {
            let delta = ticket.tensors().get(parameter)?;
            Some((delta, *scale))
        });
        let delta =
            sum_of_parameter(touching, shape, dtype).map_err(|fault| TicketError::Delta {
                parameter: parameter.clone(),
                fault,
            })?;
        tensors.insert(parameter.clone(), delta);
    }
    Ok(tensors)
}

fn sum_of_parameter<'a>(
    parts: impl Iterator<Item = (&'a TensorDelta, f32)>,
    [rows, columns]: [usize; 2],
    dtype: DeltaDtype,
) -> Result<TensorDelta, DeltaError> {
    let scaled = parts.flat_map(|(delta, scale)| {
        let entries = delta.entries();
        entries.map(move |(row, column, value)| (row * columns + column, scale * value))
    });
    let mut entries: Vec<(usize, f32)> = scaled.collect();
    // A stable sort, so that equal positions are summed in the order of the tickets.
    entries.sort_by_key(|&(position, _)| position);
    let (mut positions, mut sums) = (Vec::new(), Vec::<f32>::new());
    for (position, value) in entries {
        match (positions.last(), sums.last_mut()) {
            (Some(&last), Some(sum)) if last == position => *sum += value,
            _ => {
                positions.push(position);
                sums.push(value);
            }
        }
    }
    TensorDelta::from_flat([rows, columns], &positions, Deltas::from_f32(sums, dtype))
}
