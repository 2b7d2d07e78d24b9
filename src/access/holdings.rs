//! What parties hold of a resource that they share, in places or bytes.
//!
//! A party may hold at most [`ALPHA`] times what is free (the dynamic threshold of Choudhury and
//! Hahne, 1998). Alone, it gets four fifths, so that a newcomer always finds room; `n` parties that
//! want more than there is get equal shares.

use std::collections::HashMap;
use std::hash::Hash;

/// Units that a party may hold per free one.
const ALPHA: usize = 4;

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
pub struct Holdings<P> {
    capacity: usize,
    taken: usize,
    held: HashMap<P, usize>,
}

impl<P: Clone + Eq + Hash> Holdings<P> {
    /// A resource of `capacity` units, all of them free.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: 0,
            held: HashMap::new(),
        }
    }

    /// Units that are taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Units that are free.
    pub fn available(&self) -> usize {
        self.capacity - self.taken
    }

    /// Units that a party holds.
    pub fn held(&self, party: &P) -> usize {
        self.held.get(party).copied().unwrap_or(0)
    }

    /// Takes units for a party: all or none.
    ///
    /// # Errors
    /// Too few are free, or within the party's share.
    pub fn take(&mut self, party: &P, units: usize) -> Result<(), Shortage> {
        let free = self.available();
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
    pub fn free(&mut self, party: &P, units: usize) {
        self.taken -= units;
        if let Some(held) = self.held.get_mut(party) {
            *held -= units;
            if *held == 0 {
                self.held.remove(party);
            }
        }
    }

    /// Whether no party holds anything.
    #[cfg(test)]
    pub fn is_untouched(&self) -> bool {
        self.taken == 0 && self.held.is_empty()
    }
}

/// Whether a party that holds `held` units may take `units` of the `free` ones, one by one.
pub fn within_share(held: usize, free: usize, units: usize) -> bool {
    units == 0 || units <= free && held + units - 1 < ALPHA.saturating_mul(free - units + 1)
}
