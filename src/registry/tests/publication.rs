//! What becomes of files: adoption at the start, uploads, replacements, deletions.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn opening_creates_the_folder_adopts_tickets_and_leaves_bad_files_alone() {
    let dir = TempDir::new().unwrap();
    let nested = dir.path().join("a/b");
    let options = open(&dir).options;
    let opened = Registry::open(&nested, None, base(), options.clone()).unwrap();
    assert!(nested.is_dir() && opened.registry.is_empty() && opened.refused.is_empty());
    drop(opened);

    fs::write(nested.join("sql.safetensors"), ticket_file(0)).unwrap();
    fs::write(nested.join("cut.safetensors"), &ticket_file(0)[..90]).unwrap();
    fs::write(nested.join("tiny.safetensors"), ticket_file(0)).unwrap();
    fs::write(nested.join("SQL.safetensors"), ticket_file(0)).unwrap();
    fs::write(nested.join("notes.txt"), "not a ticket").unwrap();
    fs::create_dir(nested.join("folder.safetensors")).unwrap();
    let opened = Registry::open(&nested, None, base(), options).unwrap();
    let aliases: Vec<_> = opened
        .registry
        .owned(None, Page::ALL)
        .iter()
        .map(|g| g.alias().to_owned())
        .collect();
    assert_eq!(aliases, ["SQL"]);
    assert_eq!(opened.registry.resident(), 0);
    let refused: Vec<_> = opened
        .refused
        .iter()
        .map(|(path, _)| path.file_stem().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(refused, ["folder", "cut", "sql", "tiny"]);
    assert!(nested.join("cut.safetensors").exists());
}

#[test]
fn the_file_of_a_killed_upload_is_removed_and_never_served() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let (_, left_over) = staged(&registry, &ticket_file(0)[..50]).keep().unwrap();
    assert!(left_over.exists());
    drop(registry);
    let opened = open_with(&dir, 1 << 20);
    assert!(!left_over.exists());
    assert!(opened.registry.is_empty() && opened.refused.is_empty());
}

#[test]
fn a_published_ticket_is_leased_and_survives_a_restart() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let generation = publish(&registry, "sql", 1);
    let lease = registry.lease(None, "sql").unwrap();
    assert_eq!((id(&lease), lease.alias()), (generation.id(), "sql"));
    assert_eq!(lease.ticket().digest(), Digest::of(&ticket_file(1)));
    assert_eq!(generation.resident_bytes(), lease.ticket().resident_bytes());
    drop((lease, registry));
    let again = open(&dir);
    assert_eq!(
        again.get(None, "sql").unwrap().digest(),
        generation.digest()
    );
    // No temporary file stays behind.
    assert_eq!(files(&dir), ["sql.safetensors"]);
}

#[test]
fn names_are_checked_and_taken_once() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let publish = |alias: &str, replace| {
        let file = staged(&registry, &ticket_file(0));
        let condition = Condition {
            replace,
            ..Condition::default()
        };
        registry.publish(Name::public(alias), file, &condition)
    };
    assert!(matches!(
        publish("tiny", true),
        Err(RegistryError::Reserved(_))
    ));
    assert!(matches!(
        publish("../sql", true),
        Err(RegistryError::Name(_))
    ));
    assert!(publish("sql", false).is_ok());
    assert!(matches!(
        publish("sql", false),
        Err(RegistryError::Exists(_))
    ));
    assert!(publish("sql", true).is_ok());
    // A file that was refused at the start is not overwritten without `replace`.
    fs::write(dir.path().join("odd.safetensors"), "odd").unwrap();
    assert!(matches!(
        publish("odd", false),
        Err(RegistryError::Exists(_))
    ));
    assert!(publish("odd", true).is_ok());
}

#[test]
fn a_refused_replacement_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let before = publish(&registry, "sql", 1);
    let file = staged(&registry, b"nonsense");
    let refused = registry.publish(Name::public("sql"), file, &Condition::upsert());
    assert!(matches!(refused, Err(RegistryError::Invalid(_))));
    assert_eq!(id(&registry.lease(None, "sql").unwrap()), before.id());
    assert_eq!(files(&dir), ["sql.safetensors"]);
}

#[test]
fn exactly_one_of_many_publishers_of_a_new_name_wins() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let won = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (registry, won) = (&registry, &won);
            scope.spawn(move || {
                let file = staged(registry, &ticket_file(seed));
                match registry.publish(Name::public("sql"), file, &Condition::create()) {
                    Ok(_) => won.fetch_add(1, Ordering::Relaxed),
                    Err(RegistryError::Exists(_)) => 0,
                    Err(error) => panic!("{error}"),
                };
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
    let on_disk = fs::read(dir.path().join("sql.safetensors")).unwrap();
    let lease = registry.lease(None, "sql").unwrap();
    assert_eq!(lease.ticket().digest(), Digest::of(&on_disk));
}

#[test]
fn publishing_leasing_and_removing_at_once_loses_nothing() {
    const ROUNDS: usize = 60;
    let dir = TempDir::new().unwrap();
    // The budget holds only the tickets that the three threads lease, so idle ones are evicted all
    // the time.
    let registry = &open_with(&dir, 3 * one_ticket_bytes()).registry;
    let alias = |round: usize| ["a", "b", "c"][round % 3];
    let (leased, removed) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    let publishing = &AtomicUsize::new(3);
    let rounds = || (0..).take_while(|_| publishing.load(Ordering::SeqCst) > 0);
    thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    publish(registry, alias(round + thread), round);
                }
                publishing.fetch_sub(1, Ordering::SeqCst);
            });
            scope.spawn(move || {
                for round in rounds() {
                    match registry.lease(None, alias(round + thread)) {
                        Ok(lease) => {
                            assert_eq!(lease.ticket().digest(), lease.digest());
                            leased.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(RegistryError::Unknown(_)) => {}
                        Err(error) => panic!("a lease was lost: {error}"),
                    }
                }
            });
        }
        scope.spawn(move || {
            for round in rounds() {
                match registry.remove(Name::public(alias(round)), &Condition::default()) {
                    Ok(_) => removed.fetch_add(1, Ordering::Relaxed),
                    Err(RegistryError::Unknown(_)) => 0,
                    Err(error) => panic!("{error}"),
                };
                thread::sleep(Duration::from_micros(200));
            }
        });
    });
    assert!(leased.load(Ordering::Relaxed) > 0 && removed.load(Ordering::Relaxed) > 0);
    let on_disk = registry.folder.list().unwrap().tickets;
    assert_eq!(on_disk.len(), registry.len());
    for file in on_disk {
        let lease = registry.lease(None, &file.alias).unwrap();
        assert_eq!(
            lease.ticket().digest(),
            Digest::of(&fs::read(file.path).unwrap())
        );
    }
    // By content, since aliases of one content share it.
    let known: BTreeSet<Digest> = registry
        .owned(None, Page::ALL)
        .iter()
        .map(|g| g.digest())
        .collect();
    let resident = known.iter().filter(|&&g| in_memory(registry, g));
    assert_eq!(
        resident.count(),
        registry.resident(),
        "a ticket without an alias stays in memory"
    );
}
