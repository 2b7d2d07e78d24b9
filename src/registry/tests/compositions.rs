//! Compositions: their identity, their memory, and what becomes of them when a part goes.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::*;
use crate::registry::selection::{Part, Selection, SelectionError};
use crate::ticket::merge::merge;

/// Publishes `a`, `b`, … with the seeds 0, 1, ….
fn publish_all(registry: &Registry, aliases: &[&str]) {
    for (seed, alias) in aliases.iter().enumerate() {
        publish(registry, alias, seed);
    }
}

/// The file that `ticket merge` writes of the tickets with these seeds.
fn merged(parts: &[(usize, f32)]) -> Ticket {
    let parts = parts
        .iter()
        .map(|&(seed, scale)| (bound(&ticket_file(seed)), scale));
    let parts: Vec<_> = parts.collect();
    merge(&parts, &base(), "merged", DeltaDtype::F32, None).unwrap()
}

/// A budget of that many tickets. While a composition loads, each part counts 8 bytes more: its f32
/// deltas might be bf16 ones that the sum widens.
fn room_for(dir: &TempDir, tickets: usize) -> Registry {
    open_with(dir, tickets * one_ticket_bytes()).registry
}

fn usage_of(registry: &Registry) -> (usize, usize) {
    let usage = registry.usage();
    (usage.resident, usage.leased)
}

#[test]
fn a_composition_is_what_a_merge_writes_under_its_own_name_and_digest() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish_all(&registry, &["a", "b", "c"]);
    for (text, parts) in [
        ("a+b", vec![(0, 1.0), (1, 1.0)]),
        ("b@0.5", vec![(1, 0.5)]),
        ("a@0.3+b@-2.0+c@0.1", vec![(0, 0.3), (1, -2.0), (2, 0.1)]),
    ] {
        let lease = registry.lease(None, text).unwrap();
        assert_eq!(lease.ticket().tensors(), merged(&parts).tensors(), "{text}");
        assert_eq!(
            (lease.alias(), lease.digest()),
            (text, lease.ticket().digest())
        );
        let mut own = parts
            .iter()
            .map(|&(seed, _)| Digest::of(&ticket_file(seed)));
        assert!(own.all(|digest| digest != lease.digest()));
        let leased = lease.parts().iter();
        let leased: Vec<_> = leased
            .map(|part| (part.generation.digest(), part.scale))
            .collect();
        let given = parts
            .iter()
            .map(|&(seed, s)| (Digest::of(&ticket_file(seed)), s));
        assert_eq!(leased, given.collect::<Vec<_>>());
    }
}

#[test]
fn the_same_sum_is_one_composition_and_a_ticket_alone_is_itself() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish_all(&registry, &["a", "b"]);
    let lease = |text: &str| registry.lease(None, text).unwrap();
    let digest = registry.get(None, "b").unwrap().digest().to_string();
    let first = lease("a+b@0.5");
    for same in [
        "b@0.5+a",
        &format!("b@{}@0.50+a@1.0", &digest[..8]),
        &format!("a+{digest}@0.5"),
    ] {
        let again = lease(same);
        assert!(Arc::ptr_eq(first.ticket(), again.ticket()), "{same}");
        assert_eq!(again.alias(), "a+b@0.5");
    }
    for other in ["a+b", "a@0.5+b", "b@0.5"] {
        assert_ne!(first.digest(), lease(other).digest(), "{other}");
    }
    let alone = lease("a@1.0");
    assert_eq!(
        (alone.alias(), alone.digest()),
        ("a", Digest::of(&ticket_file(0)))
    );
    assert!(Arc::ptr_eq(alone.ticket(), lease("a").ticket()));
}

