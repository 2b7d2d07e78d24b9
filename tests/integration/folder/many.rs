//! Thousands of tickets in the folder.

use std::fs;
use std::time::{Duration, Instant};

use super::place::{Place, wait_for};
use crate::support::server::{Server, metric};

const TICKETS: usize = 5_000;
/// The start without any ticket takes its own time, which does not count.
const LIMIT: Duration = Duration::from_secs(3);

/// Resident memory of a process in KiB.
fn resident_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

fn start(place: &Place) -> (Server, Duration) {
    let begun = Instant::now();
    let server = place.start(&[]);
    (server, begun.elapsed())
}

#[test]
fn five_thousand_tickets_start_within_seconds_and_take_no_memory() {
    let place = Place::new();
    // The first start computes the fingerprint of the base.
    drop(start(&place));
    let (server, empty) = start(&place);
    let empty_kib = resident_kib(&server);
    drop(server);
    let mut bytes = 0;
    for i in 0..TICKETS {
        let file = place.encode(0.001, i as u64);
        bytes += file.len();
        fs::write(place.ticket(&format!("t{i:04}")), file).unwrap();
    }
    let (server, first) = start(&place);
    assert_eq!(metric(&server, "tombola_tickets"), TICKETS as f64);
    assert_eq!(metric(&server, "tombola_tickets_resident"), 0.0);
    let index = place.tickets().join(".tombola-index.json");
    wait_for(&server, "the index", || index.exists());
    let first_kib = resident_kib(&server);
    assert!(server.terminate().success());
    let (server, indexed) = start(&place);
    assert_eq!(metric(&server, "tombola_tickets"), TICKETS as f64);
    let indexed_kib = resident_kib(&server);
    println!(
        "{TICKETS} tickets of {} KiB: start {empty:.2?} without, {first:.2?} read, \
         {indexed:.2?} with the index; memory {empty_kib}, {first_kib} and {indexed_kib} KiB",
        bytes / TICKETS / 1024
    );
    assert!(first < empty + LIMIT, "{first:?}");
    assert!(indexed < empty + LIMIT, "{indexed:?}");
    // A few kilobytes per ticket, whatever their size.
    for kib in [first_kib, indexed_kib] {
        assert!(kib < empty_kib + 4 * TICKETS as u64, "{kib} KiB");
    }
    drop(server);
    // A damaged index is ignored.
    fs::write(&index, "{\"version\":1").unwrap();
    let (server, _) = start(&place);
    assert_eq!(metric(&server, "tombola_tickets"), TICKETS as f64);
    assert!(server.log().contains("the ticket index is damaged"));
}
