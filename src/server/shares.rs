//! Resources that tenants share, in places or bytes, by the rule of the engine's queue: a party may
//! hold at most four times what is free. Alone, it gets four fifths, so that a newcomer always
//! finds room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Tenant;
use crate::engine::within_share;

/// Who a share is counted for: a tenant, or everyone without one.
pub type Party = Option<Tenant>;

/// Reason why a resource cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Too little is free.
    Full,
    /// The party holds its share.
    Share,
}

/// What each party holds of a resource.
#[derive(Debug)]
pub struct Holdings {
    capacity: usize,
    taken: usize,
    held: HashMap<Party, usize>,
}

impl Holdings {
    /// A resource of `capacity` units, all of them free.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: 0,
            held: HashMap::new(),
        }
    }

    /// Units that are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Units that a party holds.
    pub fn held(&self, party: &Party) -> usize {
        self.held.get(party).copied().unwrap_or(0)
    }

    /// Takes units for a party: all or none.
    ///
    /// # Errors
    /// Too few are free, or within the party's share.
    pub fn take(&mut self, party: &Party, units: usize) -> Result<(), Shortage> {
        let free = self.capacity - self.taken;
        if units > free {
            return Err(Shortage::Full);
        }
        if !within_share(self.held(party), free, units) {
            return Err(Shortage::Share);
        }
        if units > 0 {
            self.taken += units;
            *self.held.entry(party.clone()).or_default() += units;
        }
        Ok(())
    }

    /// Frees units that the party has taken.
    pub fn free(&mut self, party: &Party, units: usize) {
        self.taken -= units;
        if let Some(held) = self.held.get_mut(party) {
            *held -= units;
            if *held == 0 {
                self.held.remove(party);
            }
        }
    }
}

/// A resource whose units return when their [`Share`] is dropped.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Holdings>>);

impl Shared {
    /// A resource of `capacity` units, all of them free.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Holdings::new(capacity))))
    }

    /// An empty share of a party.
    pub fn share(&self, party: &Party) -> Share {
        Share {
            of: self.clone(),
            party: party.clone(),
            units: 0,
        }
    }

    /// Units that are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.lock().taken()
    }

    fn lock(&self) -> MutexGuard<'_, Holdings> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units of a resource that one holder has taken, freed when dropped.
#[derive(Debug)]
pub struct Share {
    of: Shared,
    party: Party,
    units: usize,
}

impl Share {
    /// Takes further units.
    ///
    /// # Errors
    /// Too few are free, or within the party's share.
    pub fn grow(&mut self, units: usize) -> Result<(), Shortage> {
        self.of.lock().take(&self.party, units)?;
        self.units += units;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.lock().free(&self.party, self.units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_party_leaves_room_for_the_next() {
        let resource = Shared::new(1000);
        let acme: Party = Some("acme".parse().unwrap());
        let mut one = resource.share(&acme);
        assert_eq!(one.grow(1001), Err(Shortage::Full));
        one.grow(700).unwrap();
        let mut two = resource.share(&acme);
        two.grow(100).unwrap();
        assert_eq!(two.grow(100), Err(Shortage::Share));
        let mut other = resource.share(&None);
        other.grow(160).unwrap();
        assert_eq!(resource.taken(), 960);
        drop((one, two, other));
        assert_eq!(resource.taken(), 0);
        assert!(resource.lock().held.is_empty());
    }
}
