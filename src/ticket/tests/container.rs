//! Files that the container reader refuses, by message.

use super::refusals::{Raw, refusal};
use super::*;

#[test]
fn a_file_of_a_few_bytes() {
    let expected = "the file has 3 bytes: too short for a safetensors file, which starts with 8";
    assert_eq!(refusal(b"abc"), expected);
}

#[test]
fn foreign_file_kinds_are_named() {
    let kinds: [(&[u8], &str); 3] = [
        (b"GGUF\x03\0\0\0\x10\x01\0\0", "a GGUF file"),
        (
            b"PK\x03\x04\x14\0\0\0\0\0\0\0",
            "a zip archive (a .pt or .bin is one, and holds a pickle)",
        ),
        (
            b"\x80\x02\x8a\x0alfc\x9cF\xf9",
            "a pickle (.pt, .bin), which is never loaded",
        ),
    ];
    for (bytes, kind) in kinds {
        let expected = format!("this is {kind}; a ticket is a safetensors file");
        assert_eq!(refusal(bytes), expected);
    }
}

#[test]
fn a_header_longer_than_the_bound() {
    let mut bytes = Raw::new().bytes();
    bytes[..8].copy_from_slice(&(MAX_HEADER_BYTES + 1).to_le_bytes());
    let expected = "the header claims 4194305 bytes; at most 4194304 are read";
    assert_eq!(refusal(&bytes), expected);
}

#[test]
fn a_header_longer_than_the_file() {
    let bytes = [&100u64.to_le_bytes()[..], b"{}"].concat();
    let expected = "the header claims 100 bytes, but only 2 follow: the file is cut short";
    assert_eq!(refusal(&bytes), expected);
}

#[test]
fn a_header_that_is_not_json() {
    for header in [
        "",
        "[]",
        "{\"a\":1}",
        "{\"a\":{}}",
        "{} {}",
        "{\"__metadata__\":{\"a\":1}}",
    ] {
        let message = refusal(&file(header, &[]));
        assert!(
            message.starts_with("the header is not a safetensors header: "),
            "{message}"
        );
    }
}

#[test]
fn a_header_with_an_unknown_field() {
    let entry = r#"{"P.deltas":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1}}"#;
    let message = refusal(&file(entry, &[]));
    assert!(message.contains("unknown field `x`"), "{message}");
}

#[test]
fn duplicate_keys() {
    let entry = r#"{"dtype":"U32","shape":[0],"data_offsets":[0,0]}"#;
    let twice = format!(r#"{{"P.deltas":{entry},"P.deltas":{entry}}}"#);
    let expected = "the key `P.deltas` appears twice in the header";
    assert_eq!(refusal(&file(&twice, &[])), expected);

    let twice = r#"{"__metadata__":{"name":"a","name":"b"}}"#;
    let expected = "the key `name` appears twice in __metadata__";
    assert_eq!(refusal(&file(twice, &[])), expected);

    let twice = r#"{"__metadata__":{"name":"a"},"__metadata__":{}}"#;
    let message = refusal(&file(twice, &[]));
    assert!(
        message.contains("duplicate field `__metadata__`"),
        "{message}"
    );

    let twice = r#"{"P.deltas":{"dtype":"U32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    let message = refusal(&file(twice, &[]));
    assert!(message.contains("duplicate field `dtype`"), "{message}");
}

#[test]
fn gaps_overlaps_and_backward_offsets() {
    let header = |start: u64, end: u64| {
        let entry = |s, e| format!(r#"{{"dtype":"U16","shape":[2],"data_offsets":[{s},{e}]}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(0, 4), entry(start, end))
    };
    let rule = "tensors must follow each other without gap or overlap";
    for (start, end) in [(5, 9), (3, 7), (4, 2), (u64::MAX, 0)] {
        let expected =
            format!("tensor `b` lies at {start}..{end}, but the data so far ends at 4: {rule}");
        assert_eq!(refusal(&file(&header(start, end), &[0; 8])), expected);
    }
}

#[test]
fn trailing_and_missing_bytes() {
    let bytes = Raw::new().bytes();
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(refusal(&longer), "1 bytes follow the last tensor");
    let shorter = &bytes[..bytes.len() - 1];
    let expected = "the header describes 34 bytes of data, but 33 follow: cut short";
    assert_eq!(refusal(shorter), expected);
}

#[test]
fn counts_beyond_the_file_are_refused_before_any_allocation() {
    let mut raw = Raw::new();
    raw.tensors[2].2 = vec![u64::MAX];
    let expected = "tensor `P.deltas` has shape [18446744073709551615] of F32, but 12 bytes";
    assert_eq!(raw.refusal(), expected);
    raw.tensors[2].2 = vec![4];
    assert_eq!(
        raw.refusal(),
        "tensor `P.deltas` has shape [4] of F32, but 12 bytes"
    );
}

#[test]
fn more_than_one_dimension() {
    let mut raw = Raw::new();
    raw.tensors[1].2 = vec![3, 1];
    assert_eq!(
        raw.refusal(),
        "tensor `P.columns` has 2 dimensions, expected 1"
    );
}

#[test]
fn other_dtypes() {
    let mut raw = Raw::new();
    raw.tensors[1].1 = "I16";
    assert_eq!(
        raw.refusal(),
        "tensor `P.columns` is I16, expected U16 or U32"
    );
    let mut raw = Raw::new();
    raw.tensors[2].1 = "I32";
    assert_eq!(
        raw.refusal(),
        "tensor `P.deltas` is I32, expected BF16 or F32"
    );
    let mut raw = Raw::new();
    raw.tensors[0].1 = "I32";
    assert_eq!(raw.refusal(), "tensor `P.row_offsets` is I32, expected U32");
}

#[test]
fn long_and_hostile_names_are_cut_and_escaped() {
    let mut raw = Raw::new();
    let name = format!("\u{1b}[2J\n{}", "x".repeat(1_000_000));
    raw.tensors.push((name, "F32", vec![1], vec![0; 4]));
    let message = raw.refusal();
    assert!(message.starts_with("tensor `\\u{1b}[2J\\nxxx"), "{message}");
    assert!(message.len() < 300);
}

#[test]
fn files_over_the_limit_folders_and_missing_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sql.safetensors");
    let bytes = Raw::new().bytes();
    std::fs::write(&path, &bytes).unwrap();
    let limit = bytes.len() as u64 - 1;
    let message = Ticket::read(&path, limit).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("the file is larger than the limit of {limit} bytes")
    );
    let message = Ticket::read(folder.path(), 1).unwrap_err().to_string();
    assert!(message.ends_with("is not a regular file"), "{message}");
    let absent = folder.path().join("absent");
    let message = Ticket::read(&absent, 1).unwrap_err().to_string();
    assert!(
        message.starts_with("cannot read ") && message.contains("absent"),
        "{message}"
    );
}
