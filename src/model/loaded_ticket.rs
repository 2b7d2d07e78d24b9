//! A ticket in memory, with the device layout that is built from it on first use.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::layout::TicketLayout;
use crate::ticket::BoundTicket;

/// A bound ticket and, once it was needed, its layout. The layout is built once, all holders share
/// it, and it is freed together with the ticket.
#[derive(Debug)]
pub struct LoadedTicket {
    ticket: BoundTicket,
    layout: OnceLock<Arc<TicketLayout>>,
}

impl LoadedTicket {
    /// Takes over a ticket, without a layout yet.
    pub fn new(ticket: BoundTicket) -> Self {
        Self {
            ticket,
            layout: OnceLock::new(),
        }
    }

    /// The layout, if it is built already.
    pub fn layout(&self) -> Option<&Arc<TicketLayout>> {
        self.layout.get()
    }

    /// The layout, built by `build` if there is none yet.
    ///
    /// # Errors
    /// Those of `build`; the ticket stays without a layout then.
    pub fn layout_or_build<E>(
        &self,
        build: impl FnOnce(&BoundTicket) -> Result<TicketLayout, E>,
    ) -> Result<&Arc<TicketLayout>, E> {
        if let Some(layout) = self.layout.get() {
            return Ok(layout);
        }
        let built = Arc::new(build(&self.ticket)?);
        Ok(self.layout.get_or_init(|| built))
    }
}

impl Deref for LoadedTicket {
    type Target = BoundTicket;

    fn deref(&self) -> &BoundTicket {
        &self.ticket
    }
}
