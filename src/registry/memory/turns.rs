//! Who gets the memory's room next.
//!
//! Accounts take turns. A request for which there is no room blocks those after it only as far as
//! they would take what it waits for: others pass it if their tickets, the pinned ones and its own
//! fit the budget together, since it then has its room as soon as the leases of now have ended. So
//! neither does it starve, nor does it lock others out.

use std::time::Duration;

use tokio::sync::oneshot;

use super::line::{Account, Admitted, Load, Passage, Place, Queue, Wanted};
use super::{Held, Memory};
use crate::model::TicketBytes;
use crate::registry::{RegistryError, lock};

/// How long the first in turn lets later requests join tickets that are in memory without counting
/// what they take, so that requests for the tickets in use are served together.
const PATIENCE: Duration = Duration::from_secs(1);

impl Memory {
    /// The ticket, if it is in memory and ready, and taking it keeps nobody else out.
    pub fn join(&self, wanted: &Wanted) -> Option<Held> {
        let mut queue = self.line.lock();
        let passage = self.passage(&mut queue, wanted, true)?;
        self.get(wanted.content, wanted.bytes)
            .inspect(|_| queue.note(passage, wanted))
    }

    /// Puts a request for a ticket that is not in memory into the line, of `max` places.
    ///
    /// # Errors
    /// All places are taken, or the account holds its share of them.
    pub fn enter(
        &self,
        account: Account,
        wanted: Wanted,
        max: usize,
    ) -> Result<(Place, oneshot::Receiver<Admitted>), RegistryError> {
        self.line.enter(account, wanted, max)
    }

    /// Waits until the memory grants what a request entered the line for. `None` cannot happen
    /// while the request is in the line.
    pub async fn turn(&self, mut granted: oneshot::Receiver<Admitted>) -> Option<Admitted> {
        loop {
            // One waiting request is told of each change, and settles it for all.
            let changed = self.used.changed.notified();
            self.settle();
            tokio::select! {
                biased;
                admitted = &mut granted => return admitted.ok(),
                () = changed => {}
            }
        }
    }

    /// The ticket or room for it, without a place in the line; waits only if another request is
    /// loading it. `None` if the leased and pinned tickets leave too little memory.
    pub async fn admit_now(&self, wanted: &Wanted) -> Option<Admitted> {
        loop {
            let changed = self.used.changed.notified();
            {
                let mut queue = self.line.lock();
                if !queue.is_loading(wanted.content) {
                    return self.try_admit(&mut queue, wanted);
                }
            }
            changed.await;
            self.settle();
        }
    }

    /// Grants all that can be granted now, in turn.
    fn settle(&self) {
        let mut gone = Vec::new();
        let mut queue = self.line.lock();
        let mut before = queue.blocked.take();
        for (id, wanted) in queue.in_turn() {
            if queue.is_loading(wanted.content) {
                continue;
            }
            let resident = self.is_ready(&wanted);
            let Some(passage) = self.passage(&mut queue, &wanted, resident) else {
                continue;
            };
            match self.try_admit(&mut queue, &wanted) {
                Some(admitted) => {
                    queue.note(passage, &wanted);
                    gone.extend(queue.grant(id, admitted));
                }
                None if queue.blocked.is_none() => queue.block(id, wanted, before.take()),
                None => {}
            }
        }
        // Dropped only now: what was granted to requests that are gone takes the lock again.
        drop(queue);
        drop(gone);
    }

    /// The ticket if it is ready, or else room for what it misses.
    fn try_admit(&self, queue: &mut Queue, wanted: &Wanted) -> Option<Admitted> {
        if let Some(held) = self.get(wanted.content, wanted.bytes) {
            return Some(Admitted::Held(held));
        }
        let (room, on_host) = self.room_for(wanted)?;
        let loading = self.line.loads(queue, wanted.content);
        Some(Admitted::Load(Box::new(Load {
            on_host,
            room,
            loading,
        })))
    }

    /// How a request may go before the one that waits for room, if any does; `None` if it may not.
    /// A ticket that is in memory is `resident`.
    fn passage(&self, queue: &mut Queue, wanted: &Wanted, resident: bool) -> Option<Passage> {
        let Some(first) = &mut queue.blocked else {
            return Some(Passage::Free);
        };
        if resident && wanted.arrived <= first.wanted.arrived + PATIENCE {
            return Some(Passage::Free);
        }
        let cache = lock(&self.cache);
        if resident && cache.pinned.contains(&wanted.content) {
            return Some(Passage::Free);
        }
        // What passed and is idle again can be evicted. One that is not cached is being loaded.
        first.passed.retain(|&content, _| {
            let cached = cache.peek(content);
            cached.is_none_or(|(_, leases)| leases > 0)
        });
        let passed = first.passed.iter();
        let passed = passed.filter(|&(&content, _)| content != wanted.content);
        let passed = passed.map(|(_, &bytes)| bytes);
        let pinned = cache.pinned_bytes(first.wanted.content);
        let together = passed.chain([pinned, wanted.bytes]);
        fits(together, first.wanted.bytes, self.budget).then_some(Passage::Counted)
    }

    fn is_ready(&self, wanted: &Wanted) -> bool {
        let cache = lock(&self.cache);
        let cached = cache.peek(wanted.content);
        cached.is_some_and(|(cached, _)| cached.bytes().device >= wanted.bytes.device)
    }
}

/// Whether tickets of these sizes fit the budget beside one that takes `first`.
fn fits(
    mut sizes: impl Iterator<Item = TicketBytes>,
    first: TicketBytes,
    budget: TicketBytes,
) -> bool {
    let left = TicketBytes {
        host: budget.host.saturating_sub(first.host),
        device: budget.device.saturating_sub(first.device),
    };
    let left = sizes.try_fold(left, |left, size| {
        Some(TicketBytes {
            host: left.host.checked_sub(size.host)?,
            device: left.device.checked_sub(size.device)?,
        })
    });
    left.is_some()
}
