//! Every way in which a ticket is refused, by its message.

use serde_json::{Value, json};

use super::*;

/// A file to spoil: header items in file order, data as one run.
struct Raw {
    metadata: serde_json::Map<String, Value>,
    /// Name, dtype, shape, data.
    tensors: Vec<(String, &'static str, Vec<u64>, Vec<u8>)>,
}

impl Raw {
    fn new() -> Self {
        let metadata = json!({
            "format": "lota-ticket", "version": "1", "name": "sql", "density": "0.25",
            "base.name": "tiny", "base.fingerprint": Digest::of(b"tiny").to_string(),
        });
        let mut raw = Self {
            metadata: metadata.as_object().unwrap().clone(),
            tensors: Vec::new(),
        };
        raw.csr(&[0, 2, 2, 3], &[1, 3, 0], &[0.5, -1.0, 0.25]);
        raw
    }

    /// Replaces the tensors with those of one parameter `P`.
    fn csr(&mut self, row_offsets: &[u32], columns: &[u16], deltas: &[f32]) {
        fn bytes<const N: usize>(parts: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
            parts.flatten().collect()
        }
        let shape = |length: usize| vec![length as u64];
        let offsets = bytes(row_offsets.iter().map(|v| v.to_le_bytes()));
        let column = bytes(columns.iter().map(|v| v.to_le_bytes()));
        let delta = bytes(deltas.iter().map(|v| v.to_le_bytes()));
        self.tensors = vec![
            (
                "P.row_offsets".to_owned(),
                "U32",
                shape(row_offsets.len()),
                offsets,
            ),
            ("P.columns".to_owned(), "U16", shape(columns.len()), column),
            ("P.deltas".to_owned(), "F32", shape(deltas.len()), delta),
        ];
    }

    fn bytes(&self) -> Vec<u8> {
        let mut items = vec![format!("\"__metadata__\":{}", json!(self.metadata))];
        let mut data = Vec::new();
        for (name, dtype, shape, bytes) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            items.push(format!("{}:{entry}", json!(name)));
            data.extend(bytes);
        }
        file(&format!("{{{}}}", items.join(",")), &data)
    }

    fn refusal(&self) -> String {
        refusal(&self.bytes())
    }

    fn with_metadata(key: &str, value: &str) -> String {
        let mut raw = Self::new();
        raw.metadata.insert(key.to_owned(), value.into());
        raw.refusal()
    }

    fn with_csr(row_offsets: &[u32], columns: &[u16], deltas: &[f32]) -> String {
        let mut raw = Self::new();
        raw.csr(row_offsets, columns, deltas);
        raw.refusal()
    }
}

