//! What leases keep in memory, and when it is freed.

use super::*;
use crate::model::TicketLayout;

#[test]
fn replaced_and_deleted_tickets_live_until_their_last_lease_ends() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "sql", 1);
    let first = registry.lease(None, "sql").unwrap();
    publish(&registry, "sql", 2);
    let second = registry.lease(None, "sql").unwrap();
    assert_ne!(id(&first), id(&second));
    registry
        .remove(Name::public("sql"), &Condition::default())
        .unwrap();
    assert!(matches!(
        registry.lease(None, "sql"),
        Err(RegistryError::Unknown(_))
    ));
    assert!(matches!(
        registry.remove(Name::public("sql"), &Condition::default()),
        Err(RegistryError::Unknown(_))
    ));
    assert_eq!(first.ticket().digest(), Digest::of(&ticket_file(1)));
    assert_eq!(second.ticket().digest(), Digest::of(&ticket_file(2)));
    assert_eq!(registry.resident(), 2);
    drop((first, second));
    assert_eq!(registry.resident(), 0);
}

#[test]
fn the_budget_holds_and_the_least_recently_used_goes_first() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, 2 * one_ticket_bytes()).registry;
    for (seed, alias) in ["a", "b", "c"].into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    let (a, b) = (
        registry.lease(None, "a").unwrap(),
        registry.lease(None, "b").unwrap(),
    );
    // Both are leased, so neither can be evicted.
    let full = registry.lease(None, "c").unwrap_err();
    assert!(matches!(full, RegistryError::MemoryFull { .. }), "{full}");
    let same_payload = registry.lease(None, "a").unwrap();
    assert!(Arc::ptr_eq(same_payload.ticket(), a.ticket()));
    drop((a, same_payload));
    let idle_a = registry.get(None, "a").unwrap().digest();
    let c = registry.lease(None, "c").unwrap();
    assert!(!in_memory(&registry, idle_a));
    assert_eq!(registry.resident(), 2);
    drop((b, c));
    let _a = registry.lease(None, "a").unwrap();
    assert!(!in_memory(
        &registry,
        registry.get(None, "b").unwrap().digest()
    ));
    assert!(in_memory(
        &registry,
        registry.get(None, "c").unwrap().digest()
    ));
}

#[test]
fn a_ticket_larger_than_the_whole_budget_cannot_be_published() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, one_ticket_bytes() - 1).registry;
    let file = staged(&registry, &ticket_file(0));
    let refused = registry.publish(Name::public("sql"), file, &Condition::create());
    assert!(matches!(
        refused,
        Err(RegistryError::TooLargeForMemory { .. })
    ));
}

#[test]
fn aliases_of_one_content_share_its_memory_until_the_last_goes() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, one_ticket_bytes()).registry;
    let [a, b] = ["a", "b"].map(|alias| publish(&registry, alias, 1));
    assert_ne!(a.id(), b.id());
    // The budget holds one of them.
    let leases = ["a", "b"].map(|alias| registry.lease(None, alias).unwrap());
    assert!(Arc::ptr_eq(leases[0].ticket(), leases[1].ticket()));
    assert_eq!((leases[0].alias(), leases[1].alias()), ("a", "b"));
    drop(leases);
    registry
        .remove(Name::public("a"), &Condition::default())
        .unwrap();
    assert!(in_memory(&registry, b.digest()));
    publish(&registry, "b", 2);
    assert_eq!(registry.resident(), 0);
}

#[test]
fn leases_of_one_content_share_its_layout_and_an_error_keeps_none() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "a", 1);
    publish(&registry, "b", 1);
    let [a, b] = ["a", "b"].map(|alias| registry.lease(None, alias).unwrap());
    let fail = |_: &BoundTicket| Err(());
    assert!(a.ticket().layout_or_build(fail).is_err());
    assert!(a.ticket().layout().is_none() && b.ticket().layout().is_none());
    let build = |ticket: &BoundTicket| TicketLayout::new(ticket, &base(), &Device::Cpu);
    let built = a.ticket().layout_or_build(build).unwrap();
    assert_eq!(built.nonzeros(), a.ticket().nonzeros());
    assert!(Arc::ptr_eq(built, b.ticket().layout().unwrap()));
    assert!(Arc::ptr_eq(
        built,
        b.ticket().layout_or_build(fail).unwrap()
    ));
}

#[test]
fn a_file_changed_underneath_is_an_error_until_it_is_published_again() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "sql", 1);
    let path = dir.path().join("sql.safetensors");
    let valid_but_other = ticket_file(2);
    for content in [&valid_but_other[..], &valid_but_other[..60], b""] {
        fs::write(&path, content).unwrap();
        let error = registry.lease(None, "sql").unwrap_err();
        assert!(matches!(error, RegistryError::Changed { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        registry.lease(None, "sql"),
        Err(RegistryError::Changed { .. })
    ));
    assert_eq!(registry.resident(), 0);
    publish(&registry, "sql", 3);
    assert!(registry.lease(None, "sql").is_ok());
}
