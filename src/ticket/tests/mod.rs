//! Shared samples, and the behaviour of a valid ticket.

mod bind;
mod container;
mod import;
mod merge;
mod properties;
mod refusals;
mod top_k;

use std::collections::BTreeMap;

use half::bf16;
use safetensors::SafeTensors;
use serde_json::json;

use super::*;

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const EMBED: &str = "model.embed_tokens.weight";
const WIDE: usize = MAX_U16_COLUMNS + 10;

/// A base with a narrow and a wide projection, and an embedding that tickets leave alone.
fn base() -> BaseManifest {
    let parameter = |name: &str, shape: [usize; 2], adaptable| {
        let shape = shape.to_vec();
        (name.to_owned(), ParameterInfo { shape, adaptable })
    };
    BaseManifest {
        name: "tiny".to_owned(),
        fingerprint: Digest::of(b"tiny"),
        parameters: BTreeMap::from([
            parameter(Q, [3, 4], true),
            parameter(DOWN, [2, WIDE], true),
            parameter(EMBED, [5, 4], false),
        ]),
    }
}

fn bf16s(values: &[f32]) -> Deltas {
    Deltas::from_f32(values.to_vec(), DeltaDtype::Bf16)
}

/// Nonzeros in the first and last row, with an empty row between.
fn q_delta() -> TensorDelta {
    TensorDelta::from_flat([3, 4], &[1, 3, 8], bf16s(&[0.5, -1.0, 0.25])).unwrap()
}

fn down_delta() -> TensorDelta {
    let last = 2 * WIDE - 1;
    TensorDelta::from_flat([2, WIDE], &[last], Deltas::F32(vec![2.0])).unwrap()
}

fn metadata() -> Metadata {
    Metadata {
        license: Some("CC-BY-4.0".to_owned()),
        training: Some(json!({"steps": 30, "seed": 7, "loss": [1.2, 0.283114]})),
        ..Metadata::new("sql", &base(), 4)
    }
}

fn sample() -> Ticket {
    let tensors = [(Q.to_owned(), q_delta()), (DOWN.to_owned(), down_delta())];
    Ticket::new(metadata(), BTreeMap::from(tensors)).unwrap()
}

fn encoded(ticket: &Ticket) -> Vec<u8> {
    Ticket::encode(ticket.metadata(), ticket.tensors()).unwrap()
}

/// A file of the given header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