#[test]
fn a_selection_is_checked_part_by_part() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish_all(&registry, &["a", "b"]);
    publish(&registry, "twin", 1);
    let part = |reference: &str, scale| Part {
        reference: reference.to_owned(),
        scale,
    };
    for base in ["tiny", "base"] {
        assert_eq!(registry.select(None, base).unwrap(), Selection::base());
        let alone = registry.select_parts(None, vec![part(base, 1.0)]);
        assert_eq!(alone.unwrap(), Selection::base());
        let scaled = registry.select(None, &format!("{base}@0.5")).unwrap_err();
        assert!(matches!(
            scaled,
            RegistryError::Selection(SelectionError::ScaledBase)
        ));
        let error = registry.select(None, &format!("a+{base}")).unwrap_err();
        assert!(error.to_string().contains(&format!("`{base}` is the base")));
    }
    let parts = vec![part("a", 1.0), part("b", 0.5)];
    let both = registry.select_parts(None, parts).unwrap();
    assert_eq!(both, registry.select(None, "a+b@0.5").unwrap());
    for (text, message) in [
        ("a+nobody@0.5", "there is no ticket `nobody`"),
        ("a+b@000000", "there is no ticket `b@000000`"),
        ("a+a@0.5", "`a` and `a` are the same ticket"),
        ("a+b+twin", "`b` and `twin` are the same ticket"),
        ("a+b@2", "`2` in `b@2` is neither"),
    ] {
        let error = registry.select(None, text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
    publish(&registry, "base", 2);
    assert!(!registry.select(None, "base").unwrap().is_base());
    assert!(registry.select(None, "base+a").is_ok());
}

#[test]
fn a_tenant_composes_what_it_sees() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let [acme, other]: [Tenant; 2] = ["acme", "other"].map(|name| name.parse().unwrap());
    publish_all(&registry, &["a", "b"]);
    let file = staged(&registry, &ticket_file(7));
    let own = Name::new(Some(&acme), "own");
    registry.publish(own, file, &Condition::create()).unwrap();
    let lease = registry.lease(Some(&acme), "own+a").unwrap();
    assert_eq!(lease.name(), Name::new(Some(&acme), "a+own"));
    let public = registry.lease(Some(&acme), "a+b").unwrap();
    assert_eq!(public.name(), Name::public("a+b"));
    let refused = registry.select(Some(&other), "own+a").unwrap_err();
    assert!(matches!(refused, RegistryError::Unknown(name) if name == "own"));
}

#[test]
fn a_sum_that_changes_nothing_is_refused() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish(&registry, "one", 0);
    publish(&registry, "two", 1);
    // The deltas are 1 and 2 at the same positions.
    let error = registry.lease(None, "one@-2.0+two").unwrap_err();
    assert!(matches!(error, RegistryError::Composition { .. }));
    let message = error.to_string();
    assert!(
        message.contains("`one@-2.0+two` cannot be composed"),
        "{message}"
    );
    assert_eq!(registry.usage().used, TicketBytes::default());
}

#[test]
fn compositions_are_evicted_like_tickets_and_made_again() {
    let dir = TempDir::new().unwrap();
    let registry = room_for(&dir, 3);
    publish_all(&registry, &["a", "b", "c"]);
    let each = one_ticket_bytes();
    let first = registry.lease(None, "a+b").unwrap();
    // Its parts were read and not kept; equal positions take their memory once.
    assert_eq!(usage_of(&registry), (1, 1));
    assert_eq!(registry.usage().used.host, each);
    let digest = first.digest();
    drop(first);
    assert!(in_memory(&registry, digest));
    let second = registry.lease(None, "b+c").unwrap();
    assert!(!in_memory(&registry, digest), "{:?}", registry.usage());
    assert_eq!(usage_of(&registry), (1, 1));
    // Until the second ends, there is no room to make the first again.
    let full = registry.lease(None, "a+b@0.5").unwrap_err();
    assert!(
        matches!(&full, RegistryError::MemoryFull { alias, .. } if alias == "a+b@0.5"),
        "{full}"
    );
    let single = registry.lease(None, "a").unwrap();
    drop((second, single));
    assert_eq!(registry.lease(None, "a+b").unwrap().digest(), digest);
    // In memory, a part is used from there: its file is not needed.
    let _a = registry.lease(None, "a").unwrap();
    fs::write(dir.path().join("a.safetensors"), b"").unwrap();
    assert!(registry.lease(None, "a@0.5").is_ok());
}

#[test]
fn a_composition_larger_than_the_memory_beside_the_pins_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let registry = room_for(&dir, 3);
    publish_all(&registry, &["a", "b", "c", "d"]);
    assert!(registry.select(None, "a+b").is_ok());
    let refused = registry.select(None, "a+b+c").unwrap_err();
    assert!(
        matches!(
            &refused,
            RegistryError::CompositionTooLarge { name, tier: Tier::Host, .. } if name == "a+b+c"
        ),
        "{refused}"
    );
    registry.pin(Name::public("c")).unwrap();
    registry.pin(Name::public("d")).unwrap();
    let refused = registry.lease(None, "a+b").unwrap_err();
    assert!(matches!(refused, RegistryError::CompositionTooLarge { .. }));
}

