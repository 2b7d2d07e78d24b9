//! A watched folder: files that come, change and go while the server runs, and files that are no
//! tickets.

use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tombola::ticket::Digest;

use super::place::{Place, refused, served, wait_for};
use crate::support::server::{get, post, upload};

fn digest(file: &[u8]) -> String {
    Digest::of(file).to_string()
}

#[test]
fn a_written_ticket_is_served_a_replaced_one_changes_and_a_removed_one_goes() {
    let place = Place::new();
    let server = place.start(&[]);
    let [first, second, third] = [1, 2, 3].map(|seed| place.encode(0.01, seed));
    let path = place.ticket("cats");
    let has = |name: &str, file: &[u8]| served(&server).get(name) == Some(&digest(file));
    // As `mv` and `tombola train` do.
    let beside = place.tickets().join("part");
    fs::write(&beside, &first).unwrap();
    fs::rename(&beside, &path).unwrap();
    wait_for(&server, "a new file", || has("cats", &first));
    let body = json!({"model": "cats", "prompt": "abc", "max_tokens": 1});
    let (status, answer) = post(&server, "/v1/completions", body.clone());
    assert_eq!(status, 200, "{answer}");

    // As `cp` does, in slow pieces; half a file is never served nor refused for good.
    let mut file = File::create(&path).unwrap();
    for piece in second.chunks(second.len() / 4) {
        file.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    drop(file);
    wait_for(&server, "a replaced file", || has("cats", &second));
    assert!(refused(&server).is_empty());

    // The times of a file say nothing about which is newer.
    for (seconds, content) in [(4_000_000_000, &third), (1, &first)] {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::write(&beside, content).unwrap();
        let file = File::open(&beside).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
        fs::rename(&beside, &path).unwrap();
        wait_for(&server, "a file of another time", || has("cats", content));
    }

    fs::remove_file(&path).unwrap();
    wait_for(&server, "a removed file", || served(&server).is_empty());
    assert_eq!(post(&server, "/v1/completions", body).0, 404);

    // A tenant's folder that appears later is watched too.
    let tenant = place.tickets().join("tenants/acme");
    fs::create_dir_all(&tenant).unwrap();
    fs::write(tenant.join("bad.safetensors"), "no ticket").unwrap();
    let bad = "tenants/acme/bad.safetensors";
    wait_for(&server, "a tenant's file", || {
        refused(&server).contains_key(bad)
    });
    assert!(server.terminate().success());
}

#[test]
fn an_upload_is_one_generation_though_the_folder_is_watched() {
    let place = Place::new();
    let server = place.start(&[]);
    for seed in 0..5 {
        let (status, answer) =
            upload(server.url(), "own", &place.encode(0.01, seed), true).unwrap();
        assert_eq!(status, 201, "{answer}");
    }
    let before = get(&server, "/v1/tickets/own");
    // Longer than the watch takes to notice and settle.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(get(&server, "/v1/tickets/own"), before);
    let log = server.log();
    assert!(!log.contains("serving a ticket from the folder"), "{log}");
}

#[test]
fn without_the_watch_the_folder_is_read_once() {
    let place = Place::new();
    let server = place.start(&["--no-watch"]);
    fs::write(place.ticket("cats"), place.encode(0.01, 1)).unwrap();
    thread::sleep(Duration::from_secs(3));
    assert!(served(&server).is_empty());
}

#[test]
fn files_that_are_no_tickets_are_set_aside_with_a_reason_and_never_block() {
    let place = Place::new();
    let good = place.encode(0.01, 1);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("outside.safetensors"), &good).unwrap();
    fs::write(place.ticket("good"), &good).unwrap();
    fs::write(place.ticket("cut"), &good[..good.len() / 2]).unwrap();
    let pipe = Command::new("mkfifo").arg(place.ticket("pipe")).status();
    assert!(pipe.expect("mkfifo").success());
    let _socket = UnixListener::bind(place.ticket("socket")).unwrap();
    symlink(
        outside.path().join("outside.safetensors"),
        place.ticket("link"),
    )
    .unwrap();
    symlink("nowhere", place.ticket("dangling")).unwrap();
    symlink("good.safetensors", place.ticket("alias")).unwrap();
    symlink("/dev/zero", place.ticket("device")).unwrap();
    fs::create_dir(place.ticket("folder")).unwrap();
    fs::create_dir_all(place.tickets().join("tenants/.bad name")).unwrap();
    let reasons = [
        ("cut.safetensors", "cut short"),
        ("pipe.safetensors", "a pipe"),
        ("socket.safetensors", "a socket"),
        ("link.safetensors", "outside the ticket folder"),
        ("dangling.safetensors", "cannot be read"),
        ("device.safetensors", "outside the ticket folder"),
        ("folder.safetensors", "a folder"),
        ("tenants/.bad name", "tenant name"),
    ];
    let server = place.start(&[]);
    let found = refused(&server);
    assert_eq!(found.len(), reasons.len(), "{found:?}");
    for (file, reason) in reasons {
        assert!(found[file].contains(reason), "{file}: {}", found[file]);
        assert!(!found[file].contains(place.tickets().to_str().unwrap()));
        assert!(server.log().contains(file), "{file} is not in the log");
    }
    let names: Vec<_> = served(&server).into_keys().collect();
    assert_eq!(names, ["alias", "good"]);

    // The same while the server runs.
    fs::remove_file(place.ticket("good")).unwrap();
    let pipe = Command::new("mkfifo").arg(place.ticket("good")).status();
    assert!(pipe.expect("mkfifo").success());
    wait_for(&server, "a pipe in place of a ticket", || {
        refused(&server).contains_key("good.safetensors") && served(&server).is_empty()
    });
    // A refused file that is mended is served.
    fs::write(place.ticket("cut"), &good).unwrap();
    wait_for(&server, "a mended file", || {
        served(&server).contains_key("cut")
    });
    assert!(!refused(&server).contains_key("cut.safetensors"));
}

#[test]
fn a_second_server_on_the_folder_refuses_to_start() {
    let place = Place::new();
    let server = place.start(&[]);
    let unfinished = place.tickets().join(".upload-of-the-first.tmp");
    fs::write(&unfinished, "half").unwrap();
    let second = crate::support::environment::tombola()
        .args(["--port", "0", "--cache-dir"])
        .arg(place.cache().path())
        .args(place.args())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{message}");
    let process = format!("in use by process {}", server.id());
    assert!(message.contains(&process), "{message}");
    assert!(unfinished.exists(), "the first server's upload was removed");
    server.kill();
    let next = place.start(&[]);
    assert!(!unfinished.exists());
    assert!(next.terminate().success());
}
