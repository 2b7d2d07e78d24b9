//! Tiers of memory: eviction from the device to the host, pins, and layouts built by loads.

use std::time::Instant;

use super::*;
use crate::model::LoadedTicket;
use crate::registry::memory::{Held, Memory, Wanted};

fn bound(seed: usize) -> BoundTicket {
    super::bound(&ticket_file(seed))
}

const EACH: TicketBytes = TicketBytes {
    host: 10,
    device: 4,
};

fn wanted(seed: usize) -> Wanted {
    Wanted {
        content: bound(seed).digest(),
        bytes: EACH,
        arrived: Instant::now(),
    }
}

fn load(memory: &Memory, seed: usize) -> Option<Held> {
    let (room, _) = memory.room_for(&wanted(seed))?;
    Some(memory.keep(LoadedTicket::new(bound(seed)), room))
}

#[test]
fn a_full_device_sends_idle_tickets_to_the_host_and_a_full_host_to_their_files() {
    let memory = Memory::new(TicketBytes {
        host: 30,
        device: 8,
    });
    let digests = [0, 1, 2, 3].map(|seed| bound(seed).digest());
    let tiers = || digests.map(|digest| memory.residency(digest).tier);
    drop((load(&memory, 0).unwrap(), load(&memory, 1).unwrap()));
    assert_eq!(tiers()[..2], [Tier::Device, Tier::Device]);
    let third = load(&memory, 2).unwrap();
    assert_eq!(
        tiers(),
        [Tier::Host, Tier::Device, Tier::Device, Tier::Disk]
    );
    // On the host alone, it is not ready; it comes back without its file.
    assert!(memory.get(digests[0], EACH).is_none());
    let (room, on_host) = memory.room_for(&wanted(0)).unwrap();
    let (ticket, of_host) = on_host.unwrap();
    let first = memory.keep(LoadedTicket::new(ticket), room.join(of_host));
    assert_eq!(
        tiers(),
        [Tier::Device, Tier::Host, Tier::Device, Tier::Disk]
    );
    assert!(load(&memory, 3).is_none(), "both on the device are in use");
    drop((first, third));
    drop(load(&memory, 3).unwrap());
    assert_eq!(tiers()[3], Tier::Device);
    let usage = memory.usage();
    assert!(usage.used.host <= 30 && usage.used.device <= 8, "{usage:?}");
    assert_eq!(usage.leased, 0);
    for digest in digests {
        memory.forget(digest);
    }
    assert_eq!(memory.usage().used, TicketBytes::default());
}

#[test]
fn a_ticket_for_which_there_is_no_room_evicts_nothing() {
    let memory = Memory::new(TicketBytes {
        host: 30,
        device: 12,
    });
    let leased = load(&memory, 0).unwrap();
    drop((load(&memory, 1).unwrap(), load(&memory, 2).unwrap()));
    for bytes in [
        TicketBytes { host: 21, ..EACH },
        TicketBytes { device: 9, ..EACH },
    ] {
        let wanted = Wanted { bytes, ..wanted(3) };
        assert!(memory.room_for(&wanted).is_none());
        for idle in [1, 2].map(|seed| bound(seed).digest()) {
            assert_eq!(memory.residency(idle).tier, Tier::Device);
        }
    }
    drop(leased);
}

#[test]
fn pinned_tickets_stay_and_leave_room_for_the_largest_other() {
    let dir = TempDir::new().unwrap();
    let registry = open_with(&dir, 2 * one_ticket_bytes()).registry;
    for (seed, alias) in ["a", "b", "c"].into_iter().enumerate() {
        publish(&registry, alias, seed);
    }
    registry.pin(Name::public("a")).unwrap();
    let a = registry.lease(None, "a").unwrap().digest();
    for alias in ["b", "c", "b"] {
        drop(registry.lease(None, alias).unwrap());
        assert!(in_memory(&registry, a));
    }
    let refused = registry.pin(Name::public("b")).unwrap_err();
    assert!(
        matches!(refused, RegistryError::PinsTooLarge { .. }),
        "{refused}"
    );
    assert_eq!(registry.usage().pinned, 1);
    // A replacement is pinned in its place; the old content goes.
    let replaced = publish(&registry, "a", 7);
    assert!(!in_memory(&registry, a) && registry.residency(&replaced).pinned);
    registry.unpin(Name::public("a")).unwrap();
    registry.pin(Name::public("b")).unwrap();
    registry
        .remove(Name::public("b"), &Condition::default())
        .unwrap();
    assert_eq!(registry.usage().pinned, 0);
    assert!(matches!(
        registry.pin(Name::public("b")),
        Err(RegistryError::Unknown(_))
    ));
}

#[test]
fn a_load_builds_the_layout_that_a_step_overlays() {
    let dir = TempDir::new().unwrap();
    let options = RegistryOptions {
        ticket_memory: TicketMemory::with_layouts_on(Device::Cpu),
        ..RegistryOptions::default()
    };
    let registry = Registry::open(dir.path(), None, base(), options)
        .unwrap()
        .registry;
    let generation = publish(&registry, "sql", 1);
    let lease = registry.lease(None, "sql").unwrap();
    let layout = lease.ticket().layout().expect("built by the load");
    assert_eq!(layout.nonzeros(), generation.nonzeros());
    assert_eq!(generation.facts().memory.device, 0, "one tier on the CPU");
    assert_eq!(registry.residency(&generation).tier, Tier::Host);
}
