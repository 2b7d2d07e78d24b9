//! `--deterministic`: one answer to one request, in any batch.

use serde_json::{Value, json};

use crate::support::environment::tombola;
use crate::support::server::{Server, get, metric, post};

const QUESTION: &str =
    "CREATE TABLE head (age INTEGER, name VARCHAR)\n-- How many heads are older than 56?";

/// The text and the log-probabilities of one answer.
fn answer(server: &Server, model: &str, max_tokens: usize) -> Value {
    let body = json!({
        "model": model, "prompt": QUESTION, "temperature": 0, "max_tokens": max_tokens,
        "logprobs": 3, "ignore_eos": true,
    });
    let (status, answer) = post(server, "/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0].clone()
}

#[test]
fn neighbours_under_other_tickets_change_neither_text_nor_logprobs() {
    let server = Server::start(&["--deterministic"]);
    let alone = answer(&server, "sql", 24);
    let of_base = answer(&server, "smollm2-135m", 24);
    assert_ne!(alone["text"], of_base["text"]);
    assert!(
        alone["logprobs"]["token_logprobs"][23].is_number(),
        "{alone}"
    );
    let together = std::thread::scope(|scope| {
        let neighbours = ["arc", "smollm2-135m", "arc", "sql"];
        let neighbours = neighbours.map(|model| scope.spawn(|| answer(&server, model, 60)));
        let mine = [(); 3].map(|()| answer(&server, "sql", 24));
        for neighbour in neighbours {
            neighbour.join().expect("a neighbour's answer");
        }
        mine
    });
    for answer in together {
        assert_eq!(answer, alone);
    }
    // They ran in shared steps, and tickets were overlaid throughout.
    let applied = metric(&server, "tombola_engine_steps_total{mode=\"apply\"}");
    let overlaid = metric(&server, "tombola_engine_steps_total{mode=\"overlay\"}");
    assert_eq!(
        (applied, metric(&server, "tombola_ticket_swaps_total")),
        (0.0, 0.0)
    );
    assert!(
        overlaid < 4.0 * 24.0 + 4.0 * 60.0 - 60.0,
        "{overlaid} steps"
    );
    let facts: Value = serde_json::from_str(&get(&server, "/v1/base?verify=true")).unwrap();
    assert_eq!(facts["intact"], true, "{facts}");
    assert!(server.terminate().success());
}

#[test]
fn a_mode_that_is_not_deterministic_is_refused_beside_it() {
    for mode in ["auto", "apply"] {
        let mut command = tombola();
        command.args(["--port", "0", "--deterministic", "--ticket-mode", mode]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("--deterministic") && text.contains(&format!("--ticket-mode {mode}")),
            "{text}"
        );
    }
}