fn refusal(bytes: &[u8]) -> String {
    let message = Ticket::from_bytes(bytes).unwrap_err().to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

#[test]
fn the_raw_sample_is_valid_unspoiled() {
    let ticket = Ticket::from_bytes(&Raw::new().bytes()).unwrap();
    assert_eq!(ticket.nonzeros(), 3);
}

#[test]
fn a_file_of_a_few_bytes() {
    let expected = "the file has 3 bytes: too short for a safetensors file, which starts with 8";
    assert_eq!(refusal(b"abc"), expected);
}

#[test]
fn other_kinds_of_file_are_named() {
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
    let expected = "the header claims 16777217 bytes; at most 16777216 are read";
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
fn another_format() {
    let mut raw = Raw::new();
    raw.metadata.remove("format");
    let missing = "not a ticket: metadata `format` is missing, expected `lota-ticket`";
    assert_eq!(raw.refusal(), missing);
    let other = "not a ticket: metadata `format` is `pt`, expected `lota-ticket`";
    assert_eq!(Raw::with_metadata("format", "pt"), other);
}

#[test]
fn the_flat_layout_is_named() {
    let header = r#"{"__metadata__":{"shape_of":"{}"}}"#;
    let expected = "this is a flat delta file, not a ticket: turn it into one with an import";
    assert_eq!(refusal(&file(header, &[])), expected);
}

#[test]
fn another_version_says_which_is_understood() {
    let expected = "ticket version `2` is not understood; this build reads version `1`";
    assert_eq!(Raw::with_metadata("version", "2"), expected);
}

#[test]
fn metadata_missing_or_unknown() {
    let keys = [
        "version",
        "name",
        "base.name",
        "base.fingerprint",
        "density",
    ];
    for key in keys {
        let mut raw = Raw::new();
        raw.metadata.remove(key);
        assert_eq!(raw.refusal(), format!("metadata `{key}` is missing"));
    }
    let expected = "metadata `scale` is not known to ticket version `1`";
    assert_eq!(Raw::with_metadata("scale", "2"), expected);
}

#[test]
fn metadata_that_makes_no_sense() {
    let share = "expected a share above 0 and up to 1";
    let cases = [
        (
            "name",
            "../x",
            "\"../x\" is not a ticket name: expected [a-z0-9][a-z0-9._-]{0,63}".into(),
        ),
        (
            "density",
            "much",
            "metadata `density` is `much`, expected a number".into(),
        ),
        ("density", "0", format!("metadata `density` is 0, {share}")),
        (
            "density",
            "1.5",
            format!("metadata `density` is 1.5, {share}"),
        ),
        (
            "density",
            "NaN",
            format!("metadata `density` is NaN, {share}"),
        ),
        ("base.name", " ", "metadata `base.name` is empty".into()),
        (
            "license",
            "\u{1b}[31m",
            "metadata `license` holds a control character".into(),
        ),
        (
            "base.fingerprint",
            "AB",
            "metadata `base.fingerprint` is not a SHA-256 digest of 64 lower-case \
             hexadecimal digits"
                .into(),
        ),
    ];
    for (key, value, expected) in cases {
        assert_eq!(Raw::with_metadata(key, value), expected);
    }
    let message = Raw::with_metadata("training", "{");
    assert!(
        message.starts_with("metadata `training` is not JSON: "),
        "{message}"
    );
    let message = Raw::with_metadata("license", &"x".repeat(2000));
    assert_eq!(
        message,
        "metadata `license` has 2000 bytes, at most 1024 fit"
    );
}

#[test]
fn unknown_tensors() {
    for name in ["P.bias", "P", ".deltas", "P.weight.indices"] {
        let mut raw = Raw::new();
        raw.tensors
            .push((name.to_owned(), "F32", vec![1], vec![0; 4]));
        let expected = format!(
            "tensor `{name}` does not belong here; \
             expected names that end in row_offsets, columns, deltas"
        );
        assert_eq!(raw.refusal(), expected);
    }
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
fn one_of_the_three_missing() {
    for missing in 0..3 {
        let mut raw = Raw::new();
        let (name, ..) = raw.tensors.remove(missing);
        assert_eq!(raw.refusal(), format!("tensor `{name}` is missing"));
    }
}

#[test]
fn row_offsets_that_are_not() {
    let deltas = [1.0, 2.0, 3.0];
    let refusal = |row_offsets: &[u32]| Raw::with_csr(row_offsets, &[1, 3, 0], &deltas);
    let p = "parameter `P`: row_offsets";
    for short in [&[][..], &[0]] {
        let count = short.len();
        let expected = format!("{p} has {count} entries, expected at least 2 (rows + 1)");
        assert_eq!(refusal(short), expected);
    }
    assert_eq!(refusal(&[1, 2, 3]), format!("{p} starts at 1, expected 0"));
    assert_eq!(
        refusal(&[0, 3, 2, 3]),
        format!("{p} falls from 3 to 2 at row 1")
    );
    let expected = format!("{p} ends at 4, but there are 3 columns and 3 deltas");
    assert_eq!(refusal(&[0, 2, 4]), expected);
    let message = Raw::with_csr(&[0, 3], &[0, 1, 3], &[1.0]);
    assert_eq!(
        message,
        format!("{p} ends at 3, but there are 3 columns and 1 deltas")
    );
}

#[test]
fn columns_out_of_order() {
    for column in [0, 1] {
        let message = Raw::with_csr(&[0, 0, 2], &[1, column], &[1.0, 2.0]);
        let expected = format!(
            "parameter `P`: column {column} follows 1 in row 1; columns must strictly increase"
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn deltas_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let message = Raw::with_csr(&[0, 2], &[0, 1], &[1.0, value]);
        let expected = format!("parameter `P`: delta 1 is {value}, expected a finite number");
        assert_eq!(message, expected);
    }
    let not_finite = TensorDelta::new(vec![0, 1], Columns::U16(vec![0]), bf16s(&[f32::NAN]));
    assert!(matches!(
        not_finite,
        Err(DeltaError::NotFinite { index: 0, .. })
    ));
}

#[test]
fn tickets_that_change_no_weight() {
    let mut raw = Raw::new();
    raw.tensors.clear();
    assert_eq!(
        raw.refusal(),
        "the ticket changes no weight: it has no nonzeros"
    );
    let message = Raw::with_csr(&[0, 0], &[], &[]);
    assert_eq!(message, "the ticket changes no weight: it has no nonzeros");
    let message = Raw::with_csr(&[0, 2], &[0, 1], &[0.0, -0.0]);
    assert_eq!(message, "the ticket changes no weight: all deltas are zero");
    // The writer refuses the same.
    let zeros = TensorDelta::from_flat([1, 2], &[0, 1], bf16s(&[0.0, -0.0])).unwrap();
    let tensors = BTreeMap::from([(Q.to_owned(), zeros)]);
    let written = Ticket::encode(&metadata(), &tensors);
    assert!(matches!(written, Err(TicketError::ChangesNothing(_))));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let tensors = sample().tensors;
    let refusal = |metadata: Metadata| Ticket::encode(&metadata, &tensors).unwrap_err().to_string();
    let bad_name = Metadata {
        name: "A".to_owned(),
        ..metadata()
    };
    assert!(refusal(bad_name).contains("is not a ticket name"));
    let bad_density = Metadata {
        density: f64::NAN,
        ..metadata()
    };
    assert!(refusal(bad_density).contains("metadata `density`"));
    let training = Some("x".repeat(MAX_HEADER_BYTES as usize).into());
    let too_long = Metadata {
        training,
        ..metadata()
    };
    assert!(refusal(too_long).starts_with("the header claims"));
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

/// The message of binding the sample after `spoil` changed the base.
fn bind_refusal(spoil: impl FnOnce(&mut BaseManifest)) -> String {
    let mut base = base();
    spoil(&mut base);
    sample().bind(&base, false).unwrap_err().to_string()
}

#[test]
fn a_foreign_base_is_told_with_both_fingerprints() {
    let other = Digest::of(b"other");
    let message = bind_refusal(|base| base.fingerprint = other);
    let own = Digest::of(b"tiny");
    let expected = format!(
        "the ticket is for another base: it was made for `tiny` (fingerprint {own}), \
         this is `tiny` (fingerprint {other})"
    );
    assert_eq!(message, expected);
}

#[test]
fn parameters_that_the_base_lacks_or_keeps() {
    let message = bind_refusal(|base| drop(base.parameters.remove(Q)));
    assert_eq!(
        message,
        format!("parameter `{Q}` does not exist in the base `tiny`")
    );
    let rule = "cannot be adapted: tickets adapt attention and MLP projection weights";
    let message = bind_refusal(|base| base.parameters.get_mut(Q).unwrap().adaptable = false);
    assert_eq!(message, format!("parameter `{Q}` {rule}"));
    let tensors = BTreeMap::from([(EMBED.to_owned(), q_delta())]);
    let ticket = Ticket::new(metadata(), tensors).unwrap();
    let message = ticket.bind(&base(), false).unwrap_err().to_string();
    assert_eq!(message, format!("parameter `{EMBED}` {rule}"));
}

#[test]
fn parameters_of_another_shape() {
    let reshape = |name, shape: [usize; 2]| {
        move |base: &mut BaseManifest| {
            base.parameters.get_mut(name).unwrap().shape = shape.to_vec();
        }
    };
    let message = bind_refusal(reshape(Q, [4, 4]));
    assert_eq!(
        message,
        format!("parameter `{Q}` has 3 rows, the base's has 4")
    );
    let message = bind_refusal(reshape(Q, [3, 3]));
    let expected = format!("parameter `{Q}`: column 3 in row 0 is outside the base's 3 columns");
    assert_eq!(message, expected);
    let message = bind_refusal(reshape(DOWN, [2, WIDE - 1]));
    let (last, columns) = (WIDE - 1, WIDE - 1);
    let expected = format!(
        "parameter `{DOWN}`: column {last} in row 1 is outside the base's {columns} columns"
    );
    assert_eq!(message, expected);
}

#[test]
fn columns_of_the_wrong_width() {
    let message = bind_refusal(|base| base.parameters.get_mut(Q).unwrap().shape = vec![3, 65537]);
    let expected = format!("parameter `{Q}`: columns are U16, expected U32 for 65537 columns");
    assert_eq!(message, expected);
    let message = bind_refusal(|b| b.parameters.get_mut(DOWN).unwrap().shape = vec![2, 65536]);
    let expected = format!("parameter `{DOWN}`: columns are U32, expected U16 for 65536 columns");
    assert_eq!(message, expected);
}
