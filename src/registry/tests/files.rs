//! What a file keeps of its name and its owner's room, served or not.

use std::sync::atomic::Ordering;

use super::*;
use crate::ticket::TicketError;

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn publish_as(
    registry: &Registry,
    name: Name<'_>,
    seed: usize,
) -> Result<Arc<Generation>, RegistryError> {
    let file = staged(registry, &ticket_file(seed));
    registry.publish(name, file, &Condition::upsert())
}

/// Bytes of a ticket file that states this provenance.
fn ticket_telling(training: serde_json::Value) -> Vec<u8> {
    let deltas = Deltas::from_f32(vec![1.0; 4], DeltaDtype::F32);
    let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
    let mut metadata = Metadata::new("any", &base(), 4);
    metadata.training = Some(training);
    Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
}

#[test]
fn an_unloaded_file_counts_for_its_owner_until_it_is_deleted() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let acme = tenant("acme");
    let of = |alias| Name::new(Some(&acme), alias);
    let bytes = ticket_file(1).len() as u64;
    publish_as(&registry, of("a"), 1).unwrap();
    let unloaded = registry.unload(of("a")).unwrap();
    publish_as(&registry, of("b"), 2).unwrap();
    let path = dir.path().join("tenants/acme/cut.safetensors");
    fs::write(path, &ticket_file(3)[..90]).unwrap();
    publish(&registry, "public", 4);
    drop(registry);
    let registry = open(&dir);
    registry.unload(of("a")).unwrap();
    let stored = |alias| {
        let StoredFiles { count, bytes } = registry.stored_beside(of(alias));
        (count, bytes)
    };
    assert_eq!(stored("new"), (3, 2 * bytes + 90));
    // An upload that takes the place of a file does not count that file.
    assert_eq!(stored("a"), (2, bytes + 90));
    let matching = Condition {
        matches: Some(Match::OneOf(vec![Digest::of(b"x")])),
        ..Condition::default()
    };
    let refused = registry.remove(of("a"), &matching).unwrap_err();
    assert!(
        matches!(refused, RegistryError::Precondition { .. }),
        "{refused}"
    );
    let removed = registry.remove(of("a"), &Condition::default()).unwrap();
    assert_eq!(removed.digest(), unloaded.digest());
    assert!(!dir.path().join("tenants/acme/a.safetensors").exists());
    assert_eq!(stored("new"), (2, bytes + 90));
    let again = registry.remove(of("a"), &Condition::default());
    assert!(matches!(again, Err(RegistryError::Unknown(_))));
}

#[test]
fn a_name_is_taken_while_a_file_has_it_in_another_case() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "Upper", 1);
    registry.unload(Name::public("Upper")).unwrap();
    let refused = publish_as(&registry, Name::public("upper"), 2).unwrap_err();
    assert!(
        matches!(&refused, RegistryError::DiffersInCase { existing, .. } if existing == "Upper"),
        "{refused}"
    );
    registry
        .remove(Name::public("Upper"), &Condition::default())
        .unwrap();
    publish_as(&registry, Name::public("upper"), 2).unwrap();
}

#[test]
fn a_restart_serves_the_ticket_that_was_served_before_a_file_in_another_case() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let served = publish(&registry, "casey", 1).digest();
    registry.write_index();
    drop(registry);
    fs::write(dir.path().join("Casey.safetensors"), ticket_file(2)).unwrap();
    let opened = open_with(&dir, 1 << 20);
    let found = opened.registry.get(None, "casey").expect("a ticket");
    assert_eq!(found.digest(), served);
    assert_eq!(opened.refused.len(), 1);
}

#[cfg(unix)]
#[test]
fn a_linked_folder_takes_no_uploads_and_is_refused_at_a_start() {
    let elsewhere = TempDir::new().unwrap();
    let acme = tenant("acme");
    for linked in ["tenants", "tenants/acme"] {
        let dir = TempDir::new().unwrap();
        let link = dir.path().join(linked);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        let opened = open_with(&dir, 1 << 20);
        let refused: Vec<_> = opened.refused.iter().map(|(path, _)| path).collect();
        assert_eq!(refused, [&link]);
        let registry = opened.registry;
        let refused = publish_as(&registry, Name::new(Some(&acme), "own"), 1).unwrap_err();
        assert!(
            matches!(&refused, RegistryError::LinkedFolder(path) if *path == link),
            "{refused}"
        );
        publish(&registry, "public", 1);
    }
}

