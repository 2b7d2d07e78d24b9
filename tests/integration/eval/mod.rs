//! `tombola eval` by the real binary; `library` tests the evaluation behind it.

mod library;

use std::path::{Path, PathBuf};
use std::process::Output;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tombola::model::Dtype;
use tombola::ticket::DeltaDtype;

use crate::support::bases::load_tiny;
use crate::support::data_files::write_chats;
use crate::support::environment::{cache, package, tombola, utf8};
use crate::support::tickets::{RandomDeltas, encode_ticket};

/// Questions of the kind that the SQL ticket was trained on, with their answers.
const ROWS: [(&str, &str); 8] = [
    (
        "CREATE TABLE lighthouse (name VARCHAR, height INTEGER)\n\
         -- How high is the lighthouse of Skerry Point?",
        "SELECT height FROM lighthouse WHERE name = \"Skerry Point\"",
    ),
    (
        "CREATE TABLE baker (id VARCHAR, town VARCHAR)\n\
         -- How many bakers are there in each town?",
        "SELECT town, COUNT(*) FROM baker GROUP BY town",
    ),
    (
        "CREATE TABLE ferry (name VARCHAR, seats INTEGER)\n\
         -- Which ferry has the most seats?",
        "SELECT name FROM ferry ORDER BY seats DESC LIMIT 1",
    ),
    (
        "CREATE TABLE table_name_7 (score VARCHAR, visitor VARCHAR)\n\
         -- What is the score when the visitor is Otters?",
        "SELECT score FROM table_name_7 WHERE visitor = \"otters\"",
    ),
    (
        "CREATE TABLE orchard (fruit VARCHAR, trees INTEGER)\n\
         -- What fruits have more than 40 trees?",
        "SELECT fruit FROM orchard WHERE trees > 40",
    ),
    (
        "CREATE TABLE poet (name VARCHAR, born INTEGER)\n\
         -- List the names of all poets by the year they were born.",
        "SELECT name FROM poet ORDER BY born",
    ),
    (
        "CREATE TABLE bridge (length INTEGER, river VARCHAR)\n\
         -- What is the average length of the bridges over the Tweed?",
        "SELECT AVG(length) FROM bridge WHERE river = \"Tweed\"",
    ),
    (
        "CREATE TABLE choir (voices INTEGER, city VARCHAR)\n\
         -- What are the different cities that have a choir?",
        "SELECT DISTINCT city FROM choir",
    ),
];

/// A data file of these chats.
fn rows(folder: &Path, chats: &[(&str, &str)]) -> PathBuf {
    let path = folder.join("rows.jsonl");
    write_chats(&path, chats);
    path
}

fn eval(data: &Path, args: &[&str]) -> Output {
    let mut command = tombola();
    command.arg("eval").arg("--data").arg(data).args(args);
    command.env("TOMBOLA_CACHE_DIR", cache().path());
    command.output().expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The error of a failed run, which has to be one line.
fn error(output: &Output) -> String {
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

#[test]
fn a_ticket_is_measured_beside_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), &ROWS);
    let args = ["--ticket", "sql", "--match", "sql", "--max-tokens", "40"];
    let output = eval(&data, &[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rows"], 8, "{report}");
    let [base, sql] = &report["results"].as_array().unwrap()[..] else {
        panic!("{report}");
    };
    assert_eq!(
        (&base["ticket"], &sql["ticket"]),
        (&Value::Null, &json!("sql"))
    );
    let number = |result: &Value, key: &str| result[key].as_f64().expect("a number");
    for result in [base, sql] {
        let (loss, perplexity) = (number(result, "loss"), number(result, "perplexity"));
        assert!((perplexity - loss.exp()).abs() < 1e-9, "{report}");
        assert!(
            (0.0..=1.0).contains(&number(result, "exact_match")),
            "{report}"
        );
        assert_eq!(
            (&result["answers"], result.get("rouge_l")),
            (&json!(8), None)
        );
    }
    assert_eq!(base["tokens"], sql["tokens"]);
    assert!(number(sql, "loss") < 0.6 * number(base, "loss"), "{report}");
    assert!(
        number(sql, "exact_match") > number(base, "exact_match"),
        "{report}"
    );

    // The same losses in the table.
    let file = package("adapters/sql.safetensors");
    let args = ["--ticket", utf8(&file), "--no-answers", "--limit", "8"];
    let output = eval(&data, &args);
    let table = stdout(&output);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["rows", "loss", "perplexity"], "{table}");
    let shown = |result: &Value| {
        let (loss, perplexity) = (number(result, "loss"), number(result, "perplexity"));
        [
            "8".to_owned(),
            format!("{loss:.4}"),
            format!("{perplexity:.3}"),
        ]
    };
    assert_eq!(lines[1][..2], ["base", "smollm2-135m"], "{table}");
    assert_eq!(lines[1][2..], shown(base), "{table}");
    assert_eq!(
        (lines[2][0], &lines[2][1..]),
        ("sql", &shown(sql).each_ref().map(|s| &**s)[..])
    );
}

