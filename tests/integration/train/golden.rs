//! The method step by step against a run in PyTorch.

use super::*;
use crate::support::player::Player;

fn losses(events: &[Event], wanted: Phase) -> Vec<f64> {
    let loss = |event: &Event| match event {
        Event::Step(step) if step.phase == wanted => Some(step.loss),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("numbers")
}

#[test]
fn golden_losses_positions_and_logprobs() {
    let golden = golden_json("train-tiny.json");
    let folder = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let trained = Run::new(config()).go(folder.path(), &mut events).unwrap();
    for (phase, name) in [
        (Phase::Calibrate, "losses_calibrate"),
        (Phase::Adapt, "losses_adapt"),
    ] {
        let (got, want) = (losses(&events, phase), numbers(&golden[name]));
        assert_eq!(got.len(), want.len());
        let share = got
            .iter()
            .zip(&want)
            .map(|(got, want)| (got - want).abs() / want);
        let worst = share.fold(0.0, f64::max);
        println!("{name}: worst difference {:.4} %", 100.0 * worst);
        assert!(worst < 0.01, "{name}: {got:?}");
    }
    let mut base = load_tiny(LLAMA, Dtype::F32);
    let got = positions(&trained.ticket, &base);
    let want: BTreeMap<String, BTreeSet<usize>> =
        serde_json::from_value(golden["kept_positions"].clone()).unwrap();
    let (mut same, mut all) = (0, 0);
    for (name, want) in &want {
        let got = &got[name];
        let near = want.len().abs_diff(got.len()) <= 3.max(want.len() / 100);
        assert!(
            near,
            "{name}: {} positions, PyTorch {}",
            got.len(),
            want.len()
        );
        same += got.intersection(want).count();
        all += want.len();
    }
    println!("positions: {same} of {all} are PyTorch's");
    assert!(same * 100 >= all * 99, "{same} of {all}");
    let ticket = trained.ticket.bind(&base.manifest, false).unwrap();
    base.resident
        .swap(Some(&Arc::new(LoadedTicket::new(ticket))), 1.0)
        .unwrap();
    let probe = ids(&golden["probe_ids"]);
    let got = Player::new(&base, 1, 16).step(&[(0, &probe)]).remove(0);
    let want = numbers(&golden["probe_logprobs_after_adapt"]);
    let differences = got
        .iter()
        .zip(&want)
        .map(|(got, want)| (f64::from(*got) - want).abs());
    let worst = differences.fold(0.0, f64::max);
    println!("log-probabilities: worst difference {worst:.5}");
    assert!(worst < 2e-2, "{worst}");
}
