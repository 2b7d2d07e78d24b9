//! The decoder against Hugging Face transformers in float32. `tests/golden/README.md` explains the
//! tolerances.

use std::sync::Arc;

use serde_json::Value;
use tombola::model::{Base, Dtype, LoadedTicket, TicketLayout};
use tombola::ticket::Ticket;

use crate::support::bases::{
    TINY, default_gguf_path, load_default, load_default_quantized, load_tiny,
};
use crate::support::environment::{golden, golden_json, ids};
use crate::support::player::Player;

/// Bounds on the differences of a case's log-probabilities (the top 20 for the default base).
#[derive(Clone, Copy)]
struct Tolerance {
    worst: f32,
    mean: f32,
}

const F32: Tolerance = Tolerance {
    worst: 1e-3,
    mean: 1e-3,
};
const F32_BF16_DELTAS: Tolerance = Tolerance {
    worst: 1.5e-3,
    mean: 1.5e-3,
};
const BF16: Tolerance = Tolerance {
    worst: 0.25,
    mean: 0.065,
};

/// Compares the next-token log-probabilities after a case's prompt with the golden ones.
fn check_logprobs(base: &Base, overlaid: Overlaid, case: &Value, tolerance: Tolerance) {
    let prompt = ids(&case["prompt_ids"]);
    let got = Player::new(base, 1, prompt.len())
        .under(overlaid)
        .step(&[(0, &prompt)])
        .remove(0);
    let want: Vec<(usize, f32)> = if let Some(top) = case.get("top20") {
        serde_json::from_value(top.clone()).unwrap()
    } else {
        let all: Vec<f32> = serde_json::from_value(case["logprobs_last"].clone()).unwrap();
        all.into_iter().enumerate().collect()
    };
    let differences: Vec<f32> = want.iter().map(|&(id, lp)| (got[id] - lp).abs()).collect();
    let worst = differences.iter().copied().fold(0.0, f32::max);
    let mean = differences.iter().sum::<f32>() / differences.len() as f32;
    println!(
        "{} tokens: worst {worst:.2e}, mean {mean:.2e}",
        prompt.len()
    );
    assert!(
        worst <= tolerance.worst && mean <= tolerance.mean,
        "worst {worst}, mean {mean}"
    );
}

/// Compares the greedy continuation with the golden one, up to its first close call.
fn check_greedy(base: &Base, overlaid: Overlaid, case: &Value) {
    let (prompt, want) = (ids(&case["prompt_ids"]), ids(&case["greedy_ids"]));
    let sure = case["first_close_call"]
        .as_u64()
        .map_or(want.len(), |n| n as usize);
    let mut player = Player::new(base, 1, prompt.len() + want.len()).under(overlaid);
    let got = player.greedy(&prompt, sure);
    assert_eq!(got, want[..sure]);
}

/// The ticket that is overlaid on the rows.
type Overlaid<'a> = Option<&'a Arc<TicketLayout>>;

fn check(base: &Base, file: &str, tolerance: Tolerance, greedy: bool) {
    check_under(base, None, file, tolerance, greedy);
}

fn check_under(base: &Base, overlaid: Overlaid, file: &str, tolerance: Tolerance, greedy: bool) {
    let golden = golden_json(file);
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        check_logprobs(base, overlaid, case, tolerance);
        if greedy {
            check_greedy(base, overlaid, case);
        }
    }
}

#[test]
fn the_default_base_equals_transformers() {
    check(&load_default(Dtype::F32), "base.json", F32, true);
}

#[test]
fn the_default_base_in_bf16_is_near_transformers() {
    check(&load_default(Dtype::Bf16), "base.json", BF16, false);
}

/// Weights are dequantised to f32 on use, without loss: the tolerance is that of f32.
#[test]
fn the_default_base_kept_quantised_equals_transformers() {
    let base = load_default_quantized();
    check(&base, "base.json", F32, true);
    let file = std::fs::metadata(default_gguf_path()).unwrap().len();
    let bytes = base.resident.bytes() as u64;
    assert!(bytes <= file, "{bytes} bytes of a file of {file}");
    let overlaid = Arc::new(base.lay_out(&sql_ticket(&base)).unwrap());
    check_under(&base, Some(&overlaid), "sql.json", F32_BF16_DELTAS, true);
    assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
}

/// The reference SQL ticket: the golden's deltas, rounded to bf16.
fn sql_ticket(base: &Base) -> Arc<LoadedTicket> {
    let path = golden("sql.safetensors");
    let ticket = Ticket::read(&path, 1 << 24).expect("the reference ticket");
    let bound = ticket.bind(&base.manifest, false);
    Arc::new(LoadedTicket::new(
        bound.expect("a ticket of the default base"),
    ))
}

/// The base with the reference SQL ticket applied.
fn with_sql_ticket(dtype: Dtype) -> Base {
    let mut base = load_default(dtype);
    let ticket = sql_ticket(&base);
    base.resident.swap(Some(&ticket), 1.0).expect("it fits");
    base
}

#[test]
fn the_sql_ticket_equals_transformers_with_its_deltas_added() {
    let mut base = with_sql_ticket(Dtype::F32);
    check(&base, "sql.json", F32_BF16_DELTAS, true);
    base.resident.swap(None, 1.0).unwrap();
    assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
    check(&base, "base.json", F32, false);
}

#[test]
fn the_sql_ticket_in_bf16_is_near_transformers() {
    check(&with_sql_ticket(Dtype::Bf16), "sql.json", BF16, false);
}

/// Overlaid deltas are not rounded into bf16 weights: the tolerance of applied tickets holds too.
#[test]
fn the_sql_ticket_overlaid_on_the_base_equals_transformers() {
    for (dtype, tolerance) in [(Dtype::F32, F32_BF16_DELTAS), (Dtype::Bf16, BF16)] {
        let base = load_default(dtype);
        let ticket = sql_ticket(&base);
        let overlaid = Arc::new(base.lay_out(&ticket).unwrap());
        let greedy = dtype == Dtype::F32;
        check_under(&base, Some(&overlaid), "sql.json", tolerance, greedy);
        assert_eq!(base.resident.digest().unwrap(), base.loaded_digest);
    }
}

#[test]
fn five_decoder_families_equal_transformers() {
    for name in TINY {
        println!("{name}");
        check(
            &load_tiny(name, Dtype::F32),
            &format!("tiny/{name}/golden.json"),
            F32,
            true,
        );
    }
}
