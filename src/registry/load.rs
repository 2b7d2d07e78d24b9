//! Leases: from memory, or else from the ticket's file, within the memory's budget and in turn.

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use super::memory::{Account, Admitted, Held, Load, Wanted};
use super::target::{ScaledGeneration, Target};
use super::{Generation, Lease, Registry, RegistryError, Selection};
use crate::access::Tenant;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::merge::compose;
use crate::ticket::{BoundTicket, Ticket, TicketError};

/// Reads a ticket file of at most that many bytes.
pub(super) type Reader = fn(&Path, u64) -> Result<Ticket, TicketError>;

impl Registry {
    /// Leases the ticket that a caller of this tenant means by `reference`, as [`Registry::get`].
    /// Otherwise as [`Registry::lease_selected`].
    ///
    /// # Errors
    /// As [`Registry::lease_selected`].
    pub async fn lease_in_turn(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        reference: &str,
    ) -> Result<Lease, RegistryError> {
        self.lease_parts(tenant, &Selection::ticket(reference))
            .await
    }

    /// Leases what a caller of this tenant selected; `None` for the base. A ticket that is not in
    /// memory is read from its file and laid out for the device, on a blocking thread; loads of
    /// different tickets do not wait for each other. A composition is a ticket of its own, merged
    /// from parts in memory or else in their files. Without room the request waits in line, where
    /// accounts (tenants, or tickets without tenants) take turns, and each is served first come
    /// first served; dropping the future leaves the line.
    ///
    /// # Errors
    /// There is no such ticket; two parts are one ticket, or their sum is not finite or changes
    /// nothing; the composition is larger than the memory; the line or the account's share of it is
    /// full; this request has waited too long; another program has changed a file since it was
    /// published.
    pub async fn lease_selected(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        selection: &Selection,
    ) -> Result<Option<Lease>, RegistryError> {
        if selection.is_base() {
            return Ok(None);
        }
        self.lease_parts(tenant, selection).await.map(Some)
    }

