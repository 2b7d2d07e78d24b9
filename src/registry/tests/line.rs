//! Loads beside each other, and the line of requests that wait for memory.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::*;
use crate::ticket::TicketError;

fn shared(dir: &TempDir, room: usize, options: RegistryOptions) -> Arc<Registry> {
    let options = RegistryOptions {
        memory_budget: room * one_ticket_bytes(),
        ..options
    };
    let registry = Registry::open(dir.path(), None, base(), options)
        .unwrap()
        .registry;
    Arc::new(registry)
}

type Leased = Result<Lease, RegistryError>;

fn lease(registry: &Arc<Registry>, alias: &str) -> JoinHandle<Leased> {
    let (registry, alias) = (Arc::clone(registry), alias.to_owned());
    tokio::spawn(async move { registry.lease_in_turn(None, &alias).await })
}

async fn until(holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 10 s");
}

#[tokio::test]
async fn requests_for_more_tickets_than_memory_holds_are_all_served_in_turn() {
    let dir = TempDir::new().unwrap();
    let registry = shared(&dir, 1, RegistryOptions::default());
    let aliases = ["a", "b", "c", "d", "e", "f"];
    for (seed, alias) in aliases.into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    let requests = (0..24).map(|request| {
        let (registry, alias) = (Arc::clone(&registry), aliases[request % 6]);
        tokio::spawn(async move {
            let lease = registry.lease_in_turn(None, alias).await.unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
            let usage = registry.usage();
            assert!(usage.used.host <= usage.budget.host, "{usage:?}");
            lease.digest()
        })
    });
    let requests: Vec<_> = requests.collect();
    for (request, served) in requests.into_iter().enumerate() {
        let expected = Digest::of(&ticket_file(request % 6));
        assert_eq!(served.await.unwrap(), expected);
    }
    let usage = registry.usage();
    assert_eq!((usage.waiting, usage.leased, usage.resident), (0, 0, 1));
}

#[tokio::test]
async fn the_line_is_bounded_ends_with_its_request_and_is_first_come_first_served() {
    let dir = TempDir::new().unwrap();
    let options = RegistryOptions {
        max_waiting: 2,
        ..RegistryOptions::default()
    };
    let registry = shared(&dir, 1, options);
    for (seed, alias) in ["a", "b", "c"].into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    let a = registry.lease_in_turn(None, "a").await.unwrap();
    let b = lease(&registry, "b");
    until(|| registry.usage().waiting == 1).await;
    let c = lease(&registry, "c");
    until(|| registry.usage().waiting == 2).await;
    let refused = registry.lease_in_turn(None, "b").await.unwrap_err();
    assert!(matches!(
        refused,
        RegistryError::TooManyWaiting { waiting: 2 }
    ));
    // A disconnect leaves the line, and the next is served.
    b.abort();
    until(|| registry.usage().waiting == 1).await;
    assert!(!c.is_finished());
    drop(a);
    let c = c.await.unwrap().unwrap();
    assert_eq!(c.digest(), Digest::of(&ticket_file(2)));
    let b = lease(&registry, "b");
    until(|| registry.usage().waiting == 1).await;
    drop(c);
    assert!(b.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_request_waits_for_memory_only_as_long_as_it_may() {
    let dir = TempDir::new().unwrap();
    let options = RegistryOptions {
        memory_wait: Duration::from_millis(50),
        ..RegistryOptions::default()
    };
    let registry = shared(&dir, 1, options);
    publish(&registry, "a", 0);
    publish(&registry, "b", 1);
    let _a = registry.lease_in_turn(None, "a").await.unwrap();
    let refused = registry.lease_in_turn(None, "b").await.unwrap_err();
    assert!(
        matches!(refused, RegistryError::MemoryFull { .. }),
        "{refused}"
    );
    assert_eq!(registry.usage().waiting, 0);
    assert!(registry.lease_in_turn(None, "a").await.is_ok());
}

#[tokio::test]
async fn a_busy_ticket_does_not_keep_others_out_for_long() {
    let dir = TempDir::new().unwrap();
    let registry = shared(&dir, 1, RegistryOptions::default());
    publish(&registry, "a", 0);
    publish(&registry, "b", 1);
    let mut held = registry.lease_in_turn(None, "a").await.unwrap();
    let b = lease(&registry, "b");
    until(|| registry.usage().waiting == 1).await;
    // Each request for `a` begins before the last one ends. For a while they join it.
    let began = std::time::Instant::now();
    while registry.usage().waiting == 1 {
        assert!(began.elapsed() < Duration::from_secs(5), "`b` starves");
        let next = lease(&registry, "a");
        until(|| next.is_finished() || registry.usage().waiting == 2).await;
        if next.is_finished() {
            held = next.await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(began.elapsed() > Duration::from_millis(500));
    drop(held);
    assert!(b.await.unwrap().is_ok());
}

/// Reads `slow.safetensors` once a file `go` lies beside it.
fn slow_reader(path: &Path, max_bytes: u64) -> Result<Ticket, TicketError> {
    while path.ends_with("slow.safetensors") && !path.with_file_name("go").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ticket::read(path, max_bytes)
}

#[tokio::test]
async fn a_slow_load_delays_no_other_ticket_and_is_shared_by_its_requests() {
    let dir = TempDir::new().unwrap();
    let mut registry = open_with(&dir, 4 * one_ticket_bytes()).registry;
    registry.reader = slow_reader;
    let registry = Arc::new(registry);
    publish(&registry, "slow", 0);
    publish(&registry, "quick", 1);
    let slow = [(); 3].map(|()| lease(&registry, "slow"));
    until(|| registry.usage().waiting == 3).await;
    let quick = registry.lease_in_turn(None, "quick");
    let quick = tokio::time::timeout(Duration::from_secs(5), quick).await;
    assert_eq!(quick.unwrap().unwrap().alias(), "quick");
    assert!(slow.iter().all(|slow| !slow.is_finished()));
    // One disconnects; its load goes on for the others.
    slow[0].abort();
    fs::write(dir.path().join("go"), "").unwrap();
    let [_, second, third] = slow;
    let second = second.await.unwrap().unwrap();
    let third = third.await.unwrap().unwrap();
    assert!(Arc::ptr_eq(second.ticket(), third.ticket()));
    assert_eq!(registry.usage().resident, 2);
}

#[tokio::test]
async fn a_ticket_that_is_replaced_while_it_loads_is_served_as_it_is_now() {
    let dir = TempDir::new().unwrap();
    let mut registry = open_with(&dir, 4 * one_ticket_bytes()).registry;
    registry.reader = slow_reader;
    let registry = Arc::new(registry);
    publish(&registry, "slow", 0);
    let lease = lease(&registry, "slow");
    until(|| registry.usage().waiting == 1).await;
    let current = publish(&registry, "slow", 1).digest();
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(lease.await.unwrap().unwrap().digest(), current);
    assert_eq!(registry.usage().resident, 1);
}