#[test]
fn compositions_of_replaced_and_deleted_tickets_live_until_their_last_lease_ends() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    publish_all(&registry, &["a", "b"]);
    let old = registry.lease(None, "a+b").unwrap();
    let idle = registry.lease(None, "a+b@0.5").unwrap().digest();
    let a = registry.get(None, "a").unwrap();
    assert_eq!(registry.residency(&a).leases, 1);
    assert_eq!(registry.own_residency(&a).leases, 1);
    publish(&registry, "a", 5);
    assert!(!in_memory(&registry, idle) && !in_memory(&registry, old.digest()));
    let new = registry.lease(None, "a+b").unwrap();
    assert_ne!(old.digest(), new.digest());
    assert_eq!(
        old.ticket().tensors(),
        merged(&[(0, 1.0), (1, 1.0)]).tensors()
    );
    assert_eq!(
        new.ticket().tensors(),
        merged(&[(5, 1.0), (1, 1.0)]).tensors()
    );
    registry
        .remove(Name::public("b"), &Condition::default())
        .unwrap();
    let refused = registry.lease(None, "a+b").unwrap_err();
    assert!(matches!(refused, RegistryError::Unknown(name) if name == "b"));
    assert_eq!(usage_of(&registry), (2, 2));
    drop((old, new));
    assert_eq!(registry.usage().used, TicketBytes::default());
    assert_eq!(registry.residency(&a).leases, 0);
}

type Leased = Result<Option<Lease>, RegistryError>;

fn lease_in_turn(registry: &Arc<Registry>, text: &str) -> JoinHandle<Leased> {
    let (registry, text) = (Arc::clone(registry), text.to_owned());
    tokio::spawn(async move {
        let selection = registry.select(None, &text)?;
        registry.lease_selected(None, &selection).await
    })
}

/// Reads a file once a file `go` lies beside it.
fn held_reader(path: &Path, max_bytes: u64) -> Result<Ticket, crate::ticket::TicketError> {
    while !path.with_file_name("go").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ticket::read(path, max_bytes)
}

#[tokio::test]
async fn callers_who_ask_at_once_share_one_merge_and_the_base_needs_no_lease() {
    let dir = TempDir::new().unwrap();
    let mut registry = open(&dir);
    registry.reader = held_reader;
    let registry = Arc::new(registry);
    publish_all(&registry, &["a", "b"]);
    let base = lease_in_turn(&registry, "tiny").await.unwrap().unwrap();
    assert!(base.is_none());
    let leases = ["a+b", "b+a", "a+b"].map(|text| lease_in_turn(&registry, text));
    while registry.usage().waiting < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::write(dir.path().join("go"), "").unwrap();
    let mut held = Vec::new();
    for lease in leases {
        held.push(lease.await.unwrap().unwrap().unwrap());
    }
    assert!(
        held.iter()
            .all(|lease| Arc::ptr_eq(lease.ticket(), held[0].ticket()))
    );
    assert_eq!(usage_of(&registry), (1, 1));
}

#[tokio::test]
async fn a_part_that_is_replaced_or_deleted_while_it_is_merged_is_seen_as_it_is_now() {
    let dir = TempDir::new().unwrap();
    let mut registry = open(&dir);
    registry.reader = held_reader;
    let registry = Arc::new(registry);
    publish_all(&registry, &["a", "b", "c"]);
    let [replaced, deleted] = ["a+b", "b+c"].map(|text| lease_in_turn(&registry, text));
    while registry.usage().waiting < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    publish(&registry, "a", 6);
    let name = Name::public("c");
    registry.remove(name, &Condition::default()).unwrap();
    fs::write(dir.path().join("go"), "").unwrap();
    let lease = replaced.await.unwrap().unwrap().unwrap();
    assert_eq!(
        lease.ticket().tensors(),
        merged(&[(6, 1.0), (1, 1.0)]).tensors()
    );
    let refused = deleted.await.unwrap().unwrap_err();
    assert!(matches!(refused, RegistryError::Unknown(name) if name == "c"));
    drop(lease);
    assert_eq!(
        registry.usage().resident,
        1,
        "the old composition is not cached"
    );
}

#[tokio::test]
async fn more_compositions_than_memory_holds_are_all_served_in_turn() {
    let dir = TempDir::new().unwrap();
    let registry = Arc::new(room_for(&dir, 3));
    publish_all(&registry, &["a", "b", "c"]);
    let texts = ["a+b", "b+c", "a+c", "a", "b@0.5+c"];
    let requests = (0..25).map(|request| {
        let (registry, text) = (Arc::clone(&registry), texts[request % texts.len()]);
        tokio::spawn(async move {
            let selection = registry.select(None, text).unwrap();
            let lease = registry.lease_selected(None, &selection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
            let usage = registry.usage();
            assert!(usage.used.host <= usage.budget.host, "{usage:?}");
            assert_eq!(lease.unwrap().alias(), text);
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
    let usage = registry.usage();
    assert_eq!((usage.waiting, usage.leased), (0, 0));
}
