//! Leases: from memory, or else from the ticket's file, within the memory's budget and in turn.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use super::memory::{Admitted, Held, Room};
use super::{Generation, Lease, Registry, RegistryError, lock};
use crate::access::Tenant;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest, Ticket, TicketError};

/// Reads a ticket file of at most that many bytes.
pub(super) type Reader = fn(&Path, u64) -> Result<Ticket, TicketError>;

/// One lock per content that is being loaded, so that it is loaded once.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>);

impl Gates {
    fn of(&self, content: Digest) -> Arc<AsyncMutex<()>> {
        let mut gates = lock(&self.0);
        if let Some(gate) = gates.get(&content).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::default();
        gates.insert(content, Arc::downgrade(&gate));
        gate
    }
}

impl Registry {
    /// Leases the ticket that a caller of this tenant means by `reference`, as [`Registry::get`].
    /// A ticket that is not in memory is read from its file and laid out for the device, on a
    /// blocking thread; loads of different tickets do not wait for each other. Without room the
    /// request waits in line, first come first served; dropping the future leaves the line.
    ///
    /// # Errors
    /// There is no such ticket; too many requests wait, or this one has waited too long; another
    /// program has changed the file since it was published.
    pub async fn lease_in_turn(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        reference: &str,
    ) -> Result<Lease, RegistryError> {
        let arrived = Instant::now();
        let mut generation = self.known(tenant, reference)?;
        loop {
            let error = match self.hold_in_turn(&generation, arrived).await {
                Ok(held) => return Ok(Lease::new(generation, held)),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            let registry = Arc::clone(self);
            let settled = spawn_blocking(move || drop(lock(&registry.writing))).await;
            settled.map_err(|error| RegistryError::LoadFailed(error.to_string()))?;
            generation = self.unless_same(&generation, tenant, reference, error)?;
        }
    }

    /// As [`Registry::lease_in_turn`], but on this thread and without waiting in line.
    ///
    /// # Errors
    /// As [`Registry::lease_in_turn`], or the leased tickets leave too little memory.
    pub fn lease(&self, tenant: Option<&Tenant>, reference: &str) -> Result<Lease, RegistryError> {
        let mut generation = self.known(tenant, reference)?;
        loop {
            let error = match self.hold(&generation) {
                Ok(held) => return Ok(Lease::new(generation, held)),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            drop(lock(&self.writing));
            generation = self.unless_same(&generation, tenant, reference, error)?;
        }
    }

    /// The generation that the reference means now that no writer is at work, unless it is the one
    /// whose load failed: it may have been replaced between the look-up and the read.
    fn unless_same(
        &self,
        failed: &Generation,
        tenant: Option<&Tenant>,
        reference: &str,
        error: RegistryError,
    ) -> Result<Arc<Generation>, RegistryError> {
        let current = self.known(tenant, reference)?;
        if current.id() == failed.id() {
            return Err(error);
        }
        Ok(current)
    }

    async fn hold_in_turn(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        arrived: Instant,
    ) -> Result<Held, RegistryError> {
        let (content, bytes) = (generation.digest(), generation.facts().memory);
        let in_memory = || {
            let may_join = self.memory.line().may_join(arrived);
            may_join.then(|| self.memory.get(content, bytes)).flatten()
        };
        if let Some(held) = in_memory() {
            return Ok(held);
        }
        let entered = self.memory.line().enter(self.options.max_waiting);
        let _waiting = entered.map_err(|waiting| RegistryError::TooManyWaiting { waiting })?;
        let in_turn = async {
            let gate = self.gates.of(content).lock_owned().await;
            // The one before at this gate may have loaded it.
            if let Some(held) = in_memory() {
                return (gate, None, Admitted::Held(held));
            }
            let (on_host, missing) = self.on_host(generation);
            let admitted = self.memory.admit(content, bytes, missing, arrived).await;
            (gate, on_host, admitted)
        };
        let deadline = tokio::time::Instant::from_std(arrived) + self.options.memory_wait;
        let in_turn = timeout_at(deadline, in_turn).await;
        let (gate, on_host, admitted) = in_turn.map_err(|_| memory_full(generation))?;
        let room = match admitted {
            Admitted::Held(held) => return Ok(held),
            Admitted::Room(room) => room,
        };
        let (registry, generation) = (Arc::clone(self), Arc::clone(generation));
        let load = move || {
            // Held until the ticket is in memory, even if the request is gone by then.
            let _gate = gate;
            registry.bring(&generation, on_host, room)
        };
        let loaded = spawn_blocking(load).await;
        loaded.unwrap_or_else(|error| Err(RegistryError::LoadFailed(error.to_string())))
    }

    fn hold(&self, generation: &Generation) -> Result<Held, RegistryError> {
        let (content, bytes) = (generation.digest(), generation.facts().memory);
        if let Some(held) = self.memory.get(content, bytes) {
            return Ok(held);
        }
        let _gate = block_on(self.gates.of(content).lock_owned());
        if let Some(held) = self.memory.get(content, bytes) {
            return Ok(held);
        }
        let (on_host, missing) = self.on_host(generation);
        let room = self.memory.reserve(missing);
        self.bring(
            generation,
            on_host,
            room.ok_or_else(|| memory_full(generation))?,
        )
    }

    /// The ticket with its room, if the host has it and the device not, and the bytes that it
    /// misses to be ready.
    fn on_host(&self, generation: &Generation) -> (Option<(BoundTicket, Room)>, TicketBytes) {
        let bytes = generation.facts().memory;
        match self.memory.take_from_host(generation.digest(), bytes) {
            None => (None, bytes),
            some => (some, TicketBytes { host: 0, ..bytes }),
        }
    }

    /// Brings a ticket into memory: from its file, unless the host has it. Blocks on the disk.
    fn bring(
        &self,
        generation: &Generation,
        on_host: Option<(BoundTicket, Room)>,
        room: Room,
    ) -> Result<Held, RegistryError> {
        let (ticket, room) = match on_host {
            Some((ticket, of_host)) => (ticket, room.join(of_host)),
            None => (self.read_again(generation)?, room),
        };
        let loaded = LoadedTicket::new(ticket);
        let prepared = self.options.ticket_memory.prepare(&loaded, &self.base);
        prepared.map_err(|error| RegistryError::Layout {
            alias: generation.alias().to_owned(),
            error,
        })?;
        let held = self.memory.keep(loaded, room);
        // If it was replaced or deleted while it was read, no alias refers to it any more.
        self.forget(generation);
        Ok(held)
    }

    /// Reads the generation's file, which must still be what was published.
    fn read_again(&self, generation: &Generation) -> Result<BoundTicket, RegistryError> {
        let read = (self.reader)(&generation.path, self.options.max_ticket_bytes);
        let ticket = read
            .and_then(|ticket| ticket.bind(&self.base, self.options.allow_foreign_base))
            .map_err(|error| generation.changed(error.to_string()))?;
        let (found, expected) = (ticket.digest(), generation.digest());
        if found != expected {
            let reason = format!("its digest is {found}, expected {expected}");
            return Err(generation.changed(reason));
        }
        Ok(ticket)
    }
}

fn memory_full(generation: &Generation) -> RegistryError {
    RegistryError::MemoryFull {
        alias: generation.alias().to_owned(),
        needed: generation.resident_bytes(),
    }
}

/// Runs a future on this thread, which sleeps while it is pending.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
