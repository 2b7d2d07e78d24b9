//! What a request runs under: a ticket, a scaled one, a composition, or one per choice.

use std::io::Write as _;

use serde_json::{Value, json};
use tombola::registry::{Condition, Name};

use crate::support::echo::{Server, ticket_file};

const PATH: &str = "/v1/completions";

/// Aliases that the last `n` requests ran under.
fn ran(server: &Server, n: usize) -> Vec<Option<String>> {
    let requests = server.seen.requests.lock().unwrap();
    let last = requests[requests.len() - n..].iter();
    last.map(|request| request.ticket.as_ref().map(|(alias, _)| alias.clone()))
        .collect()
}

/// A server with the tickets `sql` and `terse`.
fn server() -> Server {
    let server = Server::new();
    let registry = &server.state.registry;
    let mut file = registry.stage().unwrap();
    file.write_all(&ticket_file(7)).unwrap();
    let name = Name::public("terse");
    registry.publish(name, file, &Condition::upsert()).unwrap();
    server
}

#[tokio::test]
async fn tickets_are_composed_by_name_or_by_list() {
    let server = server();
    for (body, model, alias) in [
        (json!({"model": "sql+terse"}), "sql+terse", "sql+terse"),
        (json!({"model": "terse@0.5"}), "terse@0.5", "terse@0.5"),
        (
            json!({"model": "sql", "ticket_scale": 0.5}),
            "sql",
            "sql@0.5",
        ),
        (
            json!({"tickets": [{"name": "sql"}, {"name": "terse", "scale": 0.5}]}),
            "sql+terse@0.5",
            "sql+terse@0.5",
        ),
        (
            json!({"tickets": [{"name": "sql", "scale": 1.0}]}),
            "sql",
            "sql",
        ),
    ] {
        let mut body = body;
        body["prompt"] = "a".into();
        let answer = server.ok(PATH, body.clone()).await;
        assert_eq!(answer["model"], model, "{body}");
        assert_eq!(ran(&server, 1), [Some(alias.to_owned())], "{body}");
    }
    server.ok(PATH, json!({"prompt": "a", "tickets": []})).await;
    assert_eq!(ran(&server, 1), [None]);
}

#[tokio::test]
async fn each_choice_may_run_under_a_ticket_of_its_own_by_the_same_seed() {
    let server = server();
    let choices = ["base", "sql", "sql@0.5"];
    let body = json!({"prompt": "a", "n": 3, "seed": 7, "tickets_per_choice": choices});
    server.ok(PATH, body).await;
    let expected = [None, Some("sql".to_owned()), Some("sql@0.5".to_owned())];
    assert_eq!(ran(&server, 3), expected);
    let requests = server.seen.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|request| request.params.seed == Some(7))
    );
}

#[tokio::test]
async fn a_malformed_selection_is_refused_by_field() {
    let server = server();
    let invalid = |param: &str| (400, param.to_owned(), "invalid_value".to_owned());
    for (body, param) in [
        (json!({"model": "sql+sql"}), "model"),
        (json!({"model": "sql@0.0"}), "model"),
        (
            json!({"model": "sql", "tickets": [{"name": "terse"}]}),
            "tickets",
        ),
        (
            json!({"tickets": [{"name": "sql", "weight": 2}]}),
            "tickets",
        ),
        (
            json!({"tickets": vec![json!({"name": "sql"}); 5]}),
            "tickets",
        ),
        (json!({"ticket_scale": 0.5}), "ticket_scale"),
        (json!({"model": "sql", "ticket_scale": 100}), "ticket_scale"),
        (
            json!({"tickets_per_choice": ["base", "sql"]}),
            "tickets_per_choice",
        ),
        (
            json!({"n": 2, "model": "sql", "tickets_per_choice": ["base", "sql"]}),
            "tickets_per_choice",
        ),
        (
            json!({"n": 2, "tickets_per_choice": ["base", "sql@99.0"]}),
            "tickets_per_choice[1]",
        ),
    ] {
        let mut body = body;
        body["prompt"] = "a".into();
        assert_eq!(
            server.refused(PATH, body.clone()).await,
            invalid(param),
            "{body}"
        );
    }
    let unknown = |body: Value| async { server.refused(PATH, body).await };
    let missing = (404, "model".to_owned(), "model_not_found".to_owned());
    assert_eq!(
        unknown(json!({"prompt": "a", "model": "sql+nope"})).await,
        missing
    );
    let body = json!({"prompt": "a", "tickets": [{"name": "nope"}]});
    assert_eq!(unknown(body).await, missing);
}
