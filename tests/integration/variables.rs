//! Variables of the environment: those that nobody meant, wrong ones, and those of other commands.

use crate::support::environment::{package, tombola, utf8};

/// Exit status, and what standard error says, of a command with these variables.
fn run(line: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = tombola();
    for name in ["TOMBOLA_PORT", "TOMBOLA_MODEL", "TOMBOLA_DTYPE"] {
        command.env_remove(name);
    }
    let output = command.args(line).envs(variables.iter().copied()).output();
    let output = output.expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("an exit status"), error)
}

/// What a server says that ends for want of a base.
fn serve(line: &[&str], variables: &[(&str, &str)]) -> String {
    let (status, error) = run(line, variables);
    assert_eq!(status, 1, "{line:?}: {error}");
    assert!(error.contains("/no/such/base"), "{line:?}: {error}");
    error
}

const LINK: (&str, &str) = ("TOMBOLA_PORT", "tcp://10.96.0.12:8000");
const BASE: [&str; 2] = ["--model", "/no/such/base"];
const SERVE: [&str; 5] = ["serve", "--model", "/no/such/base", "--port", "0"];

#[test]
fn the_link_of_a_kubernetes_service_stops_no_command() {
    let ticket = package("adapters/sql.safetensors");
    let (status, error) = run(&["ticket", "inspect", utf8(&ticket)], &[LINK]);
    assert_eq!((status, &*error), (0, ""));
    for line in [&SERVE[..], &SERVE[1..]] {
        let error = serve(line, &[LINK]);
        let note = error
            .lines()
            .find(|line| line.contains(LINK.1))
            .expect("a note");
        assert!(note.contains(LINK.0) && note.contains("ignored"), "{note}");
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let empty = [
        "TOMBOLA_PORT",
        "TOMBOLA_DTYPE",
        "TOMBOLA_MODEL",
        "TOMBOLA_NO_WATCH",
    ];
    let empty = empty.map(|name| (name, ""));
    let error = serve(&SERVE, &empty);
    assert!(!error.contains("TOMBOLA"), "{error}");
}

#[test]
fn an_error_names_the_variable_that_a_value_came_from() {
    let wrong = [("TOMBOLA_MAX_QUEUE", "many")];
    for line in [&SERVE[..], &SERVE[1..]] {
        let (status, error) = run(line, &wrong);
        assert_eq!(status, 2, "{error}");
        assert!(
            error.contains("TOMBOLA_MAX_QUEUE") && error.contains("--max-queue"),
            "{error}"
        );
    }
    let typed = [&SERVE[..], &["--max-queue", "more"]].concat();
    let error = run(&typed, &wrong).1;
    assert!(
        error.contains("'more'") && !error.contains("TOMBOLA"),
        "{error}"
    );
    let line = [&SERVE[..], &["--ticket-mode", "apply"]].concat();
    let (status, error) = run(&line, &[("TOMBOLA_DETERMINISTIC", "true")]);
    assert_eq!(status, 1, "{error}");
    assert!(
        error.contains("--deterministic comes from TOMBOLA_DETERMINISTIC"),
        "{error}"
    );
    let error = run(&line, &[("TOMBOLA_DTYPE", "int9")]).1;
    assert!(error.contains("TOMBOLA_DTYPE"), "{error}");
}

#[test]
fn the_variables_of_the_server_do_not_concern_other_commands() {
    let ticket = package("adapters/sql.safetensors");
    let inspect = ["ticket", "inspect", utf8(&ticket)];
    let wrong = [("TOMBOLA_MAX_QUEUE", "many"), ("TOMBOLA_PORT", "no port")];
    assert_eq!(run(&inspect, &wrong), (0, String::new()));
}

#[test]
fn the_base_may_be_the_argument_of_serve() {
    let line = ["serve", "/no/such/base", "--port", "0"];
    serve(&line, &[]);
    serve(&line, &[("TOMBOLA_MODEL", "/another/base")]);
    let (status, error) = run(&[&line[..], &BASE[..]].concat(), &[]);
    assert_eq!(status, 2);
    assert!(error.contains("MODEL and as --model"), "{error}");
}

#[test]
fn a_negative_number_is_out_of_range_and_no_unknown_flag() {
    let train = ["train", "--data", "a", "--name", "b", "--lr", "-1"];
    let (status, error) = run(&train, &[]);
    assert_eq!(status, 2);
    assert!(
        error.contains("'-1'") && error.contains("a number above 0"),
        "{error}"
    );
}