#[test]
fn the_file_is_canonical() {
    let tensors = BTreeMap::from([(Q.to_owned(), q_delta())]);
    let mut metadata = metadata();
    metadata.density = 0.0001;
    let bytes = Ticket::encode(&metadata, &tensors).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(header_bytes);
    let fingerprint = Digest::of(b"tiny");
    let expected = format!(
        "{{\"__metadata__\":{{\"base.fingerprint\":\"{fingerprint}\",\"base.name\":\"tiny\",\
         \"density\":\"0.0001\",\"format\":\"lota-ticket\",\"license\":\"CC-BY-4.0\",\
         \"name\":\"sql\",\
         \"training\":\"{{\\\"loss\\\":[1.2,0.283114],\\\"seed\\\":7,\\\"steps\\\":30}}\",\
         \"version\":\"1\"}},\
         \"{Q}.columns\":{{\"data_offsets\":[16,22],\"dtype\":\"U16\",\"shape\":[3]}},\
         \"{Q}.deltas\":{{\"data_offsets\":[22,28],\"dtype\":\"BF16\",\"shape\":[3]}},\
         \"{Q}.row_offsets\":{{\"data_offsets\":[0,16],\"dtype\":\"U32\",\"shape\":[4]}}}}"
    );
    assert_eq!(
        str::from_utf8(header).unwrap().trim_end_matches(' '),
        expected
    );
    assert_eq!(header_bytes % 8, 0);
    let row_offsets = [0u8, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
    let columns = [1, 0, 3, 0, 0, 0];
    let deltas = [0x00, 0x3f, 0x80, 0xbf, 0x80, 0x3e];
    assert_eq!(data, [&row_offsets[..], &columns, &deltas].concat());
}

#[test]
fn equal_training_data_gives_equal_bytes_in_any_order_of_its_keys() {
    let tensors = BTreeMap::from([(Q.to_owned(), q_delta())]);
    let encode = |training: &str| {
        let training = Some(serde_json::from_str(training).unwrap());
        let metadata = Metadata {
            training,
            ..metadata()
        };
        Ticket::encode(&metadata, &tensors).unwrap()
    };
    let one = encode(r#"{"b": {"y": 1, "x": [{"q": 1, "p": 2}]}, "a": 0}"#);
    let other = encode(r#"{"a": 0, "b": {"x": [{"p": 2, "q": 1}], "y": 1}}"#);
    assert_eq!(one, other);
}

#[test]
fn the_safetensors_crate_opens_it_and_every_tensor_is_aligned() {
    let bytes = encoded(&sample());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 6);
    let row_offsets = tensors.tensor(&format!("{DOWN}.row_offsets")).unwrap();
    assert_eq!(row_offsets.shape(), [3]);
    assert_eq!(row_offsets.data(), [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    for (name, view) in tensors.tensors() {
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset % (view.dtype().bitsize() / 8), 0, "{name}");
    }
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "lota-ticket");
}

#[test]
fn a_written_ticket_reads_back_equal() {
    let ticket = sample();
    let bytes = encoded(&ticket);
    let read = Ticket::from_bytes(&bytes).unwrap();
    assert_eq!(read.metadata(), &metadata());
    assert_eq!(read.tensors(), ticket.tensors());
    assert_eq!(read.digest(), Digest::of(&bytes));
    assert_eq!(read.digest(), ticket.digest());
    assert_eq!(read.file_bytes(), bytes.len() as u64);
    assert_eq!(read.nonzeros(), 4);
    // Q: 4 offsets, 3 u16, 3 bf16; DOWN: 3 offsets, 1 u32, 1 f32.
    assert_eq!(read.resident_bytes(), (16 + 6 + 6) + (12 + 4 + 4));
}

#[test]
fn a_ticket_round_trips_through_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sql.safetensors");
    std::fs::write(&path, "an older file").unwrap();
    let ticket = sample();
    assert_eq!(ticket.write(&path).unwrap(), ticket.digest());
    let read = Ticket::read(&path, ticket.file_bytes()).unwrap();
    assert_eq!(read.digest(), ticket.digest());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file stays behind");
}

#[test]
fn entries_are_row_major() {
    let delta = q_delta();
    let entries: Vec<_> = delta.entries().collect();
    assert_eq!(entries, [(0, 1, 0.5), (0, 3, -1.0), (2, 0, 0.25)]);
    assert_eq!(delta.rows(), 3);
    assert_eq!(delta.row_offsets(), [0, 2, 2, 3]);
    assert_eq!(delta.columns(), &Columns::U16(vec![1, 3, 0]));
}

#[test]
fn bf16_rounds_to_nearest_ties_to_even() {
    // bf16 keeps 8 significant bits: 1 + 2^-8 is halfway between 1 and 1 + 2^-7.
    let halfway: f32 = 1.0 + 1.0 / 256.0;
    let above = f32::from_bits(halfway.to_bits() + 1);
    let odd_halfway = 1.0 + 3.0 / 256.0;
    let Deltas::Bf16(rounded) = bf16s(&[halfway, above, odd_halfway]) else {
        panic!("asked for bf16");
    };
    let expected = [1.0, 1.0 + 1.0 / 128.0, 1.0 + 1.0 / 64.0];
    assert_eq!(rounded, expected.map(bf16::from_f32));
}

#[test]
fn a_ticket_binds_to_its_base() {
    let bound = sample().bind(&base(), false).unwrap();
    assert_eq!(bound.nonzeros(), 4);
    assert_eq!(bound.metadata().name, "sql");
}

#[test]
fn a_foreign_base_is_allowed_only_on_request_and_only_if_it_fits() {
    let mut foreign = base();
    foreign.fingerprint = Digest::of(b"other");
    assert!(sample().bind(&foreign, false).is_err());
    assert!(sample().bind(&foreign, true).is_ok());
    foreign.parameters.get_mut(Q).unwrap().shape = vec![4, 4];
    assert!(sample().bind(&foreign, true).is_err());
}

#[test]
fn names_are_safe_in_files_and_urls() {
    for name in ["sql", "Sql", "0", "a.b_c-d", &"x".repeat(64)] {
        assert!(validate_name(name).is_ok(), "{name}");
    }
    for name in [
        "",
        ".",
        "-a",
        "_a",
        "a/b",
        "a b",
        "a\n",
        "é",
        &"x".repeat(65),
    ] {
        assert!(
            matches!(validate_name(name), Err(TicketError::Name(_))),
            "{name}"
        );
    }
}

#[test]
fn density_counts_over_the_adaptable_weights() {
    let metadata = Metadata::new("sql", &base(), 4);
    assert_eq!(metadata.density, 4.0 / (3 * 4 + 2 * WIDE) as f64);
}

#[test]
fn digests_are_written_and_read_in_lower_case_hexadecimal() {
    let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let digest = Digest::of(b"abc");
    assert_eq!(digest.to_string(), text);
    assert_eq!(text.parse::<Digest>().unwrap(), digest);
    for bad in ["", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
}
