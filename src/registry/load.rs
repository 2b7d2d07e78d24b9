//! Leases: from memory, or else from the ticket's file, within the memory's budget and in turn.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use super::memory::{Account, Admitted, Held, Load, Wanted};
use super::{Generation, Lease, Registry, RegistryError};
use crate::access::Tenant;
use crate::model::LoadedTicket;
use crate::ticket::{BoundTicket, Ticket, TicketError};

/// Reads a ticket file of at most that many bytes.
pub(super) type Reader = fn(&Path, u64) -> Result<Ticket, TicketError>;

impl Registry {
    /// Leases the ticket that a caller of this tenant means by `reference`, as [`Registry::get`].
    /// A ticket that is not in memory is read from its file and laid out for the device, on a
    /// blocking thread; loads of different tickets do not wait for each other. Without room the
    /// request waits in line, where accounts (tenants, or tickets without tenants) take turns, and
    /// each is served first come first served; dropping the future leaves the line.
    ///
    /// # Errors
    /// There is no such ticket; the line or the account's share of it is full; this request has
    /// waited too long; another program has changed the file since it was published.
    pub async fn lease_in_turn(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        reference: &str,
    ) -> Result<Lease, RegistryError> {
        let arrived = Instant::now();
        let mut generation = self.known(tenant, reference)?;
        loop {
            let error = match self.hold_in_turn(tenant, &generation, arrived).await {
                Ok(held) => return Ok(Lease::new(generation, held)),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            let registry = Arc::clone(self);
            let failed = Arc::clone(&generation);
            let looked = spawn_blocking(move || registry.look_again(&failed)).await;
            looked.map_err(|error| RegistryError::LoadFailed(error.to_string()))?;
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
            self.look_again(&generation);
            generation = self.unless_same(&generation, tenant, reference, error)?;
        }
    }

    /// The generation that the reference means now that the file was looked at again, unless it is
    /// the one whose load failed: it may have been replaced between the look-up and the read.
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
        tenant: Option<&Tenant>,
        generation: &Arc<Generation>,
        arrived: Instant,
    ) -> Result<Held, RegistryError> {
        let wanted = wanted(generation, arrived);
        if let Some(held) = self.memory.join(&wanted) {
            return Ok(held);
        }
        let account = Account::of(tenant, wanted.content);
        let entered = self.memory.enter(account, wanted, self.options.max_waiting);
        let (_place, granted) = entered?;
        let deadline = tokio::time::Instant::from_std(arrived) + self.options.memory_wait;
        let admitted = timeout_at(deadline, self.memory.turn(granted)).await;
        let load = match admitted.ok().flatten() {
            None => return Err(memory_full(generation)),
            Some(Admitted::Held(held)) => return Ok(held),
            Some(Admitted::Load(load)) => load,
        };
        let (registry, generation) = (Arc::clone(self), Arc::clone(generation));
        let loaded = spawn_blocking(move || registry.bring(&generation, *load)).await;
        loaded.unwrap_or_else(|error| Err(RegistryError::LoadFailed(error.to_string())))
    }

    fn hold(&self, generation: &Generation) -> Result<Held, RegistryError> {
        let wanted = wanted(generation, Instant::now());
        match block_on(self.memory.admit_now(&wanted)) {
            None => Err(memory_full(generation)),
            Some(Admitted::Held(held)) => Ok(held),
            Some(Admitted::Load(load)) => self.bring(generation, *load),
        }
    }

    /// Brings a ticket into memory: from its file, unless the host has it. Blocks on the disk.
    fn bring(&self, generation: &Generation, load: Load) -> Result<Held, RegistryError> {
        let Load {
            on_host,
            room,
            loading: _loading,
        } = load;
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
            .map(|mut ticket| {
                ticket.forget_training();
                ticket
            })
            .and_then(|ticket| ticket.bind(&self.base, self.options.allow_foreign_base))
            .map_err(|error| match &error {
                TicketError::Io { error: cause, .. } if !says_that_it_changed(cause) => {
                    RegistryError::LoadFailed(error.to_string())
                }
                _ => generation.changed(error.to_string()),
            })?;
        let (found, expected) = (ticket.digest(), generation.digest());
        if found != expected {
            let reason = format!("its digest is {found}, expected {expected}");
            return Err(generation.changed(reason));
        }
        Ok(ticket)
    }
}

fn wanted(generation: &Generation, arrived: Instant) -> Wanted {
    Wanted {
        content: generation.digest(),
        bytes: generation.facts().memory,
        arrived,
    }
}

/// Whether an error of a read means that the file is another or gone. Others, such as too many open
/// files, pass.
fn says_that_it_changed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::NotFound | Kind::NotADirectory | Kind::IsADirectory | Kind::PermissionDenied
    )
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
