//! Properties over random tickets, corrupted files and noise.

use std::collections::BTreeSet;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A parameter of up to 6 rows, some of them empty, narrow or wider than U16 can address.
fn tensor_delta() -> impl Strategy<Value = TensorDelta> {
    let columns = prop_oneof![
        3 => 1..20usize,
        1 => Just(MAX_U16_COLUMNS),
        1 => MAX_U16_COLUMNS + 1..MAX_U16_COLUMNS + 5000
    ];
    let shape = (1..6usize, columns);
    shape.prop_flat_map(|(rows, columns)| {
        let weights = rows * columns;
        // The two ends are drawn twice as often as all other positions together.
        let index = prop_oneof![0..weights, Just(0), Just(weights - 1)];
        let indices = btree_set(index, 0..12.min(weights + 1));
        (indices, any::<bool>()).prop_flat_map(move |(indices, narrow)| {
            let values = vec(-1.0e30f32..1.0e30, indices.len());
            values.prop_map(move |values| build([rows, columns], &indices, values, narrow))
        })
    })
}

fn build(
    shape: [usize; 2],
    indices: &BTreeSet<usize>,
    values: Vec<f32>,
    narrow: bool,
) -> TensorDelta {
    let dtype = if narrow {
        DeltaDtype::Bf16
    } else {
        DeltaDtype::F32
    };
    let indices: Vec<_> = indices.iter().copied().collect();
    TensorDelta::from_flat(shape, &indices, Deltas::from_f32(values, dtype)).unwrap()
}

fn random_metadata() -> impl Strategy<Value = Metadata> {
    let license = proptest::option::of("[A-Za-z\"\\\\é][ -~é]{0,20}");
    let training = proptest::option::of(any::<(i64, bool, f32)>());
    let density = prop_oneof![0.0001f64..=1.0, 1e-12f64..1e-3];
    let name = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";
    (name, license, training, density).prop_map(|(name, license, training, density)| Metadata {
        name,
        license,
        density,
        training: training.map(|(seed, flag, loss)| {
            // Six significant digits, which JSON keeps exactly.
            let loss = (f64::from(loss) % 1000.0 * 1000.0).round() / 1000.0;
            json!({"seed": seed, "flag": flag, "loss": loss, "text": "a \"b\" \u{1}"})
        }),
        ..metadata()
    })
}

fn random_ticket() -> impl Strategy<Value = Ticket> {
    let tensors = btree_map("[a-z]{1,3}(\\.[a-zé\"]{1,4}){0,2}", tensor_delta(), 1..4);
    (random_metadata(), tensors).prop_filter_map("changes no weight", |(metadata, tensors)| {
        Ticket::new(metadata, tensors).ok()
    })
}

/// Reading any bytes returns, and an accepted file can be written and read again unchanged.
fn reading_is_safe(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(ticket) = Ticket::from_bytes(bytes) else {
        return Ok(());
    };
    // The arrays are never larger than the file.
    prop_assert!(ticket.resident_bytes() <= bytes.len());
    let again = Ticket::from_bytes(&encoded(&ticket)).unwrap();
    // Corrupted provenance may hold numbers of more digits than JSON keeps.
    let without_training = |ticket: &Ticket| Metadata {
        training: None,
        ..ticket.metadata().clone()
    };
    prop_assert_eq!(without_training(&again), without_training(&ticket));
    prop_assert_eq!(again.tensors(), ticket.tensors());
    Ok(())
}

proptest! {
    #[test]
    fn reading_inverts_writing(ticket in random_ticket()) {
        let bytes = encoded(&ticket);
        let read = Ticket::from_bytes(&bytes).unwrap();
        prop_assert_eq!(read.metadata(), ticket.metadata());
        prop_assert_eq!(read.tensors(), ticket.tensors());
        prop_assert_eq!(encoded(&read), &bytes[..]);
        prop_assert_eq!(read.digest(), ticket.digest());
        prop_assert!(SafeTensors::deserialize(&bytes).is_ok());
    }

    #[test]
    fn entries_are_the_positions_given(
        indices in btree_set(0..600usize, 0..40),
        columns in 1..40usize,
    ) {
        let rows = 600usize.div_ceil(columns);
        let values: Vec<f32> = indices.iter().map(|i| *i as f32).collect();
        let delta = build([rows, columns], &indices, values, false);
        let flat: Vec<_> = delta.entries().map(|(r, c, d)| (r * columns + c, d)).collect();
        let expected: Vec<_> = indices.iter().map(|i| (*i, *i as f32)).collect();
        prop_assert_eq!(flat, expected);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused(ticket in random_ticket(), at in any::<Index>()) {
        let bytes = encoded(&ticket);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(Ticket::from_bytes(cut).is_err());
    }

    #[test]
    fn a_longer_file_is_refused(ticket in random_ticket(), tail in vec(any::<u8>(), 1..20)) {
        let bytes = [encoded(&ticket), tail].concat();
        prop_assert!(Ticket::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_flipped_bit_is_refused_or_harmless(
        ticket in random_ticket(),
        at in any::<Index>(),
        bit in 0..8u32,
    ) {
        let mut bytes = encoded(&ticket);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if at < 8 {
            prop_assert!(Ticket::from_bytes(&bytes).is_err(), "the header's length");
        }
        reading_is_safe(&bytes)?;
    }

    #[test]
    fn an_overwritten_run_is_refused_or_harmless(
        ticket in random_ticket(),
        at in any::<Index>(),
        run in vec(prop_oneof![any::<u8>(), 0x20..0x7fu8], 1..16),
    ) {
        let mut bytes = encoded(&ticket);
        let at = at.index(bytes.len());
        let end = bytes.len().min(at + run.len());
        bytes[at..end].copy_from_slice(&run[..end - at]);
        reading_is_safe(&bytes)?;
    }

    #[test]
    fn noise_is_refused(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert!(Ticket::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_header_of_noise_is_refused(
        header in "\\{(\"[a-z._]{0,12}\":|[\\[\\]{},0-9\"]){0,30}\\}",
        data in vec(any::<u8>(), 0..100),
    ) {
        prop_assert!(Ticket::from_bytes(&file(&header, &data)).is_err());
    }

    #[test]
    fn random_arrays_are_checked_without_panic(
        row_offsets in vec(0..6u32, 0..6),
        columns in vec(0..6u16, 0..6),
        deltas in vec(any::<f32>(), 0..6),
    ) {
        let columns = Columns::U16(columns);
        if let Ok(delta) = TensorDelta::new(row_offsets, columns, Deltas::F32(deltas)) {
            let entries: Vec<_> = delta.entries().collect();
            prop_assert_eq!(entries.len(), delta.nonzeros());
            let rising = |pair: &[(usize, usize, f32)]| {
                (pair[0].0, pair[0].1) < (pair[1].0, pair[1].1)
            };
            prop_assert!(entries.windows(2).all(rising));
        }
    }
}