#[test]
fn a_folder_under_the_name_of_a_ticket_is_in_the_way() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("sql.safetensors")).unwrap();
    let registry = open(&dir);
    for condition in [Condition::upsert(), Condition::create()] {
        let file = staged(&registry, &ticket_file(1));
        let refused = registry.publish(Name::public("sql"), file, &condition);
        let refused = refused.unwrap_err();
        assert!(matches!(refused, RegistryError::Obstructed(_)), "{refused}");
    }
}

#[test]
fn an_upload_while_a_file_is_loaded_in_place_is_not_undone() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "sql", 1);
    let path = dir.path().join("sql.safetensors");
    thread::scope(|scope| {
        let writing = lock(&registry.writing);
        let loading = scope.spawn(|| {
            let name = Name::public("sql");
            let found = registry.find_file(name, &path).unwrap();
            registry.load_file(name, &found, &Condition::upsert())
        });
        // Time to read the old file.
        thread::sleep(Duration::from_millis(300));
        let file = staged(&registry, &ticket_file(2));
        registry.folder.place(file, &path, true).unwrap();
        drop(writing);
        let loaded = loading.join().unwrap().unwrap();
        assert_eq!(loaded.digest(), Digest::of(&ticket_file(2)));
    });
}

#[test]
fn a_ticket_is_told_with_the_provenance_of_its_own_file() {
    const ROUNDS: usize = 200;
    let dir = TempDir::new().unwrap();
    let registry = &open(&dir);
    let told = |seed: usize| ticket_telling(serde_json::json!({ "seed": seed }));
    let files: Vec<_> = (0..8).map(told).collect();
    let check = |told: WithTraining| {
        let seed = told.training.unwrap()["seed"].as_u64().unwrap();
        assert_eq!(told.generation.digest(), Digest::of(&files[seed as usize]));
    };
    thread::scope(|scope| {
        for thread in 0..2 {
            let (files, check) = (&files, &check);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let file = staged(registry, &files[(2 * round + thread) % files.len()]);
                    let upsert = Condition::upsert();
                    let name = Name::public("sql");
                    check(registry.publish_with_training(name, file, &upsert).unwrap());
                    let _ = registry.remove(name, &Condition::default());
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..10 * ROUNDS {
                match registry.get_with_training(None, "sql") {
                    Ok(told) => check(told),
                    Err(RegistryError::Unknown(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
}

#[test]
fn the_provenance_of_a_loaded_ticket_stays_in_its_file() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let training = serde_json::json!({"data": "a".repeat(60_000)});
    let name = Name::public("sql");
    let file = staged(&registry, &ticket_telling(training.clone()));
    registry.publish(name, file, &Condition::create()).unwrap();
    let lease = registry.lease(None, "sql").unwrap();
    assert_eq!(lease.ticket().metadata().training, None);
    let told = registry.get_with_training(None, "sql").unwrap();
    assert_eq!(told.training, Some(training));
}

#[test]
fn a_ticket_that_is_moved_over_another_is_leased_without_a_scan() {
    let dir = TempDir::new().unwrap();
    let registry = Arc::new(open(&dir));
    let path = dir.path().join("sql.safetensors");
    let move_over = |content: &[u8]| {
        let new = dir.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, &path).unwrap();
    };
    publish(&registry, "sql", 1);
    move_over(&ticket_file(2));
    let unwatched = registry.lease(None, "sql").unwrap_err();
    assert!(
        matches!(unwatched, RegistryError::Changed { .. }),
        "{unwatched}"
    );
    registry.watched.store(true, Ordering::Relaxed);
    let lease = registry.lease(None, "sql").unwrap();
    assert_eq!(lease.digest(), Digest::of(&ticket_file(2)));
    // While it is open, no new file gets its inode.
    let _open = fs::File::open(&path).unwrap();
    move_over(&ticket_file(3)[..80]);
    drop(lease);
    registry.memory.forget(Digest::of(&ticket_file(2)));
    let no_ticket = registry.lease(None, "sql").unwrap_err();
    assert!(
        matches!(no_ticket, RegistryError::Changed { .. }),
        "{no_ticket}"
    );
    move_over(&ticket_file(4));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lease = runtime.block_on(registry.lease_in_turn(None, "sql"));
    assert_eq!(lease.unwrap().digest(), Digest::of(&ticket_file(4)));
}

#[test]
fn a_read_that_may_succeed_later_does_not_say_that_the_file_changed() {
    let dir = TempDir::new().unwrap();
    let mut registry = open(&dir);
    publish(&registry, "sql", 1);
    registry.reader = |path, _| {
        Err(TicketError::Io {
            action: "read",
            path: path.to_owned(),
            error: io::Error::from_raw_os_error(libc::EMFILE),
        })
    };
    let error = registry.lease(None, "sql").unwrap_err();
    assert!(matches!(error, RegistryError::LoadFailed(_)), "{error}");
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_read_is_no_trouble_of_the_folder() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let path = dir.path().join("other.safetensors");
    fs::write(&path, ticket_file(1)).unwrap();
    let name = Name::public("sql");
    let found = registry.find_file(name, &path).unwrap();
    assert_eq!(found.copied_bytes(), ticket_file(1).len() as u64);
    // As much as a file without permission, which root may read.
    fs::remove_file(&path).unwrap();
    let refused = registry.load_file(name, &found, &Condition::create());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, RegistryError::Invalid(_)), "{refused}");
    assert_eq!(registry.trouble(), None);
}

#[test]
fn a_relative_path_starts_at_the_folder_of_its_owner() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let acme = tenant("acme");
    for (name, path) in [
        (Name::public("sql"), "staging/x.safetensors"),
        (Name::new(Some(&acme), "sql"), "staging/x.safetensors"),
    ] {
        let file = registry.folder.folder_of(name.owner).join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, ticket_file(1)).unwrap();
        let found = registry.find_file(name, Path::new(path)).unwrap();
        registry
            .load_file(name, &found, &Condition::create())
            .unwrap();
    }
    let escape = registry.find_file(
        Name::new(Some(&acme), "up"),
        Path::new("../../staging/x.safetensors"),
    );
    assert!(matches!(escape, Err(RegistryError::NotInside)));
}

#[test]
fn an_owner_sees_no_use_of_the_same_content_by_others() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let [north, south] = ["north", "south"].map(tenant);
    let publish = |owner| publish_as(&registry, Name::new(Some(owner), "own"), 1).unwrap();
    let [norths, souths] = [&north, &south].map(publish);
    let lease = registry.lease(Some(&north), "own").unwrap();
    let seen = |generation: &Generation| {
        let seen = registry.own_residency(generation);
        (seen.tier, seen.leases, seen.pinned)
    };
    registry.pin(norths.name()).unwrap();
    assert_eq!(seen(&norths), (Tier::Host, 1, true));
    assert_eq!(seen(&souths), (Tier::Disk, 0, false));
    assert_eq!(registry.residency(&souths).leases, 1, "the operator's view");
    let second = registry.lease(Some(&south), "own").unwrap();
    assert_eq!(seen(&souths), (Tier::Host, 1, false));
    assert_eq!(seen(&norths).1, 1);
    drop((lease, second.clone(), second));
    assert_eq!(seen(&souths), (Tier::Host, 0, false));
    registry.memory.forget(souths.digest());
    let _again = registry.lease(Some(&north), "own").unwrap();
    assert_eq!(seen(&souths), (Tier::Disk, 0, false));
}

#[test]
fn an_unloaded_ticket_is_no_longer_pinned() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let pinned = publish(&registry, "sql", 1);
    registry.pin(pinned.name()).unwrap();
    assert_eq!(registry.usage().pinned, 1);
    registry.unload(pinned.name()).unwrap();
    assert_eq!(registry.usage().pinned, 0);
}
