//! Merging tickets: their scaled sum (task arithmetic, arXiv 2212.04089).

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    BaseManifest, BoundTicket, DeltaDtype, Deltas, Metadata, TensorDelta, Ticket, TicketError,
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
    let mut entries: BTreeMap<&str, Vec<(usize, f32)>> = BTreeMap::new();
    for (ticket, scale) in tickets {
        for (parameter, delta) in ticket.tensors() {
            let [_, width] = base.projection(parameter)?;
            let scaled = delta
                .entries()
                .map(|(r, c, value)| (r * width + c, scale * value));
            entries.entry(parameter).or_default().extend(scaled);
        }
    }
    let mut tensors = BTreeMap::new();
    for (parameter, mut entries) in entries {
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
        let deltas = Deltas::from_f32(sums, dtype);
        let delta = TensorDelta::from_flat(base.projection(parameter)?, &positions, deltas)
            .map_err(|fault| TicketError::Delta {
                parameter: parameter.to_owned(),
                fault,
            })?;
        tensors.insert(parameter.to_owned(), delta);
    }
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
