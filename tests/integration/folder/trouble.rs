//! A full disk and a read-only folder, made by mounts. The unit tests of the registry inject the
//! same errors where mounting is not allowed.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::place::{Place, served, wait_for};
use crate::support::environment::{tombola, utf8};
use crate::support::server::{Server, delete, get, upload};

/// Starts the binary in a mount namespace of its own, after `mount` has run there; `None` if this
/// machine allows no mounts.
fn start_mounted(place: &Place, mount: &str) -> Option<Server> {
    let allows = |namespace: &[&str]| {
        let tried = Command::new("unshare")
            .args(namespace)
            .args(["sh", "-c", "mount -t tmpfs none /mnt"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    // As root, or as root of a user namespace.
    let namespaces: [&[&str]; 2] = [&["--mount"], &["--mount", "--user", "--map-root-user"]];
    let Some(namespace) = namespaces.iter().find(|namespace| allows(namespace)) else {
        eprintln!("no mounts are allowed here: only the injected errors are tested");
        return None;
    };
    let mut command = Command::new("unshare");
    command
        .args(*namespace)
        .args(["sh", "-c", &format!("{mount} && exec \"$@\""), "sh"])
        .arg(tombola().get_program())
        .args(["--port", "0", "--cache-dir"])
        .arg(place.cache().path())
        .args(place.args());
    Some(Server::run(command))
}

fn health(server: &Server) -> Value {
    serde_json::from_str(&get(server, "/health")).unwrap()
}

#[test]
fn a_full_disk_is_507_and_health_says_degraded_until_there_is_room() {
    let place = Place::new();
    let folder = place.tickets();
    let folder = utf8(&folder);
    let filler = format!("{folder}/filler");
    let mount =
        format!("mount -t tmpfs -o size=4m none {folder} && head -c 3900000 /dev/zero > {filler}");
    let Some(server) = start_mounted(&place, &mount) else {
        return;
    };
    assert_eq!(health(&server), json!({"status": "ok"}));
    let small = place.encode(0.001, 1);
    let large = place.encode(0.9, 2);
    assert!(large.len() > 400_000, "{}", large.len());
    assert_eq!(upload(server.url(), "small", &small, false).unwrap().0, 201);
    let (status, answer) = upload(server.url(), "small", &large, true).unwrap();
    assert_eq!(
        (status, &answer["error"]["code"]),
        (507, &json!("disk_full"))
    );
    let degraded = health(&server);
    assert_eq!(degraded["status"], "degraded");
    assert!(degraded["reason"].as_str().unwrap().contains("full"));
    // The old ticket is untouched.
    assert_eq!(served(&server).len(), 1);
    // Room, seen through the server's own mounts.
    let seen = format!("/proc/{}/root{filler}", server.id());
    fs::remove_file(seen).unwrap();
    wait_for(&server, "room on the disk", || {
        health(&server)["status"] == "ok"
    });
    assert_eq!(upload(server.url(), "small", &large, true).unwrap().0, 201);
}

#[test]
fn a_read_only_folder_is_served_without_a_lock_and_refuses_changes() {
    let place = Place::new();
    fs::write(place.ticket("cats"), place.encode(0.01, 1)).unwrap();
    let folder = place.tickets();
    let folder = utf8(&folder);
    let mount = format!("mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}");
    let Some(server) = start_mounted(&place, &mount) else {
        return;
    };
    assert!(served(&server).contains_key("cats"));
    assert!(server.log().contains("read-only"), "{}", server.log());
    let read_only = json!("folder_read_only");
    let (status, answer) = upload(server.url(), "dogs", &place.encode(0.01, 2), false).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (503, &read_only));
    let (status, answer) = delete(server.url(), "/v1/tickets/cats").unwrap();
    assert_eq!((status, &answer["error"]["code"]), (503, &read_only));
    assert_eq!(health(&server)["status"], "degraded");
    assert!(served(&server).contains_key("cats"));
    let indexes = || fs::read_dir(place.cache().path()).unwrap();
    wait_for(&server, "an index in the cache folder", || {
        let mut names = indexes().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().starts_with("tickets-"))
    });
}
