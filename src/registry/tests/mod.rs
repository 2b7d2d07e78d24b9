//! Tests of the registry, with tickets of a base of one layer.

mod line;
mod owners;
mod properties;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use candle_core::Device;
use tempfile::TempDir;

use super::*;
use crate::model::TicketLayout;
use crate::ticket::{DeltaDtype, Deltas, Digest, Metadata, ParameterInfo, TensorDelta, Ticket};

const PARAMETER: &str = "model.layers.0.mlp.up_proj.weight";

/// A base of one layer, whose projections are all 8×8.
pub fn base() -> Arc<BaseManifest> {
    let attention = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}"));
    let mlp = ["gate", "up", "down"].map(|name| format!("mlp.{name}"));
    let parameters = attention.into_iter().chain(mlp).map(|module| {
        let name = format!("model.layers.0.{module}_proj.weight");
        let info = ParameterInfo {
            shape: vec![8, 8],
            adaptable: true,
        };
        (name, info)
    });
    Arc::new(BaseManifest {
        name: "tiny".to_owned(),
        fingerprint: Digest::of(b"tiny"),
        parameters: parameters.collect(),
    })
}

/// Bytes of a ticket file, different for each `seed`.
pub fn ticket_file(seed: usize) -> Vec<u8> {
    let deltas = Deltas::from_f32(vec![seed as f32 + 1.0; 4], DeltaDtype::F32);
    let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
    let metadata = Metadata::new("any", &base(), 4);
    Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
}

fn one_ticket_bytes() -> usize {
    let ticket = Ticket::from_bytes(&ticket_file(0)).unwrap();
    ticket.resident_bytes()
}

fn open_with(dir: &TempDir, memory_budget: usize) -> Opened {
    let options = RegistryOptions {
        memory_budget,
        ..options()
    };
    Registry::open(dir.path(), None, base(), options).unwrap()
}

pub fn options() -> RegistryOptions {
    RegistryOptions {
        max_ticket_bytes: 1 << 20,
        memory_budget: 1 << 20,
        ..RegistryOptions::default()
    }
}

pub fn open(dir: &TempDir) -> Registry {
    open_with(dir, 1 << 20).registry
}

/// Whether a content is in memory.
fn in_memory(registry: &Registry, content: Digest) -> bool {
    registry.memory.residency(content).tier != Tier::Disk
}

pub fn staged(registry: &Registry, bytes: &[u8]) -> NamedTempFile {
    let mut file = registry.stage().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub fn publish(registry: &Registry, alias: &str, seed: usize) -> Arc<Generation> {
    let file = staged(registry, &ticket_file(seed));
    registry
        .publish(Name::public(alias), file, &Condition::upsert())
        .unwrap()
}

/// Names of the files in a folder, without the server's own.
pub fn files(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".tombola"))
        .collect();
    names.sort();
    names
}

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
    assert_eq!((lease.id(), lease.alias()), (generation.id(), "sql"));
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
    assert_eq!(registry.lease(None, "sql").unwrap().id(), before.id());
    assert_eq!(files(&dir), ["sql.safetensors"]);
}

#[test]
fn replaced_and_deleted_tickets_live_until_their_last_lease_ends() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "sql", 1);
    let first = registry.lease(None, "sql").unwrap();
    publish(&registry, "sql", 2);
    let second = registry.lease(None, "sql").unwrap();
    assert_ne!(first.id(), second.id());
    registry
        .remove(Name::public("sql"), &Condition::default())
        .unwrap();
    assert!(matches!(
        registry.lease(None, "sql"),
        Err(RegistryError::Unknown(_))
    ));
    assert!(matches!(
        registry.remove(Name::public("sql"), &Condition::default()),
        Err(RegistryError::Unknown(_))
    ));
    assert_eq!(first.ticket().digest(), Digest::of(&ticket_file(1)));
    assert_eq!(second.ticket().digest(), Digest::of(&ticket_file(2)));
    assert_eq!(registry.resident(), 2);
    drop((first, second));
    assert_eq!(registry.resident(), 0);
}

