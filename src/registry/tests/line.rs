//! Loads beside each other, and the line of requests that wait for memory.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::*;
use crate::model::LoadedTicket;
use crate::registry::memory::{Account, Admitted, Wanted};
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
    lease_of(None, registry, alias)
}

fn lease_of(tenant: Option<&Tenant>, registry: &Arc<Registry>, alias: &str) -> JoinHandle<Leased> {
    let (registry, alias) = (Arc::clone(registry), alias.to_owned());
    let tenant = tenant.cloned();
    tokio::spawn(async move { registry.lease_in_turn(tenant.as_ref(), &alias).await })
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
        RegistryError::LineFull {
            waiting: 2,
            retry_after: 1
        }
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
    let began = Instant::now();
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

#[tokio::test]
async fn a_tenant_that_fills_its_share_of_the_line_locks_no_other_out() {
    let dir = TempDir::new().unwrap();
    let options = RegistryOptions {
        max_waiting: 6,
        ..RegistryOptions::default()
    };
    let registry = shared(&dir, 2, options);
    let aliases = ["a", "b", "c0", "c1", "c2", "c3", "c4", "d"];
    for (seed, alias) in aliases.into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    let [acme, beta]: [Tenant; 2] = ["acme", "beta"].map(|name| name.parse().unwrap());
    let a = registry.lease_in_turn(Some(&acme), "a").await.unwrap();
    let b = registry.lease_in_turn(Some(&beta), "b").await.unwrap();
    let mut cold = Vec::new();
    for i in 0..5 {
        cold.push(lease_of(Some(&acme), &registry, &format!("c{i}")));
        until(|| registry.usage().waiting == i + 1).await;
    }
    let refused = registry.lease_in_turn(Some(&acme), "d").await.unwrap_err();
    assert!(
        matches!(refused, RegistryError::LineShare { waiting: 5, .. }),
        "{refused}"
    );
    // However long the first has waited, a ticket in memory that fits beside its own is leased.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let warm = registry.lease_in_turn(Some(&beta), "b");
    let warm = tokio::time::timeout(Duration::from_millis(500), warm).await;
    assert_eq!(warm.expect("it waits in line").unwrap().alias(), "b");
    // The tenants take turns.
    let d = lease_of(Some(&beta), &registry, "d");
    until(|| registry.usage().waiting == 6).await;
    drop(a);
    let first = cold.remove(0).await.unwrap().unwrap();
    assert_eq!((first.alias(), d.is_finished()), ("c0", false));
    drop(first);
    assert_eq!(d.await.unwrap().unwrap().alias(), "d");
    drop(b);
    for cold in cold {
        assert!(cold.await.unwrap().is_ok());
    }
    assert_eq!(registry.usage().waiting, 0);
}

/// A request in the line of a memory whose budget is bytes of the host.
fn enter(memory: &Arc<Memory>, seed: u8, host: usize) -> JoinHandle<Option<Admitted>> {
    let content = Digest([seed; 32]);
    let wanted = Wanted {
        content,
        bytes: TicketBytes { host, device: 0 },
        arrived: Instant::now(),
    };
    let memory = Arc::clone(memory);
    let entered = memory.enter(Account::of(None, content), wanted, 9);
    let (place, granted) = entered.unwrap();
    tokio::spawn(async move {
        let _place = place;
        memory.turn(granted).await
    })
}

#[tokio::test]
async fn others_pass_the_first_in_line_only_while_it_fits_beside_them() {
    let memory = Arc::new(Memory::new(TicketBytes {
        host: 10,
        device: 0,
    }));
    let granted = async |request: JoinHandle<Option<Admitted>>| {
        let granted = tokio::time::timeout(Duration::from_secs(5), request).await;
        granted.expect("it waits in line").unwrap().unwrap()
    };
    let held = granted(enter(&memory, 0, 4)).await;
    let large = enter(&memory, 1, 7);
    tokio::task::yield_now().await;
    let small = granted(enter(&memory, 2, 3)).await;
    // There is room for it, but with it and the one before, the large one would never fit.
    let other = enter(&memory, 3, 3);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!large.is_finished() && !other.is_finished());
    drop(held);
    let large = granted(large).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!other.is_finished());
    drop(small);
    granted(other).await;
    drop(large);
    assert_eq!(memory.usage().used, TicketBytes::default());
}

#[tokio::test]
async fn those_who_wait_hold_no_memory_that_the_first_in_line_needs() {
    let memory = Arc::new(Memory::new(TicketBytes {
        host: 20,
        device: 4,
    }));
    let bytes = TicketBytes {
        host: 10,
        device: 4,
    };
    let bound = |seed| {
        let ticket = Ticket::from_bytes(&ticket_file(seed)).unwrap();
        ticket.bind(&base(), false).unwrap()
    };
    let wanted = |ticket: &BoundTicket, bytes| Wanted {
        content: ticket.digest(),
        bytes,
        arrived: Instant::now(),
    };
    let load = |seed| {
        let ticket = bound(seed);
        let (room, _) = memory.room_for(&wanted(&ticket, bytes)).unwrap();
        memory.keep(LoadedTicket::new(ticket), room)
    };
    // The first goes to the host when the second comes.
    drop(load(0));
    let on_device = load(1);
    let line = |seed, host| {
        let wanted = wanted(&bound(seed), TicketBytes { host, ..bytes });
        let account = Account::of(None, wanted.content);
        let (place, granted) = memory.enter(account, wanted, 9).unwrap();
        let memory = Arc::clone(&memory);
        tokio::spawn(async move { (memory.turn(granted).await, place) })
    };
    let first = line(2, 20);
    let second = line(0, 10);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!first.is_finished() && !second.is_finished());
    drop(on_device);
    let first = tokio::time::timeout(Duration::from_secs(5), first).await;
    drop(first.expect("the second has the memory it needs"));
    assert!(second.await.unwrap().0.is_some());
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
