//! Resources that tenants share, whose units return by themselves; see [`Holdings`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::{Holdings, Shortage, Tenant};

/// Who a share is counted for: a tenant, or everyone without one.
pub type Party = Option<Tenant>;

/// A resource whose units return when their [`Share`] is dropped.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Holdings<Party>>>);

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

    fn lock(&self) -> MutexGuard<'_, Holdings<Party>> {
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
        assert!(resource.lock().is_untouched());
    }
}
