//! Tenants of one server: what is one's own is another's 404, by every route.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::ticket::Digest;

use crate::support::caller::{Caller, greedy};
use crate::support::environment::utf8;
use crate::support::keys::Keys;
use crate::support::printable_base::PrintableBase;
use crate::support::server::Server;

/// Longer than several KV blocks.
const PROMPT: &str = "Call me Ishmael. Some years ago, never mind how long precisely, \
     having little or no money in my purse, and nothing particular to interest me on shore, \
     I thought I would \
     sail about a little and see the watery part of the world. ";

/// A server with the tenants `north` and `south`.
struct House {
    base: PrintableBase,
    server: Server,
    keys: [String; 3],
    _files: (Keys, TempDir),
}

impl House {
    fn open() -> Self {
        let base = PrintableBase::new();
        let keys = Keys::new(&["north", "south"]);
        let tickets = tempfile::tempdir().expect("a folder");
        let (model, [flag, file]) = (base.model(), keys.flag());
        let args = [
            "--deterministic",
            "--model",
            &model,
            &flag,
            &file,
            "--tickets",
        ];
        let server = Server::start(&[&args[..], &[utf8(tickets.path())]].concat());
        Self {
            base,
            server,
            keys: ["operator", "north", "south"].map(Keys::of),
            _files: (keys, tickets),
        }
    }

    /// The operator, `north` and `south`.
    fn callers(&self) -> [Caller<'_>; 3] {
        self.keys.each_ref().map(|key| Caller {
            server: &self.server,
            key: Some(key),
        })
    }

    fn publish(&self, caller: Caller<'_>, name: &str, seed: u64) -> String {
        let file = self.base.ticket(seed);
        let (status, answer) = caller.upload(name, &file, true);
        assert!(matches!(status, 200 | 201), "{status}: {answer}");
        Digest::of(&file).to_string()
    }
}

fn names(list: &Value, key: &str) -> BTreeSet<String> {
    let entries = list["data"].as_array().expect("a list").iter();
    entries
        .map(|entry| entry[key].as_str().expect("a name").to_owned())
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Status and code of a refused completion.
fn refused(caller: Caller<'_>, model: &str) -> (u16, String) {
    let (status, answer) = caller.post("/v1/completions", &greedy(model, PROMPT, 1));
    let code = answer["error"]["code"].as_str().unwrap_or_default();
    (status, code.to_owned())
}

#[test]
fn anothers_ticket_is_unknown_by_every_name_and_route() {
    let house = House::open();
    let [operator, north, south] = house.callers();
    house.publish(operator, "sql", 1);
    let digest = house.publish(north, "secret", 2);
    let answer = north.complete("secret", PROMPT, 20);
    assert_ne!(north.complete("tiny", PROMPT, 20), answer);
    // Warm in memory, by the tenant's own request.
    for model in [
        "secret".to_owned(),
        format!("secret@{}", &digest[..12]),
        digest.clone(),
        format!("sha256:{digest}"),
    ] {
        assert_eq!(north.complete(&model, PROMPT, 20), answer, "{model}");
        let unknown = (404, "model_not_found".to_owned());
        assert_eq!(refused(south, &model), unknown, "{model}");
    }
    for route in ["/v1/tickets/secret", "/v1/models/secret"] {
        assert_eq!(north.get(route).0, 200, "{route}");
        assert_eq!(south.get(route).0, 404, "{route}");
        assert_eq!(south.delete(route).0, 404, "{route}");
    }
    let listed = |caller: Caller<'_>| {
        let tickets = names(&caller.get("/v1/tickets").1, "name");
        let models = names(&caller.get("/v1/models").1, "id");
        (tickets, models)
    };
    let (tickets, models) = listed(north);
    assert_eq!(tickets, set(&["secret", "sql"]));
    assert_eq!(models, set(&["secret", "sql", "tiny"]));
    let (tickets, models) = listed(south);
    assert_eq!(tickets, set(&["sql"]));
    assert_eq!(models, set(&["sql", "tiny"]));
    assert_eq!(north.complete("secret", PROMPT, 20), answer);
}

#[test]
fn one_name_is_a_ticket_of_each_tenant() {
    let house = House::open();
    let [operator, north, south] = house.callers();
    house.publish(operator, "sql", 1);
    let public = south.complete("sql", PROMPT, 20);
    assert_eq!(north.complete("sql", PROMPT, 20), public);
    house.publish(north, "sql", 2);
    house.publish(north, "own", 3);
    house.publish(south, "own", 4);
    let norths = north.complete("sql", PROMPT, 20);
    assert_ne!(norths, public);
    assert_eq!(south.complete("sql", PROMPT, 20), public);
    let own = [north, south].map(|caller| caller.complete("own", PROMPT, 20));
    assert_ne!(own[0], own[1]);
    // Each deletes its own; the public one is not theirs to delete.
    assert_eq!(north.delete("/v1/tickets/own").0, 200);
    assert_eq!(south.complete("own", PROMPT, 20), own[1]);
    assert_eq!(north.delete("/v1/tickets/sql").0, 200);
    assert_eq!(north.complete("sql", PROMPT, 20), public);
    for caller in [north, south] {
        let (status, answer) = caller.delete("/v1/tickets/sql");
        assert!(matches!(status, 403 | 404), "{status}: {answer}");
    }
    assert_eq!(operator.complete("sql", PROMPT, 20), public);
}

#[test]
fn a_tenant_reads_neither_metrics_nor_what_the_operator_may() {
    let house = House::open();
    let [operator, north, south] = house.callers();
    house.publish(north, "secret", 2);
    north.complete("secret", PROMPT, 2);
    for route in ["/metrics", "/v1/base?verify=true"] {
        let (status, text) = south.get_text(route);
        assert_eq!(status, 403, "{route}: {text}");
        assert!(!text.contains("secret"), "{route}: {text}");
        assert_eq!(operator.get_text(route).0, 200, "{route}");
    }
    let norths = "/v1/tickets?tenant=north";
    assert_eq!(south.get(norths).0, 403);
    let (status, list) = operator.get(norths);
    assert_eq!((status, names(&list, "name")), (200, set(&["secret"])));
    let nobody = Caller {
        key: None,
        ..operator
    };
    for route in ["/v1/models", "/v1/tickets", "/metrics", "/v1/base"] {
        assert_eq!(nobody.get_text(route).0, 401, "{route}");
    }
}

/// Prompt tokens of a completion that came from the cache.
fn cached(caller: Caller<'_>, model: &str, prompt: &str) -> u64 {
    let (status, answer) = caller.post("/v1/completions", &greedy(model, prompt, 2));
    assert_eq!(status, 200, "{answer}");
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap_or(0)
}

#[test]
fn no_tenant_learns_anothers_prompts_from_the_cache() {
    let house = House::open();
    let [operator, north, south] = house.callers();
    house.publish(operator, "sql", 1);
    for model in ["tiny", "sql"] {
        let prompt = format!("{model}: {PROMPT}");
        assert_eq!(cached(north, model, &prompt), 0);
        assert!(cached(north, model, &prompt) > 100);
        for other in [south, operator] {
            assert_eq!(cached(other, model, &prompt), 0);
        }
        assert!(cached(south, model, &prompt) > 100);
        let mut salted = greedy(model, &prompt, 2);
        salted["cache_salt"] = json!("another session");
        let (_, answer) = north.post("/v1/completions", &salted);
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}
