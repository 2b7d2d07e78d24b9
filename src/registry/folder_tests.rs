//! Tests of the registry and its folder: what changes on disk, and what the disk refuses.

use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::files::RefusedFile;
use super::scan::Unsettled;
use super::tests::{files, open, options, publish, staged, ticket_file};
use super::*;
use crate::ticket::Digest;

fn write(dir: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// Scans until nothing is being written; returns the aliases that were withdrawn.
fn settle(registry: &Registry, unsettled: &mut Unsettled) -> Vec<String> {
    let mut withdrawn = Vec::new();
    loop {
        let scanned = registry.rescan(unsettled).unwrap();
        withdrawn.extend(scanned.withdrawn.iter().map(|t| t.alias().to_owned()));
        if !scanned.unsettled {
            return withdrawn;
        }
    }
}

fn digest(registry: &Registry, alias: &str) -> Option<Digest> {
    registry.get(None, alias).map(|ticket| ticket.digest())
}

fn set_modified(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let times = fs::FileTimes::new().set_modified(time);
    fs::File::open(path).unwrap().set_times(times).unwrap();
}

#[test]
fn a_file_is_served_once_it_has_settled_whatever_its_time() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let mut unsettled = Unsettled::new();
    let path = write(&dir, "cats.safetensors", &ticket_file(1));
    assert!(registry.rescan(&mut unsettled).unwrap().unsettled);
    assert!(registry.is_empty());
    assert!(!registry.rescan(&mut unsettled).unwrap().unsettled);
    assert_eq!(digest(&registry, "cats"), Some(Digest::of(&ticket_file(1))));
    let lease = registry.lease(None, "cats").unwrap();
    // A clock that jumps back or ahead changes nothing.
    for (seed, seconds) in [(2, 1), (3, 9_000_000_000), (4, 1)] {
        fs::write(&path, ticket_file(seed)).unwrap();
        set_modified(&path, seconds);
        settle(&registry, &mut unsettled);
        let expected = Digest::of(&ticket_file(seed));
        assert_eq!(digest(&registry, "cats"), Some(expected));
    }
    assert_eq!(lease.ticket().digest(), Digest::of(&ticket_file(1)));
    fs::remove_file(&path).unwrap();
    assert_eq!(settle(&registry, &mut unsettled), ["cats"]);
    assert!(registry.is_empty());
}

#[test]
fn a_touched_file_keeps_its_generation_and_so_does_an_upload() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let mut unsettled = Unsettled::new();
    let published = publish(&registry, "cats", 1);
    let scanned = registry.rescan(&mut unsettled).unwrap();
    assert!(!scanned.unsettled && scanned.withdrawn.is_empty());
    set_modified(&dir.path().join("cats.safetensors"), 5);
    settle(&registry, &mut unsettled);
    assert_eq!(registry.get(None, "cats").unwrap().id(), published.id());
    // Deleted through the registry: the scan has nothing to withdraw.
    registry
        .remove(Name::public("cats"), &Condition::default())
        .unwrap();
    assert!(settle(&registry, &mut unsettled).is_empty());
}

#[test]
fn a_file_that_is_no_ticket_is_refused_until_it_is_mended() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let mut unsettled = Unsettled::new();
    let path = write(&dir, "cats.safetensors", &ticket_file(1));
    let tenants = write(&dir, "tenants/acme/dogs.safetensors", &ticket_file(2)[..70]);
    settle(&registry, &mut unsettled);
    fs::write(&path, &ticket_file(1)[..90]).unwrap();
    assert_eq!(settle(&registry, &mut unsettled), ["cats"]);
    let reasons = |tenant: Option<&Tenant>| -> Vec<String> {
        let refused = registry.refused(tenant);
        let show = |file: RefusedFile| format!("{}: {}", file.path.display(), file.reason);
        refused.into_iter().map(show).collect()
    };
    let all = reasons(None);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[0].starts_with("cats.safetensors: ") && all[0].contains("cut short"),
        "{all:?}"
    );
    let acme: Tenant = "acme".parse().unwrap();
    assert!(reasons(Some(&acme))[0].starts_with("tenants/acme/dogs.safetensors: "));
    assert!(reasons(Some(&"other".parse().unwrap())).is_empty());
    fs::write(&path, ticket_file(3)).unwrap();
    fs::write(&tenants, ticket_file(3)).unwrap();
    settle(&registry, &mut unsettled);
    assert_eq!(digest(&registry, "cats"), Some(Digest::of(&ticket_file(3))));
    assert!(registry.get(Some(&acme), "dogs").is_some());
    assert!(registry.get(None, "dogs").is_none());
    assert!(reasons(None).is_empty());
}