#[test]
fn a_file_changed_underneath_is_an_error_until_it_is_published_again() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "sql", 1);
    let path = dir.path().join("sql.safetensors");
    let valid_but_other = ticket_file(2);
    for content in [&valid_but_other[..], &valid_but_other[..60], b""] {
        fs::write(&path, content).unwrap();
        let error = registry.lease(None, "sql").unwrap_err();
        assert!(matches!(error, RegistryError::Changed { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        registry.lease(None, "sql"),
        Err(RegistryError::Changed { .. })
    ));
    assert_eq!(registry.resident(), 0);
    publish(&registry, "sql", 3);
    assert!(registry.lease(None, "sql").is_ok());
}

#[test]
fn the_budget_holds_and_the_least_recently_used_goes_first() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, 2 * one_ticket_bytes()).registry;
    for (seed, alias) in ["a", "b", "c"].into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    let (a, b) = (
        registry.lease(None, "a").unwrap(),
        registry.lease(None, "b").unwrap(),
    );
    // Both are leased, so neither can be evicted.
    let full = registry.lease(None, "c").unwrap_err();
    assert!(matches!(full, RegistryError::MemoryFull { .. }), "{full}");
    let same_payload = registry.lease(None, "a").unwrap();
    assert!(Arc::ptr_eq(same_payload.ticket(), a.ticket()));
    drop((a, same_payload));
    let idle_a = registry.get(None, "a").unwrap().digest();
    let c = registry.lease(None, "c").unwrap();
    assert!(!in_memory(&registry, idle_a));
    assert_eq!(registry.resident(), 2);
    drop((b, c));
    let _a = registry.lease(None, "a").unwrap();
    assert!(!in_memory(
        &registry,
        registry.get(None, "b").unwrap().digest()
    ));
    assert!(in_memory(
        &registry,
        registry.get(None, "c").unwrap().digest()
    ));
}

#[test]
fn a_ticket_larger_than_the_whole_budget_cannot_be_published() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, one_ticket_bytes() - 1).registry;
    let file = staged(&registry, &ticket_file(0));
    let refused = registry.publish(Name::public("sql"), file, &Condition::create());
    assert!(matches!(
        refused,
        Err(RegistryError::TooLargeForMemory { .. })
    ));
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

#[test]
fn aliases_of_one_content_share_its_memory_until_the_last_goes() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, one_ticket_bytes()).registry;
    let [a, b] = ["a", "b"].map(|alias| publish(&registry, alias, 1));
    assert_ne!(a.id(), b.id());
    // The budget holds one of them.
    let leases = ["a", "b"].map(|alias| registry.lease(None, alias).unwrap());
    assert!(Arc::ptr_eq(leases[0].ticket(), leases[1].ticket()));
    assert_eq!((leases[0].alias(), leases[1].alias()), ("a", "b"));
    drop(leases);
    registry
        .remove(Name::public("a"), &Condition::default())
        .unwrap();
    assert!(in_memory(&registry, b.digest()));
    publish(&registry, "b", 2);
    assert_eq!(registry.resident(), 0);
}

#[test]
fn leases_of_one_content_share_its_layout_and_an_error_keeps_none() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "a", 1);
    publish(&registry, "b", 1);
    let [a, b] = ["a", "b"].map(|alias| registry.lease(None, alias).unwrap());
    let fail = |_: &BoundTicket| Err(());
    assert!(a.ticket().layout_or_build(fail).is_err());
    assert!(a.ticket().layout().is_none() && b.ticket().layout().is_none());
    let build = |ticket: &BoundTicket| TicketLayout::new(ticket, &base(), &Device::Cpu);
    let built = a.ticket().layout_or_build(build).unwrap();
    assert_eq!(built.nonzeros(), a.ticket().nonzeros());
    assert!(Arc::ptr_eq(built, b.ticket().layout().unwrap()));
    assert!(Arc::ptr_eq(
        built,
        b.ticket().layout_or_build(fail).unwrap()
    ));
}
