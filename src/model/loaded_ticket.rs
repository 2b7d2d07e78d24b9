//! A ticket in memory, with its device layout, which is built when the ticket is
//! loaded, or on first use.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::layout::TicketLayout;
use crate::ticket::BoundTicket;

/// A bound ticket and its layout, built once. All holders share the layout, and it is
/// freed together with the ticket.
#[derive(Debug)]
pub struct LoadedTicket {
    ticket: BoundTicket,
    layout: OnceLock<Arc<TicketLayout>>,
}

impl LoadedTicket {
    /// A ticket whose layout is not built yet.
    pub fn new(ticket: BoundTicket) -> Self {
        Self {
            ticket,
            layout: OnceLock::new(),
        }
    }

    /// The ticket without its layout.
    pub fn into_ticket(self) -> BoundTicket {
        self.ticket
    }

    /// The layout, if it is built already.
    pub fn layout(&self) -> Option<&Arc<TicketLayout>> {
        self.layout.get()
    }

    /// The layout, built by `build` if there is none yet.
    ///
    /// # Errors
    /// Those of `build`; the ticket then stays without a layout.
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
