//! What a file keeps of its name and its owner's room, served or not.

use super::*;

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
            registry.load_file(name, &path, &Condition::upsert())
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
    let with_seed = |seed: usize| {
        let deltas = Deltas::from_f32(vec![1.0; 4], DeltaDtype::F32);
        let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
        let mut metadata = Metadata::new("any", &base(), 4);
        metadata.training = Some(serde_json::json!({ "seed": seed }));
        Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
    };
    let files: Vec<_> = (0..8).map(with_seed).collect();
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
