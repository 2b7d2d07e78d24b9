use axum::body::Body;

use super::*;

fn rules(bound: &str, hosts: &[&str], origins: &[&str]) -> BrowserRules {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    BrowserRules::new(bound.parse().unwrap(), &owned(hosts), &owned(origins)).unwrap()
}

fn check(rules: &BrowserRules, headers: &[(&str, &str)]) -> bool {
    let request = headers.iter().fold(Request::get("/"), |r, (name, value)| {
        r.header(*name, *value)
    });
    rules
        .check(&request.body(Body::empty()).unwrap(), false)
        .is_ok()
}

#[test]
fn the_host_is_loopback_in_all_its_spellings() {
    let rules = rules("127.0.0.1", &[], &[]);
    for host in [
        "localhost",
        "LOCALHOST:8000",
        "localhost.:80",
        "app.localhost",
        "127.0.0.1:8000",
        "127.1.2.3",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
    ] {
        assert!(check(&rules, &[("host", host)]), "{host}");
    }
    for host in [
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "192.168.1.5:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "localhost@evil.example",
        "127.0.0.1:80:evil",
        "",
    ] {
        assert!(!check(&rules, &[("host", host)]), "{host}");
    }
    assert!(!check(
        &rules,
        &[("host", "localhost"), ("host", "evil.example")]
    ));
    assert!(check(&rules, &[]), "programs need not send it");
}

#[test]
fn a_refused_host_is_named_as_the_flag_takes_it() {
    let rules = rules("127.0.0.1", &[], &[]);
    for (host, flag) in [("gpu-box:8000", "gpu-box"), ("[fd00::1]:8000", "fd00::1")] {
        let request = Request::get("/").header("host", host);
        let request = request.body(Body::empty()).unwrap();
        let refused = rules.check(&request, false).unwrap_err().to_string();
        let advice = format!("--allowed-host {flag}");
        assert!(refused.ends_with(&advice), "{refused}");
        let names = [flag.to_owned()];
        assert!(BrowserRules::new([127, 0, 0, 1].into(), &names, &[]).is_ok());
    }
}

#[test]
fn a_bound_address_and_configured_names_are_hosts_too() {
    let everything = rules("::1", &["*"], &[]);
    let rules = rules("0.0.0.0", &["GPU-box.lan"], &[]);
    for host in ["gpu-box.lan:8000", "192.168.1.5:8000", "[fd00::1]:8000"] {
        assert!(check(&rules, &[("host", host)]), "{host}");
    }
    assert!(!check(&rules, &[("host", "evil.example")]));
    assert!(check(&everything, &[("host", "evil.example")]));
}

#[test]
fn origins_are_loopback_configured_or_the_servers_own() {
    let rules = rules("0.0.0.0", &["api.example"], &["https://App.example/"]);
    let from = |host: &str, origin: &str| check(&rules, &[("host", host), ("origin", origin)]);
    for origin in [
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://[::1]:8000",
        "https://app.example",
        "https://api.example",
    ] {
        assert!(from("api.example", origin), "{origin}");
    }
    for origin in [
        "null",
        "",
        "https://evil.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil.example",
        "https://localhost.evil.example",
        "file://",
    ] {
        assert!(!from("api.example", origin), "{origin}");
    }
    let twice = [
        ("origin", "http://localhost"),
        ("origin", "https://evil.example"),
    ];
    assert!(!check(&rules, &twice));
}

#[test]
fn a_request_of_another_site_without_an_origin_is_refused() {
    let rules = rules("127.0.0.1", &[], &["https://app.example"]);
    let site = |site: &str| check(&rules, &[("host", "localhost"), ("sec-fetch-site", site)]);
    assert!(!site("cross-site"));
    assert!(site("none") && site("same-origin") && site("same-site"));
    let allowed = [
        ("origin", "https://app.example"),
        ("sec-fetch-site", "cross-site"),
    ];
    assert!(check(&rules, &allowed));
}

#[test]
fn names_that_no_browser_sends_are_refused_at_the_start() {
    let new = |hosts: &[&str], origins: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        BrowserRules::new([127, 0, 0, 1].into(), &owned(hosts), &owned(origins))
    };
    for host in ["", "https://a", "a:80", "a/b"] {
        assert!(new(&[host], &[]).is_err(), "{host}");
    }
    for origin in ["", "a.example", "https://", "https://a.example/path"] {
        assert!(new(&[], &[origin]).is_err(), "{origin}");
    }
    assert!(new(&["::1", "a", "*"], &["*", "null", "app://obsidian.md"]).is_ok());
}