#[test]
fn a_name_that_becomes_free_is_given_to_the_file_that_waits_for_it() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let mut unsettled = Unsettled::new();
    publish(&registry, "cats", 1);
    write(&dir, "CATS.safetensors", &ticket_file(2));
    settle(&registry, &mut unsettled);
    assert_eq!(registry.refused(None).len(), 1);
    fs::remove_file(dir.path().join("cats.safetensors")).unwrap();
    settle(&registry, &mut unsettled);
    settle(&registry, &mut unsettled);
    assert_eq!(digest(&registry, "CATS"), Some(Digest::of(&ticket_file(2))));
    assert!(registry.refused(None).is_empty());
}

#[test]
fn a_start_reads_only_what_the_index_does_not_know() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "cats", 1);
    publish(&registry, "dogs", 2);
    registry.write_index();
    drop(registry);
    // What the index says is taken as it is.
    let index = dir.path().join(".tombola-index.json");
    let text = fs::read_to_string(&index).unwrap();
    assert!(text.contains("\"density\":0.00"), "{text}");
    let marked = text.replace("\"base_name\":\"tiny\"", "\"base_name\":\"indexed\"");
    fs::write(&index, &marked).unwrap();
    write(&dir, "dogs.safetensors", &ticket_file(3));
    let registry = open(&dir);
    let base = |alias| registry.get(None, alias).unwrap().facts().base_name.clone();
    assert_eq!(
        (base("cats"), base("dogs")),
        ("indexed".to_owned(), "tiny".to_owned())
    );
    assert_eq!(digest(&registry, "dogs"), Some(Digest::of(&ticket_file(3))));
    drop(registry);
    // It is bound to the options that its facts depend on, and a damaged one is ignored.
    let foreign = RegistryOptions {
        allow_foreign_base: true,
        ..options()
    };
    let base_name = |registry: &Registry| {
        registry
            .get(None, "cats")
            .unwrap()
            .facts()
            .base_name
            .clone()
    };
    let opened = Registry::open(dir.path(), None, tests::base(), foreign).unwrap();
    assert_eq!(base_name(&opened.registry), "tiny");
    drop(opened);
    fs::write(&index, &marked[..marked.len() / 2]).unwrap();
    assert_eq!(base_name(&open(&dir)), "tiny");
}

#[test]
fn a_full_disk_changes_nothing_and_is_noticed_until_there_is_room() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let before = publish(&registry, "cats", 1);
    let file = staged(&registry, &ticket_file(2));
    let fault = |kind| *lock(&registry.folder.fault) = kind;
    for (kind, trouble) in [
        (io::ErrorKind::StorageFull, FolderTrouble::DiskFull),
        (io::ErrorKind::QuotaExceeded, FolderTrouble::DiskFull),
        (io::ErrorKind::ReadOnlyFilesystem, FolderTrouble::ReadOnly),
        (io::ErrorKind::PermissionDenied, FolderTrouble::ReadOnly),
    ] {
        fault(Some(kind));
        assert!(matches!(registry.stage(), Err(RegistryError::Io { .. })));
        assert_eq!(registry.trouble(), Some(trouble));
        let removed = registry.remove(Name::public("cats"), &Condition::default());
        assert!(
            matches!(removed, Err(RegistryError::Io { .. })),
            "{removed:?}"
        );
        registry.probe();
        assert_eq!(registry.trouble(), Some(trouble));
        fault(None);
        registry.probe();
        assert_eq!(registry.trouble(), None);
    }
    fault(Some(io::ErrorKind::StorageFull));
    let refused = registry.publish(Name::public("cats"), file, &Condition::upsert());
    assert!(matches!(refused, Err(RegistryError::Io { .. })));
    fault(None);
    assert_eq!(
        registry.lease(None, "cats").unwrap().parts()[0]
            .generation
            .id(),
        before.id()
    );
    assert_eq!(files(&dir), ["cats.safetensors"]);
}

#[test]
fn a_folder_has_one_server() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir);
    let refused = Registry::open(dir.path(), None, tests::base(), options());
    let message = refused.err().unwrap().to_string();
    let process = format!("in use by process {}", std::process::id());
    assert!(message.contains(&process), "{message}");
    drop(first);
    open(&dir);
}

#[test]
fn a_full_disk_is_over_once_data_is_on_it_not_once_it_takes_a_name() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "cats", 1);
    let fault = |kind| *lock(&registry.folder.fault) = kind;
    fault(Some(io::ErrorKind::StorageFull));
    assert!(registry.stage().is_err());
    fault(None);
    drop(registry.stage().unwrap());
    registry
        .remove(Name::public("cats"), &Condition::default())
        .unwrap();
    assert_eq!(registry.trouble(), Some(FolderTrouble::DiskFull));
    publish(&registry, "dogs", 2);
    assert_eq!(registry.trouble(), None);
}

#[cfg(unix)]
#[test]
fn a_tenants_folder_that_is_mended_is_no_longer_refused() {
    let dir = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    let folder = dir.path().join("tenants/acme");
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &folder).unwrap();
    let registry = open(&dir);
    assert_eq!(registry.refused(None).len(), 1);
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    settle(&registry, &mut Unsettled::new());
    assert_eq!(registry.refused(None), []);
}
