//! Flat files: the tickets they import to, and the files that are refused.

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::*;
use crate::ticket::import::import_flat;

/// One parameter of a flat file.
struct Flat<'a>(&'a str, [usize; 2], &'a [i32], &'a [f32]);

fn flat_file(parameters: &[Flat<'_>]) -> Vec<u8> {
    let mut shapes = serde_json::Map::new();
    let mut tensors = Vec::new();
    for Flat(name, shape, indices, deltas) in parameters {
        shapes.insert((*name).to_owned(), json!(shape));
        let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        tensors.push((format!("{name}.indices"), Dtype::I32, indices.len(), bytes));
        let bytes: Vec<u8> = deltas.iter().flat_map(|d| d.to_le_bytes()).collect();
        tensors.push((format!("{name}.deltas"), Dtype::F32, deltas.len(), bytes));
    }
    let views = tensors.iter().map(|(name, dtype, length, bytes)| {
        let view = TensorView::new(*dtype, vec![*length], bytes).unwrap();
        (name, view)
    });
    let shape_of = serde_json::Value::Object(shapes).to_string();
    let metadata = [("shape_of".to_owned(), shape_of)].into();
    serialize(views, Some(metadata)).unwrap()
}

fn import(file: &[u8], dtype: DeltaDtype) -> Result<Ticket, TicketError> {
    import_flat(file, &base(), "sql", dtype, None, None)
}

fn refusal(parameters: &[Flat<'_>]) -> String {
    let error = import(&flat_file(parameters), DeltaDtype::Bf16).unwrap_err();
    error.to_string()
}

fn dense(delta: &TensorDelta, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut dense = vec![0.0; rows * columns];
    for (row, column, value) in delta.entries() {
        dense[row * columns + column] = value;
    }
    dense
}

#[test]
fn an_import_equals_the_dense_difference() {
    let before: Vec<f32> = (0..12).map(|i| i as f32 / 8.0).collect();
    let mut after = before.clone();
    for (index, delta) in [(0, 0.5), (5, -0.125), (6, 1.0e-3), (11, 3.0)] {
        after[index] += delta;
    }
    let difference: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    let changed = |i: &usize| difference[*i] != 0.0;
    let positions: Vec<usize> = (0..12).filter(changed).collect();
    let indices: Vec<i32> = positions.iter().map(|&i| i as i32).collect();
    let deltas: Vec<f32> = positions.iter().map(|&i| difference[i]).collect();
    let file = flat_file(&[Flat(Q, [3, 4], &indices, &deltas)]);

    let exact = import(&file, DeltaDtype::F32).unwrap();
    assert_eq!(dense(&exact.tensors()[Q], [3, 4]), difference);

    let rounded = import(&file, DeltaDtype::Bf16).unwrap();
    let expected: Vec<f32> = difference
        .iter()
        .map(|d| bf16::from_f32(*d).to_f32())
        .collect();
    assert_eq!(dense(&rounded.tensors()[Q], [3, 4]), expected);
}

#[test]
fn an_import_binds_to_its_base() {
    let wide_last = (2 * WIDE - 1) as i32;
    let file = flat_file(&[
        Flat(Q, [3, 4], &[1, 3, 8], &[0.5, -1.0, 0.25]),
        Flat(DOWN, [2, WIDE], &[wide_last], &[2.0]),
    ]);
    let training = Some(json!({"source": "a test"}));
    let license = Some("MIT".to_owned());
    let ticket = import_flat(&file, &base(), "sql", DeltaDtype::F32, license, training).unwrap();
    let expected = Metadata {
        license: Some("MIT".to_owned()),
        training: Some(json!({"source": "a test"})),
        ..Metadata::new("sql", &base(), 4)
    };
    assert_eq!(ticket.metadata(), &expected);
    assert_eq!(ticket.tensors()[DOWN], down_delta());
    let reread = Ticket::from_bytes(&encoded(&ticket)).unwrap();
    assert_eq!(reread.digest(), ticket.digest());
    assert!(ticket.bind(&base(), false).is_ok());
}

#[test]
fn positions_may_come_in_any_order() {
    let shuffled = flat_file(&[Flat(Q, [3, 4], &[8, 1, 3], &[0.25, 0.5, -1.0])]);
    let ticket = import(&shuffled, DeltaDtype::Bf16).unwrap();
    assert_eq!(ticket.tensors()[Q], q_delta());
}

#[test]
fn a_delta_that_rounds_to_zero_keeps_its_position() {
    let file = flat_file(&[Flat(Q, [3, 4], &[1, 2], &[f32::from_bits(1), 1.0])]);
    let ticket = import(&file, DeltaDtype::Bf16).unwrap();
    let entries: Vec<_> = ticket.tensors()[Q].entries().collect();
    assert_eq!(entries, [(0, 1, 0.0), (0, 2, 1.0)]);
}

#[test]
fn positions_that_repeat_or_leave_the_parameter() {
    let q = |indices| refusal(&[Flat(Q, [3, 4], indices, &[1.0, 2.0])]);
    assert_eq!(
        q(&[5, 5]),
        format!("parameter `{Q}`: position 5 appears twice")
    );
    let outside =
        |index| format!("parameter `{Q}`: position {index} is outside a parameter of 12 weights");
    assert_eq!(q(&[5, 12]), outside(12));
    assert_eq!(q(&[-1, 5]), outside(-1));
    let message = refusal(&[Flat(Q, [3, 4], &[1], &[1.0, 2.0])]);
    assert_eq!(
        message,
        format!("parameter `{Q}`: there are 1 positions, but 2 deltas")
    );
}

#[test]
fn deltas_that_are_not_finite_as_stored() {
    let q = |delta| [Flat(Q, [3, 4], &[1], delta)];
    let rule = "expected a finite number";
    let message = refusal(&q(&[f32::NAN]));
    assert_eq!(message, format!("parameter `{Q}`: delta 0 is NaN, {rule}"));
    // The largest f32 rounds up to infinity in bf16, and is fine in f32.
    let message = refusal(&q(&[f32::MAX]));
    assert_eq!(message, format!("parameter `{Q}`: delta 0 is inf, {rule}"));
    assert!(import(&flat_file(&q(&[f32::MAX])), DeltaDtype::F32).is_ok());
}

#[test]
fn imports_that_change_no_weight() {
    let nothing = "the ticket changes no weight";
    assert_eq!(refusal(&[]), format!("{nothing}: it has no nonzeros"));
    let empty = refusal(&[Flat(Q, [3, 4], &[], &[])]);
    assert_eq!(empty, format!("{nothing}: it has no nonzeros"));
    let zero = refusal(&[Flat(Q, [3, 4], &[1], &[0.0])]);
    assert_eq!(zero, format!("{nothing}: all deltas are zero"));
}

#[test]
fn parameters_that_do_not_fit_the_base() {
    let message = refusal(&[Flat("model.norm.weight", [3, 4], &[1], &[1.0])]);
    assert_eq!(
        message,
        "parameter `model.norm.weight` does not exist in the base `tiny`"
    );
    let message = refusal(&[Flat(EMBED, [5, 4], &[1], &[1.0])]);
    assert!(message.contains("cannot be adapted"), "{message}");
    let message = refusal(&[Flat(Q, [4, 3], &[1], &[1.0])]);
    let expected = format!("parameter `{Q}` has shape [4, 3] in the file, [3, 4] in the base");
    assert_eq!(message, expected);
}

#[test]
fn files_that_are_not_flat() {
    let refusal = |header: &str| {
        let error = import(&file(header, &[]), DeltaDtype::Bf16).unwrap_err();
        error.to_string()
    };
    assert!(refusal("{}").contains("no nonzeros"));
    let message = refusal(r#"{"__metadata__":{"shape_of":"[]"}}"#);
    assert!(
        message.contains("`shape_of` is not an object of [out, in]: "),
        "{message}"
    );
    let message = refusal(r#"{"__metadata__":{"shape_of":"{\"P\":[1,2],\"P\":[1,2]}"}}"#);
    assert_eq!(message, "the key `P` appears twice in shape_of");
    let entry = r#"{"dtype":"I32","shape":[0],"data_offsets":[0,0]}"#;
    let message = refusal(&format!(
        r#"{{"__metadata__":{{"shape_of":"{{}}"}},"P.indices":{entry}}}"#
    ));
    assert_eq!(message, "parameter `P` does not exist in the base `tiny`");
    let message = refusal(&format!(
        r#"{{"__metadata__":{{"shape_of":"{{}}"}},"P.values":{entry}}}"#
    ));
    let expected = "tensor `P.values` does not belong here; expected names that end in";
    assert!(message.starts_with(expected), "{message}");
    let ticket = import(&encoded(&sample()), DeltaDtype::Bf16).unwrap_err();
    assert!(ticket.to_string().contains("does not belong here"));
}

#[test]
fn shapes_default_to_those_of_the_base() {
    let with = flat_file(&[Flat(Q, [3, 4], &[1, 11], &[1.0, -2.0])]);
    let text = String::from_utf8_lossy(&with).into_owned();
    let header = text.find(r#""__metadata__":{"#).unwrap();
    // The same file with the metadata key replaced by another of equal length.
    let mut without = with.clone();
    let at = header + text[header..].find("shape_of").unwrap();
    without[at..at + 8].copy_from_slice(b"nothing_");
    let with = import(&with, DeltaDtype::F32).unwrap();
    let without = import(&without, DeltaDtype::F32).unwrap();
    assert_eq!(with.tensors(), without.tensors());
    assert_eq!(with.tensors()[Q].rows(), 3);
}
