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
use support::environment::utf8;
use support::keys::Keys;
use support::printable_base::PrintableBase;
use support::server::Server;
use tally::Counts;

/// Growth of resident memory that is allowed between the middle and the end of the run: what the
/// allocator keeps of freed memory varies by about that much.
const FLAT_SHARE: f64 = 0.1;
const FLAT_KIB: u64 = 16 << 10;

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

/// Series that are 0 once nothing runs.
const AT_REST: [&str; 5] = [
    "tombola_num_requests_running",
    "tombola_num_requests_waiting",
    "tombola_kv_cache_usage_perc",
    "tombola_tickets_leased",
    "tombola_ticket_requests_waiting",
];

#[test]
fn two_thousand_connections_lose_and_cross_no_token() {
    let connections = setting("TOMBOLA_LOAD_CONNECTIONS", 2000);
    let length = Duration::from_secs(setting("TOMBOLA_LOAD_SECONDS", 60));
    // Both ends of each connection are on this machine, each process has its own limit, and the
    // server keeps some for its files.
    let needed = 2 * connections + 500;
    assert!(
        raise_descriptor_limit(needed) >= needed,
        "the hard limit of RLIMIT_NOFILE is below {needed}"
    );
    let base = PrintableBase::new();
    let tickets = tempfile::tempdir().expect("a folder");
    let keys = Keys::new(&["north", "south", "east"]);
    let (model, [key_flag, key_file]) = (base.model(), keys.flag());
    let args = [
        "--model",
        &model,
        &key_flag,
        &key_file,
        "--tickets",
        utf8(tickets.path()),
    ];
    let flags = "--deterministic --max-queue 1024 --kv-cache-mib 8 --ticket-memory-mib 2";
    let args: Vec<&str> = args.into_iter().chain(flags.split(' ')).collect();
    let server = Server::start(&args);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(load(&server, &base, connections, length));
    let files = std::fs::read_dir(tickets.path()).expect("the ticket folder");
    let names = files.map(|file| file.expect("an entry").file_name());
    let left: Vec<_> = names.filter(|name| is_temporary(name)).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
    assert!(server.terminate().success());
}

fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().ends_with(".tmp")
}

/// Runs the load, prints its counts, and asserts that nothing is wrong and nothing is left.
async fn load(server: &Server, base: &PrintableBase, connections: u64, length: Duration) {
    let address = server.url().trim_start_matches("http://").parse();
    let keys = ["operator", "north", "south", "east"].map(Keys::of);
    let site = Site::prepare(address.expect("an address"), base, &keys).await;
    let site = Arc::new(site.expect("golden answers"));
    // Almost every golden answer is unlike any other, so that a crossed one is seen.
    let (goldens, distinct) = (site.goldens.len(), site.goldens.distinct());
    assert!(
        distinct * 10 >= goldens * 8,
        "{distinct} of {goldens} are distinct"
    );
    let idle = descriptors(server.id());
    let begin = Instant::now();
    let memory = clients(server, &site, connections, length).await;
    let seconds = begin.elapsed().as_secs_f64();
    let counts = site.tally.counts();
    // The counts come before the assertions, so that a failure shows them too.
    let figures = json!({
        "connections": connections, "seconds": seconds, "goldens": goldens,
        "tenants": site.callers.len(), "tokens_per_second": counts.tokens as f64 / seconds,
        "rss_kib": {"start": memory.start, "middle": memory.middle, "end": memory.end},
    });
    println!("figures {}", merged(figures, &counts));
    assert_eq!(counts.violations, 0, "{:#?}", counts.examples);
    is_at_rest(server, &site, idle).await;
    let bound = (memory.middle as f64 * (1.0 + FLAT_SHARE)) as u64 + FLAT_KIB;
    assert!(memory.end <= bound, "{memory:?}");
}

fn merged(mut figures: Value, counts: &Counts) -> Value {
    let counts = serde_json::to_value(counts).expect("JSON");
    for (name, count) in counts.as_object().expect("an object") {
        figures[name] = count.clone();
    }
    figures
}

/// Resident memory in KiB: when the clients begin, and the most in the middle and in the last third
/// of the run.
#[derive(Debug)]
struct Memory {
    start: u64,
    middle: u64,
    end: u64,
}

/// Runs all clients and writers to their end.
async fn clients(server: &Server, site: &Arc<Site>, connections: u64, length: Duration) -> Memory {
    site.start(length);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..connections {
        tasks.spawn(client::run(Arc::clone(site), number));
    }
    for caller in 0..site.callers.len() {
        tasks.spawn(writer::replace(Arc::clone(site), caller));
        tasks.spawn(writer::come_and_go(Arc::clone(site), caller));
    }
    let mut samples = Vec::new();
    while site.goes_on() || samples.len() < 3 {
        samples.push(resident_kib(server.id()));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client panicked");
    }
    let third = samples.len() / 3;
    let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    Memory {
        start: samples[0],
        middle: most(&samples[third..2 * third]),
        end: most(&samples[2 * third..]),
    }
}

/// Waits until nothing of the run is left: requests, KV blocks, leases, connections. The base is
/// as it was loaded.
async fn is_at_rest(server: &Server, site: &Site, idle: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut left = Vec::new();
        for name in AT_REST {
            let value = site.metric(name).await.expect("a series");
            if value != 0.0 {
                left.push((name, value));
            }
        }
        // The one that reads this series is open.
        let connections = site
            .metric("tombola_http_connections")
            .await
            .expect("a series");
        if connections > 1.0 {
            left.push(("tombola_http_connections", connections));
        }
        let open = descriptors(server.id());
        if left.is_empty() && open <= idle + 8 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "left: {left:?}, {open} descriptors"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let facts = site.get("/v1/base?verify=true").await.expect("the base");
    let facts: Value = serde_json::from_str(&facts).expect("JSON");
    assert_eq!(facts["intact"], true, "{facts}");
}
