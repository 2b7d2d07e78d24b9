//! `tombola key`, and a server with keys, by the real binary.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::environment::{tombola, utf8};
use crate::support::server::{Server, agent};

/// Runs `tombola key ARGS --api-keys FILE`.
fn key(file: &Path, args: &[&str]) -> Output {
    let mut command = tombola();
    command.arg("key").args(args).arg("--api-keys").arg(file);
    command
        .env_remove("TOMBOLA_API_KEYS")
        .output()
        .expect("the binary runs")
}

/// Adds a key and returns it.
fn add(file: &Path, args: &[&str]) -> String {
    let output = key(file, &[&["add"], args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim_end().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_key_is_printed_once_and_kept_as_a_digest() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.json");
    let secret = add(&file, &["web", "--tenant", "acme", "--expires-in", "90d"]);
    assert!(secret.starts_with("tb-") && secret.len() == 67, "{secret}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stored = std::fs::read_to_string(&file).unwrap();
    assert!(!stored.contains(&secret[3..]), "{stored}");
    let list = text(&key(&file, &["list"]).stdout);
    // The key lasts 90 days, less the moment since it was made.
    for word in ["web", "acme", "infer", "  in "] {
        assert!(list.contains(word), "{word} is missing: {list}");
    }
    assert!(!list.contains(&secret[3..]));
    let again = key(&file, &["add", "web"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("exists already"));
    let limited = key(&file, &["limit", "acme", "--max-requests", "8"]);
    assert!(limited.status.success());
    let said = text(&limited.stderr);
    assert!(said.contains("`acme` has at most 8 requests"), "{said}");
    let other = folder.path().join("kyes.json");
    let misspelt = key(&other, &["limit", "acme", "--max-requests", "8"]);
    assert_eq!(misspelt.status.code(), Some(1));
    assert!(text(&misspelt.stderr).contains("there is no key file"));
    assert!(!other.exists());
    assert!(text(&key(&file, &["list"]).stdout).contains("acme: at most 8 requests"));
    assert!(key(&file, &["revoke", "web"]).status.success());
    let unknown = key(&file, &["revoke", "web"]);
    assert!(text(&unknown.stderr).contains("there is no key `web`"));
    let admin = key(
        &file,
        &["add", "x", "--tenant", "acme", "--scopes", "admin"],
    );
    assert!(
        text(&admin.stderr).contains("operator"),
        "{}",
        text(&admin.stderr)
    );
}

#[test]
fn an_address_that_others_reach_is_not_served_to_everyone() {
    let output = tombola()
        .args(["--host", "0.0.0.0", "--port", "0"])
        .env_remove("TOMBOLA_API_KEY")
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    for way in ["0.0.0.0", "--api-keys", "--insecure-no-auth"] {
        assert!(message.contains(way), "{message}");
    }
}

#[test]
fn a_running_server_follows_its_key_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.json");
    let first = add(&file, &["first"]);
    let server = Server::start(&["--api-keys", utf8(&file)]);
    assert!(
        server.banner.contains("$TOMBOLA_API_KEY"),
        "{}",
        server.banner
    );
    let status = |key: &str| {
        let url = format!("{}/v1/models", server.url());
        let request = agent()
            .get(&url)
            .header("authorization", format!("Bearer {key}"));
        request.call().expect("an answer").status().as_u16()
    };
    assert_eq!((status(&first), status("tb-other")), (200, 401));
    let second = add(&file, &["second"]);
    assert!(key(&file, &["revoke", "first"]).status.success());
    let deadline = Instant::now() + Duration::from_secs(10);
    while (status(&first), status(&second)) != (401, 200) {
        assert!(Instant::now() < deadline, "the keys were not reloaded");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(&file, "{").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(
        status(&second),
        200,
        "a broken file keeps the last good keys"
    );
    assert!(server.terminate().success());
}
