//! Pinned tickets: they stay in memory, as far as the largest other ticket still finds room.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::names::Names;
use super::{Facts, Generation, MemoryUsage, Name, Registry, RegistryError, Residency, Tier, lock};
use crate::model::TicketBytes;
use crate::ticket::Digest;

impl Registry {
    /// Keeps a ticket in memory from its next load on, also when it is replaced, until it is
    /// unpinned or deleted. The pins last as long as the process.
    ///
    /// # Errors
    /// The caller has no such ticket, or the pinned tickets together would leave too little memory
    /// for the largest other ticket.
    pub fn pin(&self, name: Name<'_>) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = self.changeable(name)?;
        self.names_mut().pin(name);
        if let Err(shortage) = self.check_pins(None) {
            self.names_mut().unpin(name);
            return Err(RegistryError::PinsTooLarge {
                alias: name.alias.to_owned(),
                tier: shortage.tier,
                left: shortage.left,
                needed: shortage.needed,
            });
        }
        self.refresh_pins();
        Ok(generation)
    }

    /// Lets a pinned ticket be evicted again.
    ///
    /// # Errors
    /// The caller has no such ticket.
    pub fn unpin(&self, name: Name<'_>) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = self.changeable(name)?;
        self.names_mut().unpin(name);
        self.refresh_pins();
        Ok(generation)
    }

    /// Where the ticket is, and who uses it, alone or in a composition. Compositions that name
    /// another ticket of the same content are not counted.
    pub fn residency(&self, generation: &Generation) -> Residency {
        let mut residency = self.memory.residency(generation.digest());
        residency.leases += generation.composed();
        residency
    }

    /// The same as far as requests under the ticket's own name cause it: nothing of the use of
    /// another ticket of the same content, which may be another tenant's.
    pub fn own_residency(&self, generation: &Generation) -> Residency {
        let tier = match generation.is_loaded() {
            true => self.residency(generation).tier,
            false => Tier::Disk,
        };
        Residency {
            tier,
            leases: generation.leases(),
            pinned: self.names().is_pinned(generation.name()),
        }
    }

    /// What the memory of the tickets holds.
    pub fn usage(&self) -> MemoryUsage {
        self.memory.usage()
    }

    /// Checks that a new content of `name` would leave the balance of the pins.
    pub(super) fn check_room_beside_pins(
        &self,
        name: Name<'_>,
        facts: &Facts,
    ) -> Result<(), RegistryError> {
        self.check_pins(Some((name, facts)))
            .map_err(|shortage| RegistryError::TooLargeForMemory {
                tier: shortage.tier,
                needed: shortage.needed,
                available: shortage.left,
            })
    }

    /// Tells the memory which contents are pinned.
    pub(super) fn refresh_pins(&self) {
        let names = self.names();
        let pinned = names.pinned().map(|pinned| pinned.digest());
        self.memory.set_pinned(pinned.collect());
    }

    /// Bytes of all pinned contents together.
    pub(super) fn pinned_bytes(&self) -> TicketBytes {
        let names = self.names();
        let pinned = names
            .pinned()
            .map(|pinned| (pinned.digest(), pinned.facts().memory));
        let contents: HashMap<Digest, TicketBytes> = pinned.collect();
        let sum = |sum: TicketBytes, bytes: &TicketBytes| TicketBytes {
            host: sum.host + bytes.host,
            device: sum.device + bytes.device,
        };
        contents.values().fold(TicketBytes::default(), sum)
    }

    /// Checks that the pinned tickets and the largest other one fit together, once `publishing` has
    /// the content of these facts.
    fn check_pins(&self, publishing: Option<(Name<'_>, &Facts)>) -> Result<(), Shortage> {
        let names = self.names();
        if names.pinned().next().is_none() {
            return Ok(());
        }
        let Balance { pinned, largest } = balance(&names, publishing);
        let budget = self.memory.budget();
        for (tier, budget, pinned, needed) in [
            (Tier::Host, budget.host, pinned.host, largest.host),
            (Tier::Device, budget.device, pinned.device, largest.device),
        ] {
            let left = budget.saturating_sub(pinned);
            if pinned > budget || needed > left {
                return Err(Shortage { tier, left, needed });
            }
        }
        Ok(())
    }
}

/// Too little memory beside the pins.
struct Shortage {
    tier: Tier,
    left: usize,
    needed: usize,
}

/// Bytes of all pinned contents together, and of the largest other one.
#[derive(Default)]
struct Balance {
    pinned: TicketBytes,
    largest: TicketBytes,
}

fn balance(names: &Names, publishing: Option<(Name<'_>, &Facts)>) -> Balance {
    let replaced = |generation: &Generation| {
        publishing.is_some_and(|(name, _)| names.same(name, generation.name()))
    };
    let mut contents: HashMap<Digest, TicketBytes> = HashMap::new();
    let mut pinned: HashSet<Digest> = HashSet::new();
    let staying = names.all().filter(|generation| !replaced(generation));
    let staying = staying.map(|generation| (generation.name(), generation.facts()));
    for (name, facts) in staying.chain(publishing) {
        contents.insert(facts.digest, facts.memory);
        if names.is_pinned(name) {
            pinned.insert(facts.digest);
        }
    }
    let mut balance = Balance::default();
    for (content, bytes) in contents {
        if pinned.contains(&content) {
            balance.pinned.host += bytes.host;
            balance.pinned.device += bytes.device;
        } else {
            balance.largest.host = balance.largest.host.max(bytes.host);
            balance.largest.device = balance.largest.device.max(bytes.device);
        }
    }
    balance
}