    async fn lease_parts(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        selection: &Selection,
    ) -> Result<Lease, RegistryError> {
        let arrived = Instant::now();
        let mut target = Arc::new(self.target(tenant, selection)?);
        loop {
            let error = match self.hold_in_turn(tenant, &target, arrived).await {
                Ok(held) => return Ok(Lease::new(target, held)),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            let registry = Arc::clone(self);
            let failed = Arc::clone(&target);
            let looked = spawn_blocking(move || registry.look_at_parts_again(&failed)).await;
            looked.map_err(|error| RegistryError::LoadFailed(error.to_string()))?;
            target = self.unless_same(&target, tenant, selection, error)?;
        }
    }

    /// Leases a ticket or a composition, given as [`Selection::parse`] takes it. As
    /// [`Registry::lease_selected`], but on this thread and without waiting in line.
    ///
    /// # Errors
    /// As [`Registry::lease_selected`]; the text is malformed; the leased tickets leave too little
    /// memory.
    pub fn lease(&self, tenant: Option<&Tenant>, text: &str) -> Result<Lease, RegistryError> {
        let selection = Selection::parse(text)?;
        let mut target = Arc::new(self.target(tenant, &selection)?);
        loop {
            let error = match self.hold(&target) {
                Ok(held) => return Ok(Lease::new(target, held)),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            self.look_at_parts_again(&target);
            target = self.unless_same(&target, tenant, &selection, error)?;
        }
    }

    fn look_at_parts_again(&self, failed: &Target) {
        for part in failed.parts() {
            self.look_again(&part.generation);
        }
    }

    /// What the selection means now that the files were looked at again, unless it is what could
    /// not be loaded: a ticket may have been replaced between the look-up and the read.
    fn unless_same(
        &self,
        failed: &Target,
        tenant: Option<&Tenant>,
        selection: &Selection,
        error: RegistryError,
    ) -> Result<Arc<Target>, RegistryError> {
        let current = self.target(tenant, selection)?;
        if current.same_generations(failed) {
            return Err(error);
        }
        Ok(Arc::new(current))
    }

    async fn hold_in_turn(
        self: &Arc<Self>,
        tenant: Option<&Tenant>,
        target: &Arc<Target>,
        arrived: Instant,
    ) -> Result<Held, RegistryError> {
        let wanted = wanted(target, arrived);
        if let Some(held) = self.memory.join(&wanted) {
            return Ok(held);
        }
        let account = Account::of(tenant, wanted.content);
        let entered = self.memory.enter(account, wanted, self.options.max_waiting);
        let (_place, granted) = entered?;
        let deadline = tokio::time::Instant::from_std(arrived) + self.options.memory_wait;
        let admitted = timeout_at(deadline, self.memory.turn(granted)).await;
        let load = match admitted.ok().flatten() {
            None => return Err(memory_full(target)),
            Some(Admitted::Held(held)) => return Ok(held),
            Some(Admitted::Load(load)) => load,
        };
        let (registry, target) = (Arc::clone(self), Arc::clone(target));
        let loaded = spawn_blocking(move || registry.bring(&target, *load)).await;
        loaded.unwrap_or_else(|error| Err(RegistryError::LoadFailed(error.to_string())))
    }

    fn hold(&self, target: &Target) -> Result<Held, RegistryError> {
        let wanted = wanted(target, Instant::now());
        match block_on(self.memory.admit_now(&wanted)) {
            None => Err(memory_full(target)),
            Some(Admitted::Held(held)) => Ok(held),
            Some(Admitted::Load(load)) => self.bring(target, *load),
        }
    }

    /// Brings a ticket into memory, unless the host has it: from its file, or from its parts.
    /// Blocks on the disk.
    fn bring(&self, target: &Target, load: Load) -> Result<Held, RegistryError> {
        let Load {
            on_host,
            mut room,
            loading: _loading,
        } = load;
        let ticket = match (on_host, target.ticket()) {
            (Some((ticket, of_host)), _) => {
                room = room.join(of_host);
                ticket
            }
            (None, Some(generation)) => self.read_again(generation)?,
            (None, None) => {
                let composed = self.compose(target)?;
                // Positions that parts share take their memory once.
                let bytes = self.options.ticket_memory.bytes_of(&composed, &self.base);
                room.leave_host_but(bytes.host);
                composed
            }
        };
        let loaded = LoadedTicket::new(ticket);
        let prepared = self.options.ticket_memory.prepare(&loaded, &self.base);
        prepared.map_err(|error| RegistryError::Layout {
            alias: target.name().alias.to_owned(),
            error,
        })?;
        let held = self.memory.keep(loaded, room);
        // If one was replaced or deleted while it was read, no alias refers to it any more.
        for part in target.parts() {
            self.forget(&part.generation);
        }
        Ok(held)
    }

    /// Merges a composition's parts. Those that are in memory are used from there; others are read
    /// from their files one by one, and not kept. As for any load, the budget counts what results,
    /// and at most as much again is in use meanwhile.
    fn compose(&self, target: &Target) -> Result<BoundTicket, RegistryError> {
        let part = |part: &ScaledGeneration| {
            let generation = &part.generation;
            let ticket = match self.memory.get(generation.digest(), TicketBytes::default()) {
                Some(held) => PartTicket::InMemory(held),
                None => PartTicket::Read(Box::new(self.read_again(generation)?)),
            };
            Ok((ticket, part.scale))
        };
        let parts = target.parts().iter().map(part);
        let parts = parts.collect::<Result<Vec<_>, RegistryError>>()?;
        let tickets: Vec<_> = parts
            .iter()
            .map(|(part, scale)| (&**part, *scale))
            .collect();
        compose(&tickets, &self.base).map_err(|error| RegistryError::Composition {
            name: target.name().alias.to_owned(),
            error: Box::new(error),
        })
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

/// A part of a composition while it is merged.
enum PartTicket {
    InMemory(Held),
    Read(Box<BoundTicket>),
}

impl Deref for PartTicket {
    type Target = BoundTicket;

    fn deref(&self) -> &BoundTicket {
        match self {
            Self::InMemory(held) => held.ticket(),
            Self::Read(ticket) => ticket,
        }
    }
}

fn wanted(target: &Target, arrived: Instant) -> Wanted {
    Wanted {
        content: target.content(),
        bytes: target.bytes(),
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

fn memory_full(target: &Target) -> RegistryError {
    RegistryError::MemoryFull {
        alias: target.name().alias.to_owned(),
        needed: target.bytes().total(),
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
