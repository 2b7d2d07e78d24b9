//! `tombola train`: the real binary on the default base.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tombola::ticket::Ticket;

use crate::support::data_files::chat_row;
use crate::support::environment::{self, cache, package};

/// A temporary working folder with a data file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary folder"));
        fs::write(place.path("rows.jsonl"), rows(8)).expect("rows");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Trains for six steps of two rows, with a random mask of 0.1 %.
    fn command(&self, more: &[&str]) -> Command {
        let mut command = environment::tombola();
        command
            .current_dir(self.0.path())
            .args("train --data rows.jsonl --name cats --out out".split(' '))
            .args("--score random --density 0.001 --steps 6 --batch 2 --lr 1e-3".split(' '))
            .arg("--cache-dir")
            .arg(cache().path())
            .args(more)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the binary runs")
    }

    fn ticket(&self) -> PathBuf {
        self.path("out/cats.safetensors")
    }

    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("runs/cats/metrics.jsonl")).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.collect()
    }
}

fn rows(n: usize) -> String {
    let row = |i: usize| {
        let question = format!("How many cats are in room {i}?");
        chat_row(
            &question,
            &format!("SELECT COUNT(*) FROM cats WHERE room = {i}"),
        )
    };
    (0..n).map(row).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

#[test]
fn a_ticket_is_trained_reported_and_the_same_after_a_kill() {
    let whole = Place::new();
    let output = whole.run(&["--valid", "rows.jsonl", "--license", "CC0-1.0"]);
    assert_success(&output);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        printed.contains("wrote out/cats.safetensors: 106,168 nonzeros")
            && printed.contains("curl http://127.0.0.1:8000/v1/chat/completions")
            && printed.contains(r#""model":"cats""#),
        "{printed}"
    );
    assert!(
        printed.contains("perplexity") && printed.contains("report.html"),
        "{printed}"
    );
    let ticket = Ticket::read(&whole.ticket(), 1 << 30).unwrap();
    let metadata = ticket.metadata();
    assert_eq!(metadata.license.as_deref(), Some("CC0-1.0"));
    let training = metadata.training.as_ref().expect("how it was trained");
    assert_eq!(training["train"]["adapt"]["steps"], 6);
    let losses: Vec<f64> = whole
        .metrics()
        .iter()
        .filter_map(|event| event.get("loss")?.as_f64())
        .collect();
    assert!(losses.last().unwrap() < &losses[0], "{losses:?}");
    let report = fs::read_to_string(whole.path("runs/cats/report.html")).unwrap();
    assert!(report.contains("cats") && report.contains("</html>"));

    let killed = Place::new();
    let arguments = "--valid rows.jsonl --license CC0-1.0 --save-every 2";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let mut child = killed.command(&arguments);
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    let step = |event: &Value| event["event"] == "step" && event["step"].as_u64() >= Some(3);
    while !killed.metrics().iter().any(step) {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended before it could be killed"
        );
        assert!(Instant::now() < deadline, "the run took no step");
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.ticket().exists());
    let again = killed.run(&arguments);
    assert!(
        stderr(&again).contains("--resume continues it"),
        "{}",
        stderr(&again)
    );
    let other = killed.run(&[&arguments[..], &["--resume", "--seed", "5"]].concat());
    assert!(
        stderr(&other).contains("another train.seed: 0, now 5"),
        "{}",
        stderr(&other)
    );
    assert_success(&killed.run(&[&arguments[..], &["--resume"]].concat()));
    let bytes = |place: &Place| fs::read(place.ticket()).unwrap();
    assert!(
        bytes(&whole) == bytes(&killed),
        "the same ticket, byte for byte"
    );
}

#[test]
fn an_interrupt_saves_the_run_and_names_resume() {
    let place = Place::new();
    let mut command = place.command(&["--steps", "500"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    while !place.metrics().iter().any(|event| event["event"] == "step") {
        assert!(Instant::now() < deadline, "the run took no step");
        sleep(Duration::from_millis(20));
    }
    environment::signal("INT", child.id());
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let message = stderr(&output);
    assert!(
        message.contains("is saved; --resume continues it"),
        "{message}"
    );
    assert!(place.path("runs/cats/state.safetensors").exists() && !place.ticket().exists());
}

#[test]
fn a_malformed_row_is_named_and_nothing_is_trained() {
    let place = Place::new();
    let text = rows(3) + "{\"messages\": 7}\n" + &rows(1);
    fs::write(place.path("rows.jsonl"), text).unwrap();
    let output = place.run(&[]);
    assert!(!output.status.success());
    let message = stderr(&output);
    assert!(
        message.contains("rows.jsonl") && message.contains("line 4"),
        "{message}"
    );
    assert!(!place.path("runs").exists() && !place.path("out").exists());
}

#[test]
fn a_full_disk_is_reported_and_leaves_no_partial_file() {
    let place = Place::new();
    let command = place.command(&[]);
    // A limit on the size of files simulates a full disk.
    let mut limited = Command::new("sh");
    limited
        .current_dir(place.0.path())
        .args(["-c", "trap '' XFSZ; ulimit -f 800; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    let output = limited.output().expect("a shell");
    assert!(!output.status.success());
    let message = stderr(&output);
    assert!(
        message.contains("cannot write") && message.contains("state.safetensors"),
        "{message}"
    );
    let run = place.path("runs/cats");
    let names = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["config.json", "metrics.jsonl"]);
    assert!(!place.ticket().exists());
}

#[test]
fn a_ticket_that_cannot_be_written_is_not_lost() {
    let place = Place::new();
    // A file cannot replace a folder that is not empty.
    fs::create_dir_all(place.ticket().join("in the way")).unwrap();
    let output = place.run(&[]);
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("cats.safetensors"),
        "{}",
        stderr(&output)
    );
    fs::remove_dir_all(place.ticket()).unwrap();
    assert_success(&place.run(&["--resume"]));
    assert!(Ticket::read(&place.ticket(), 1 << 30).is_ok());
}

#[test]
fn a_ticket_on_top_of_another_is_measured_with_it() {
    let place = Place::new();
    assert_success(&place.run(&[]));
    let arguments =
        "--name dogs --avoid cats --on-top-of cats --seed 1 --valid rows.jsonl --no-answers";
    let output = place.run(&arguments.split(' ').collect::<Vec<_>>());
    assert_success(&output);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("cats + dogs"), "{printed}");
}

#[test]
fn tickets_that_cannot_be_used_are_refused_before_training() {
    let place = Place::new();
    for (arguments, expected) in [
        (&["--avoid", "nobody"][..], "nobody"),
        (&["--name", "Cats!"][..], "not a ticket name"),
        (&["--dtype", "bf16"][..], "f32"),
        (&["--density", "0"][..], "density"),
        (&["--resume"][..], "nothing to resume"),
        (&["--save-calibrated", "x"][..], "moves no weight"),
    ] {
        let output = place.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert!(!place.ticket().exists());
}

/// `tombola train` writes to `runs/` by default.
#[test]
fn the_default_run_folder_is_not_tracked() {
    let ignored = fs::read_to_string(package(".gitignore"));
    assert!(ignored.unwrap().lines().any(|line| line == "/runs"));
}
