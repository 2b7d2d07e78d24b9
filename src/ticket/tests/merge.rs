//! Merging tickets.

use super::*;
use crate::ticket::merge::merge;

fn ticket(delta: TensorDelta) -> BoundTicket {
    let metadata = Metadata {
        density: Metadata::new("sql", &base(), delta.nonzeros()).density,
        ..metadata()
    };
    let tensors = BTreeMap::from([(Q.to_owned(), delta)]);
    let ticket = Ticket::new(metadata, tensors).unwrap();
    ticket.bind(&base(), false).unwrap()
}

fn flat(positions: &[usize], values: &[f32]) -> TensorDelta {
    TensorDelta::from_flat([3, 4], positions, bf16s(values)).unwrap()
}

#[test]
fn positions_are_united_and_scaled_deltas_summed() {
    let tickets = [
        (ticket(flat(&[1, 5], &[0.5, 2.0])), 1.0),
        (ticket(flat(&[0, 5, 11], &[1.0, 4.0, -8.0])), 0.5),
        (sample().bind(&base(), false).unwrap(), 2.0),
    ];
    let merged = merge(&tickets, &base(), "all", DeltaDtype::F32, None).unwrap();
    let entries: Vec<_> = merged.tensors()[Q].entries().collect();
    let mut want = BTreeMap::from([(0, 0.5), (1, 0.5), (5, 4.0), (11, -4.0)]);
    for (row, column, value) in sample().tensors()[Q].entries() {
        *want.entry(row * 4 + column).or_default() += 2.0 * value;
    }
    let want: Vec<_> = want
        .into_iter()
        .map(|(at, value)| (at / 4, at % 4, value))
        .collect();
    assert_eq!(entries, want);
    assert_eq!(merged.tensors().len(), sample().tensors().len());
    let sources = &merged.metadata().training.as_ref().unwrap()["merged_from"];
    assert_eq!(sources.as_array().unwrap().len(), 3);
    assert!(merged.bind(&base(), false).is_ok());
}

#[test]
fn tickets_that_cancel_out_change_nothing_and_are_refused() {
    let tickets = [(ticket(q_delta()), 1.0), (ticket(q_delta()), -1.0)];
    let error = merge(&tickets, &base(), "none", DeltaDtype::Bf16, None).unwrap_err();
    assert!(error.to_string().contains("changes no weight"), "{error}");
}