#[test]
fn a_quantised_base_has_the_loss_of_the_dense_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), &ROWS[..2]);
    let losses = |more: &[&str]| -> Vec<f64> {
        let args = ["--ticket", "sql", "--no-answers", "--json"];
        let output = eval(&data, &[&args[..], more].concat());
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let results = report["results"].as_array().unwrap().iter();
        results.map(|r| r["loss"].as_f64().unwrap()).collect()
    };
    let (dense, kept) = (losses(&[]), losses(&["--keep-quantized"]));
    assert_eq!(dense[0], kept[0]);
    // The ticket is applied to one and overlaid on the other, which rounds differently.
    assert!((dense[1] - kept[1]).abs() < 1e-3, "{dense:?} {kept:?}");
    assert!(kept[1] < kept[0]);
}

#[test]
fn long_rows_are_cut_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let long = "SELECT one ".repeat(40);
    let data = rows(folder.path(), &[ROWS[0], ("Say it.", &long)]);
    let args = ["--no-answers", "--json", "--max-length", "100"];
    let output = eval(&data, &args);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&report["rows"], &report["rows_cut"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(report["results"][0]["exact_match"], Value::Null, "{report}");
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(
        warnings.contains("rows cut to 100 tokens (--max-length): 1"),
        "{warnings}"
    );
}

#[test]
fn rouge_l_is_reported_under_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), &ROWS[..2]);
    let args = [
        "--match",
        "rouge-l",
        "--max-tokens",
        "8",
        "--json",
        "--dtype",
        "bf16",
    ];
    let report: Value = serde_json::from_str(&stdout(&eval(&data, &args))).unwrap();
    let result = &report["results"][0];
    let degree = result["rouge_l"].as_f64().expect("a degree");
    assert!(
        (0.0..=1.0).contains(&degree) && result.get("exact_match").is_none(),
        "{report}"
    );
}

#[test]
fn errors_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), &ROWS);
    let missing = folder.path().join("missing.jsonl");
    assert!(error(&eval(&missing, &[])).contains("missing.jsonl"));
    let mut malformed = std::fs::read_to_string(&data).unwrap();
    malformed += "{\"messages\": 7}\n";
    let broken = folder.path().join("broken.jsonl");
    std::fs::write(&broken, malformed).unwrap();
    let text = error(&eval(&broken, &[]));
    assert!(text.contains("broken.jsonl, line 9"), "{text}");
    let text = error(&eval(&data, &["--ticket", "nosuch"]));
    assert!(
        text.contains("`nosuch`") && text.contains("adapters/nosuch.safetensors"),
        "{text}"
    );
    let text = error(&eval(&data, &["--ticket", utf8(&data)]));
    assert!(text.contains("rows.jsonl: "), "{text}");
    let args = ["--no-answers", "--match", "sql"];
    let output = eval(&data, &args);
    assert_eq!(output.status.code(), Some(2));
    let output = eval(&data, &["--match", "bleu"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("rouge-l"));
}

#[test]
fn a_ticket_for_another_base_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), &ROWS[..1]);
    let other = load_tiny("qwen2", Dtype::F32).manifest;
    let deltas = RandomDeltas {
        density: 0.1,
        largest: 0.1,
        dtype: DeltaDtype::Bf16,
    };
    let tensors = deltas.tensors(&other, &mut StdRng::seed_from_u64(1), |_, _| true);
    let file = folder.path().join("foreign.safetensors");
    std::fs::write(&file, encode_ticket(&other, &tensors)).unwrap();
    let args = ["--no-answers", "--ticket", utf8(&file)];
    let text = error(&eval(&data, &args));
    let fingerprint = other.fingerprint.to_string();
    assert!(text.contains("foreign.safetensors: "), "{text}");
    assert!(
        text.contains("smollm2-135m") && text.contains(&fingerprint[..12]),
        "{text}"
    );
}
