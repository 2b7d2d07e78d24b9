//! Resumed runs, divergence, masks and LoTTO.

use super::*;

#[test]
fn a_resumed_run_makes_the_same_ticket() {
    for score in [Score::TaskVector, Score::Saliency] {
        let config = TrainConfig { score, ..short() };
        let whole = tempfile::tempdir().unwrap();
        let want = Run::new(config.clone())
            .go(whole.path(), &mut Vec::new())
            .unwrap();
        for stop_after in [2, 6, 9] {
            let folder = tempfile::tempdir().unwrap();
            let stopped = Run {
                stop_after: Some(stop_after),
                ..Run::new(config.clone())
            };
            let mut events = Vec::new();
            let ended = stopped.go(folder.path(), &mut events);
            assert!(matches!(ended, Err(TrainError::Stopped { .. })));
            let resumed = Run {
                existing: Existing::Resume,
                save_every: 2,
                ..Run::new(config.clone())
            };
            let got = resumed.go(folder.path(), &mut events).unwrap();
            assert_eq!(
                got.ticket.digest(),
                want.ticket.digest(),
                "{score} {stop_after}"
            );
            let read = |folder: &Path| std::fs::read_to_string(folder.join("metrics.jsonl"));
            let lines = |folder: &Path| read(folder).unwrap().lines().count();
            assert_eq!(lines(folder.path()), lines(whole.path()));
        }
    }
}

#[test]
fn a_run_that_diverges_says_so_and_keeps_its_saved_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = short();
    config.adapt.learning_rate = f32::MAX;
    config.clip = None;
    let run = Run {
        save_every: 1,
        ..Run::new(config)
    };
    let ended = run.go(folder.path(), &mut Vec::new());
    let error = ended.err().expect("it diverges").to_string();
    assert!(error.contains("adapt phase"), "{error}");
    assert!(
        error.contains("step 0 of the adapt phase is saved"),
        "{error}"
    );
    assert!(folder.path().join("state.safetensors").exists());
}

/// The ticket of a run, written and read back.
fn bound(trained: &Trained, base: &Base) -> BoundTicket {
    let (metadata, tensors) = (trained.ticket.metadata(), trained.ticket.tensors());
    let ticket = Ticket::from_bytes(&Ticket::encode(metadata, tensors).unwrap()).unwrap();
    ticket.bind(&base.manifest, false).unwrap()
}

/// Runs in a temporary folder.
fn run(run: Run) -> Trained {
    let folder = tempfile::tempdir().unwrap();
    run.go(folder.path(), &mut Vec::new()).unwrap()
}

#[test]
fn lotto_trains_on_top_of_a_ticket_and_leaves_its_positions_alone() {
    let mut base = load_tiny(LLAMA, Dtype::F32);
    let first = run(Run::new(short()));
    let ticket = Arc::new(bound(&first, &base));
    let second = run(Run {
        avoid: vec![Arc::clone(&ticket)],
        on_top_of: Some(ticket),
        ..Run::new(TrainConfig {
            name: "second".to_owned(),
            ..short()
        })
    });
    let near = |a: Option<f64>, b: Option<f64>| assert!((a.unwrap() - b.unwrap()).abs() < 1e-6);
    near(second.losses.before, first.losses.ticket);
    let (a, b) = (
        positions(&first.ticket, &base),
        positions(&second.ticket, &base),
    );
    for (name, kept) in &b {
        assert!(a.get(name).is_none_or(|a| a.is_disjoint(kept)), "{name}");
    }
    // The second run trained on top of the first: both tickets merged have its loss.
    let tickets = [(bound(&first, &base), 1.0), (bound(&second, &base), 1.0)];
    let both = merge(&tickets, &base.manifest, "both", DeltaDtype::Bf16, None).unwrap();
    let both = both.bind(&base.manifest, false).unwrap();
    base.resident
        .swap(Some(&Arc::new(LoadedTicket::new(both))), 1.0)
        .unwrap();
    let backprop = Backprop {
        decoder: &base.decoder,
        checkpointing: false,
    };
    let data = dataset();
    let rows = Rows::new(&data.examples);
    assert!((mean(&backprop, &rows) - second.losses.ticket.unwrap()).abs() < 1e-5);
    assert!(second.losses.ticket < second.losses.before);
}

#[test]
fn a_mask_comes_from_a_ticket_or_from_a_tuned_checkpoint() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let whole = run(Run {
        keep: Some(folder.path()),
        ..Run::new(short())
    });
    let tuned = Checkpoint::open(&Files::Folder(folder.path().to_owned())).unwrap();
    let from_checkpoint = run(Run {
        mask: MaskSource::Checkpoint {
            checkpoint: &tuned,
            fingerprint: Digest([7; 32]),
        },
        ..Run::new(short())
    });
    let from_ticket = run(Run {
        mask: MaskSource::Ticket(Arc::new(bound(&whole, &base))),
        ..Run::new(short())
    });
    let says = |trained: &Trained| trained.ticket.metadata().training.clone().unwrap();
    let (score, checkpoint, ticket) = (says(&whole), says(&from_checkpoint), says(&from_ticket));
    assert_eq!(score["mask_from"], Value::Null);
    assert_eq!(checkpoint["mask_from"]["fingerprint"], "07".repeat(32));
    assert_eq!(
        ticket["mask_from"]["ticket"],
        whole.ticket.digest().to_string()
    );
    // Settings that had no effect are not recorded.
    assert!(score["train"]["calibrate"].is_object() && score["train"]["density"].is_number());
    assert!(checkpoint["train"]["calibrate"].is_null() && checkpoint["train"]["scope"].is_string());
    assert!(ticket["train"]["calibrate"].is_null() && ticket["train"]["density"].is_null());
    for other in [from_checkpoint, from_ticket] {
        assert!(other.ticket.tensors() == whole.ticket.tensors());
        assert!(other.losses.calibrated.is_none());
    }
}

#[test]
fn scores_select_different_masks_of_the_same_size() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let mask = |score, scope| {
        let config = TrainConfig {
            score,
            scope,
            ..short()
        };
        positions(&run(Run::new(config)).ticket, &base)
    };
    let size = |mask: &BTreeMap<String, BTreeSet<usize>>| -> usize {
        mask.values().map(BTreeSet::len).sum()
    };
    let scores = [
        Score::TaskVector,
        Score::Gradient,
        Score::Saliency,
        Score::Random,
    ];
    let masks = scores.map(|score| mask(score, Scope::Global));
    let kept = (base.manifest.adaptable_weights() as f64 * 0.1) as usize;
    for (i, mask) in masks.iter().enumerate() {
        assert_eq!(size(mask), kept);
        assert!(masks[..i].iter().all(|other| other != mask));
    }
    let even = mask(Score::TaskVector, Scope::Tensor);
    for (name, positions) in &even {
        let weights: usize = base.manifest.parameters[name].shape.iter().product();
        assert_eq!(positions.len(), (weights as f64 * 0.1) as usize, "{name}");
    }
}
