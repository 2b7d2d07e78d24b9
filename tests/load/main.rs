//! The real server under load: 2,000 connections with streams, whole responses, uploads,
//! replacements, deletions and disconnects at once. Each answer is compared with the one that the
//! same request got while nothing else ran.
//!
//! `TOMBOLA_LOAD_SECONDS` and `TOMBOLA_LOAD_CONNECTIONS` change the size of the run. The line that
//! begins with `figures ` holds its counts as JSON.

mod answer;
mod client;
mod golden;
mod http;
mod process;
mod site;
mod support;
mod tally;
mod timeline;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use process::{descriptors, raise_descriptor_limit, resident_kib};
use site::Site;
use support::printable_base::PrintableBase;
use support::server::{Server, get};

/// Growth of resident memory that is allowed between the middle and the end of the run: what the
/// allocator keeps of freed memory varies by about that much.
const FLAT_SHARE: f64 = 0.1;
const FLAT_KIB: u64 = 16 << 10;

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn two_thousand_connections_lose_and_cross_no_token() {
    let connections = setting("TOMBOLA_LOAD_CONNECTIONS", 2000);
    let length = Duration::from_secs(setting("TOMBOLA_LOAD_SECONDS", 60));
    let descriptors_needed = connections + 200;
    assert!(
        raise_descriptor_limit(descriptors_needed) >= descriptors_needed,
        "the hard limit of RLIMIT_NOFILE is below {descriptors_needed}"
    );
    let base = PrintableBase::new();
    let tickets = tempfile::tempdir().expect("a folder");
    let model = base.model();
    let folder = support::environment::utf8(tickets.path());
    let flags = "--deterministic --max-queue 1024 --kv-cache-mib 8 --ticket-memory-mib 2";
    let mut args = vec!["--model", &model, "--tickets", folder];
    args.extend(flags.split(' '));
    let server = Server::start(&args);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let figures = runtime.block_on(load(&server, &base, connections, length));
    // The counts stand before the assertions, so that a failure shows them too.
    println!("figures {figures}");
    let violations = figures["violations"].as_u64();
    assert_eq!(violations, Some(0), "{:#}", figures["examples"]);
    is_at_rest(&server, &runtime, &figures);
    let files = std::fs::read_dir(tickets.path()).expect("the ticket folder");
    let names = files.map(|file| file.expect("an entry").file_name());
    let left: Vec<_> = names.filter(|name| is_temporary(name)).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
    assert!(server.terminate().success());
}

fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().contains(".tmp")
}

/// Runs the load; returns its counts.
async fn load(server: &Server, base: &PrintableBase, connections: u64, length: Duration) -> Value {
    let address = server.url().trim_start_matches("http://").parse();
    let address = address.expect("an address");
    let site = Site::prepare(address, base, &[])
        .await
        .expect("golden answers");
    // Almost every golden answer is unlike any other, so that a crossed one is seen.
    let (goldens, distinct) = (site.goldens.len(), site.goldens.distinct());
    assert!(
        distinct * 10 >= goldens * 8,
        "{distinct} of {goldens} are distinct"
    );
    let site = Arc::new(site);
    let idle = descriptors(server.id());
    let begin = Instant::now();
    site.start(length);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..connections {
        tasks.spawn(client::run(Arc::clone(&site), number));
    }
    for caller in 0..site.callers.len() {
        tasks.spawn(writer::replace(Arc::clone(&site), caller));
        tasks.spawn(writer::come_and_go(Arc::clone(&site), caller));
    }
    let (mut memory, mut most_open) = (Vec::new(), 0);
    while site.goes_on() {
        memory.push(resident_kib(server.id()));
        most_open = most_open.max(descriptors(server.id()));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client panicked");
    }
    let seconds = begin.elapsed().as_secs_f64();
    let counts = site.tally.counts();
    let third = memory.len() / 3;
    let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    json!({
        "connections": connections, "seconds": seconds, "goldens": goldens,
        "whole": counts.whole, "streamed": counts.streamed, "left": counts.left,
        "half_sent": counts.half_sent, "lists": counts.lists, "tokens": counts.tokens,
        "tokens_per_second": (counts.tokens as f64 / seconds).round(),
        "uploads": counts.uploads, "broken_uploads": counts.broken_uploads,
        "deletions": counts.deletions, "refused": counts.refused,
        "violations": counts.violations, "examples": counts.examples,
        "descriptors_idle": idle, "descriptors_most": most_open,
        "rss_kib_start": memory.first(), "rss_kib_middle": most(&memory[third..2 * third]),
        "rss_kib_end": most(&memory[2 * third..]),
    })
}

/// Asserts that nothing of the run is left: requests, KV blocks, connections, memory.
fn is_at_rest(server: &Server, runtime: &tokio::runtime::Runtime, figures: &Value) {
    let count = |name: &str| figures[name].as_u64().expect("a count");
    let deadline = Instant::now() + Duration::from_secs(20);
    let zero = [
        "tombola_num_requests_running",
        "tombola_num_requests_waiting",
        "tombola_kv_cache_usage_perc",
    ];
    let address = server.url().trim_start_matches("http://").parse();
    let site = Site::reader(address.expect("an address"));
    loop {
        let left = |name: &&str| runtime.block_on(site.metric(None, name)).expect("a series");
        let left: Vec<(&str, f64)> = zero.iter().map(|name| (*name, left(name))).collect();
        let open = descriptors(server.id());
        let rests = left.iter().all(|(_, value)| *value == 0.0);
        if rests && open <= count("descriptors_idle") as usize + 8 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{left:?}, {open} descriptors are left"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let facts: Value = serde_json::from_str(&get(server, "/v1/base?verify=true")).expect("JSON");
    assert_eq!(facts["intact"], true, "{facts}");
    let (middle, end) = (count("rss_kib_middle"), count("rss_kib_end"));
    let bound = (middle as f64 * (1.0 + FLAT_SHARE)) as u64 + FLAT_KIB;
    assert!(
        end <= bound,
        "{end} KiB at the end, {middle} KiB in the middle"
    );
}
