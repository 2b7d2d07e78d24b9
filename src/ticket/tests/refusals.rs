//! Well-formed safetensors files that are refused as tickets, by message.

use serde_json::{Value, json};

use super::*;

/// A file to corrupt: header items in file order, data contiguous.
pub(super) struct Raw {
    metadata: serde_json::Map<String, Value>,
    /// Name, dtype, shape, data.
    pub tensors: Vec<(String, &'static str, Vec<u64>, Vec<u8>)>,
}

impl Raw {
    pub fn new() -> Self {
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

    pub fn bytes(&self) -> Vec<u8> {
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

    pub fn refusal(&self) -> String {
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

pub(super) fn refusal(bytes: &[u8]) -> String {
    let message = Ticket::from_bytes(bytes).unwrap_err().to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

#[test]
fn the_raw_sample_is_valid() {
    let ticket = Ticket::from_bytes(&Raw::new().bytes()).unwrap();
    assert_eq!(ticket.nonzeros(), 3);
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
    let expected =
        "this is a flat delta file, not a ticket; convert it with `tombola ticket import`";
    assert_eq!(refusal(&file(header, &[])), expected);
}

#[test]
fn the_message_for_another_version_names_the_supported_one() {
    let expected = "ticket version `2` is not supported; this build reads version `1`";
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
    let expected = "metadata `scale` is not defined in ticket version `1`";
    assert_eq!(Raw::with_metadata("scale", "2"), expected);
}

#[test]
fn metadata_with_invalid_values() {
    let share = "expected a share above 0 and up to 1";
    let cases = [
        (
            "name",
            "../x",
            "\"../x\" is not a ticket name: expected [A-Za-z0-9][A-Za-z0-9._-]{0,63}".into(),
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
    let message = Raw::with_metadata("training", &"[".repeat(MAX_TRAINING_BYTES + 1));
    assert_eq!(
        message,
        "metadata `training` has 65537 bytes of JSON, at most 65536 fit"
    );
    let message = Raw::with_metadata("training", &"[".repeat(MAX_TRAINING_BYTES));
    assert!(message.contains("recursion limit exceeded"), "{message}");
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
fn one_of_the_three_missing() {
    for missing in 0..3 {
        let mut raw = Raw::new();
        let (name, ..) = raw.tensors.remove(missing);
        assert_eq!(raw.refusal(), format!("tensor `{name}` is missing"));
    }
}

#[test]
fn row_offsets_that_are_not_offsets() {
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
        name: "-a".to_owned(),
        ..metadata()
    };
    assert!(refusal(bad_name).contains("is not a ticket name"));
    let bad_density = Metadata {
        density: f64::NAN,
        ..metadata()
    };
    assert!(refusal(bad_density).contains("metadata `density`"));
    let training = |bytes: usize| Metadata {
        training: Some("x".repeat(bytes - 2).into()),
        ..metadata()
    };
    assert!(Ticket::encode(&training(MAX_TRAINING_BYTES), &tensors).is_ok());
    assert_eq!(
        refusal(training(MAX_TRAINING_BYTES + 1)),
        "metadata `training` has 65537 bytes of JSON, at most 65536 fit"
    );
    let long = "x".repeat(MAX_HEADER_BYTES as usize / 3);
    let tensors = BTreeMap::from([(long, q_delta())]);
    let refusal = Ticket::encode(&metadata(), &tensors)
        .unwrap_err()
        .to_string();
    assert!(refusal.starts_with("the header claims"), "{refusal}");
}
