use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn entry(name: &str) -> KeyEntry {
    KeyEntry {
        name: name.to_owned(),
        sha256: KeyDigest::of(name),
        tenant: None,
        scopes: Scopes::from_iter([Scope::Infer]),
        created: 0,
        expires: None,
    }
}

fn names(path: &Path) -> Vec<String> {
    let file = KeyFile::read(path).unwrap();
    file.keys.into_iter().map(|key| key.name).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn edits_are_durable_private_and_leave_no_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    KeyFile::edit(&path, |file| file.add(entry("a"))).unwrap();
    assert_eq!(mode(&path), 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    KeyFile::edit(&path, |file| file.add(entry("b"))).unwrap();
    assert_eq!(
        (names(&path), mode(&path)),
        (vec!["a".to_owned(), "b".to_owned()], 0o640)
    );
    KeyFile::edit(&path, |file| file.revoke("a")).unwrap();
    assert_eq!(names(&path), ["b"]);
    let error = KeyFile::edit(&path, |file| file.revoke("a")).unwrap_err();
    assert_eq!(error.to_string(), "there is no key `a`");
    assert!(KeyFile::edit(&path, |file| file.add(entry("b"))).is_err());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 2, "the key file and its lock");
}

#[test]
fn a_symbolic_link_stays_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (
        folder.path().join("real.json"),
        folder.path().join("link.json"),
    );
    KeyFile::edit(&target, |file| file.add(entry("a"))).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    KeyFile::edit(&link, |file| file.add(entry("b"))).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(names(&target), ["a", "b"]);
}

#[test]
fn concurrent_edits_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    std::thread::scope(|scope| {
        for i in 0..8 {
            let path = &path;
            scope.spawn(move || {
                KeyFile::edit(path, |file| file.add(entry(&format!("key-{i}")))).unwrap();
            });
        }
    });
    assert_eq!(names(&path).len(), 8);
}

#[test]
fn a_file_that_contradicts_itself_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let (digest, other) = (KeyDigest::of("a"), KeyDigest::of("b"));
    let key = |fields: &str| format!(r#"{{"keys": [{fields}]}}"#);
    let infer = |name: &str, digest: KeyDigest| {
        format!(r#"{{"name": "{name}", "sha256": "{digest}", "scopes": ["infer"]}}"#)
    };
    let with = |scopes: &str, more: &str| {
        key(&format!(
            r#"{{"name": "a", "sha256": "{digest}", "scopes": {scopes}{more}}}"#
        ))
    };
    for (text, reason) in [
        (String::new(), "EOF"),
        ("7".to_owned(), "expected struct KeyFile"),
        (r#"{"kyes": []}"#.to_owned(), "unknown field `kyes`"),
        (with("[]", ""), "`a` has no scope"),
        (with(r#"["write"]"#, ""), "tickets:write"),
        (with(r#"["infer"]"#, r#", "tenant": "../x""#), "tenant name"),
        (
            with(r#"["admin"]"#, r#", "tenant": "acme""#),
            "which is the operator's",
        ),
        (
            with(r#"["infer"]"#, r#", "sha265": """#),
            "unknown field `sha265`",
        ),
        (key(&infer("a b", digest)), "key name \"a b\""),
        (
            key(&(infer("a", digest) + "," + &infer("a", other))),
            "two keys",
        ),
        (
            key(&(infer("a", digest) + "," + &infer("b", digest))),
            "of another key",
        ),
        (
            key(&infer("a", digest).replace(&digest.to_string(), "12")),
            "hexadecimal",
        ),
        (
            r#"{"tenants": {"Acme": {}, "acme": {}}}"#.to_owned(),
            "in case only",
        ),
        (
            r#"{"tenants": {"a": {"max_request": 1}}}"#.to_owned(),
            "max_request",
        ),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = KeyFile::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains("keys.json"),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_key_expires_at_its_second() {
    let mut key = entry("a");
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    assert!(!key.is_expired(at(u32::MAX.into())));
    key.expires = Some(100);
    assert!(!key.is_expired(at(99)) && key.is_expired(at(100)));
    key.expires = Some(u64::MAX);
    assert!(!key.is_expired(at(100)));
}
