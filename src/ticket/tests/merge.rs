//! Merging tickets.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::ticket::merge::{compose, composition_digest, merge};

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

#[test]
fn a_composition_has_the_deltas_of_the_merged_file_and_an_identity_of_its_own() {
    let [a, b, c] = [
        ticket(flat(&[1, 5], &[0.5, 2.0])),
        ticket(flat(&[0, 5, 11], &[1.0, 4.0, -8.0])),
        sample().bind(&base(), false).unwrap(),
    ];
    let composed = compose(&[(&a, 1.0), (&b, 0.5), (&c, -2.0)], &base()).unwrap();
    let digests = [&a, &b, &c].map(|part| part.digest());
    assert_eq!(composed.parts(), digests);
    // The widest of the parts' dtypes.
    assert_eq!(composed.widest(), DeltaDtype::F32);
    let merged = merge(
        &[(a, 1.0), (b, 0.5), (c, -2.0)],
        &base(),
        "all",
        DeltaDtype::F32,
        None,
    );
    let merged = merged.unwrap();
    assert_eq!(composed.tensors(), merged.tensors());
    assert_ne!(composed.digest(), merged.digest());
}

#[test]
fn the_digest_of_a_composition_is_that_of_the_documented_text() {
    let [a, b, c] = [b"a", b"b", b"c"].map(|content| Digest::of(content));
    let text = |first: Digest, second: Digest| {
        format!("tombola composition 1\n{first} 3f800000\n{second} 3f000000\n")
    };
    let digest = composition_digest(&[(a, 1.0), (b, 0.5)]);
    // The smaller digest comes first, whichever is named first.
    assert_eq!(digest, composition_digest(&[(b, 0.5), (a, 1.0)]));
    let sorted = if a < b {
        text(a, b)
    } else {
        format!("tombola composition 1\n{b} 3f000000\n{a} 3f800000\n")
    };
    assert_eq!(digest, Digest::of(sorted.as_bytes()));
    let three = composition_digest(&[(a, 1.0), (b, 1.0), (c, 1.0)]);
    assert_eq!(three, composition_digest(&[(b, 1.0), (a, 1.0), (c, 1.0)]));
    // (a + b) + c and (a + c) + b differ in rounding.
    assert_ne!(three, composition_digest(&[(a, 1.0), (c, 1.0), (b, 1.0)]));
    assert_ne!(three, digest);
    assert_ne!(digest, composition_digest(&[(a, 1.0), (b, -0.5)]));
}

fn f32_ticket() -> impl Strategy<Value = BoundTicket> {
    let value = prop_oneof![-4.0f32..4.0, Just(-0.0), -1.0e30f32..1.0e30];
    btree_map(0..12usize, value, 1..12).prop_filter_map("changes no weight", |deltas| {
        let (positions, values): (Vec<_>, Vec<_>) = deltas.into_iter().unzip();
        let delta = TensorDelta::from_flat([3, 4], &positions, Deltas::F32(values)).ok()?;
        let metadata = Metadata::new("any", &base(), delta.nonzeros());
        let tensors = BTreeMap::from([(Q.to_owned(), delta)]);
        Ticket::new(metadata, tensors)
            .ok()?
            .bind(&base(), false)
            .ok()
    })
}

proptest! {
    #[test]
    fn compositions_of_one_digest_have_the_same_bits(
        parts in vec((f32_ticket(), -4.0f32..4.0), 2..5),
    ) {
        let parts: Vec<_> = parts.iter().map(|(part, scale)| (part, *scale)).collect();
        let mut swapped = parts.clone();
        swapped.swap(0, 1);
        if let Ok(composed) = compose(&parts, &base()) {
            let again = compose(&swapped, &base()).unwrap();
            prop_assert_eq!(composed.digest(), again.digest());
            let bits = |ticket: &BoundTicket| -> Vec<(usize, usize, u32)> {
                let entries = ticket.tensors()[Q].entries();
                entries.map(|(row, column, delta)| (row, column, delta.to_bits())).collect()
            };
            prop_assert_eq!(bits(&composed), bits(&again));
        }
    }
}
