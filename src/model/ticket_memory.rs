//! Memory model of tickets: what a loaded ticket takes of the host's memory and of the device's.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::device::has_own_memory;
use super::error::ModelError;
use super::layout::{TicketLayout, fused};
use super::loaded_ticket::LoadedTicket;
use crate::kernels::ticket::overlay::DeviceLayout;
use crate::ticket::{BaseManifest, BoundTicket, Ticket};

/// Bytes of memory of a loaded ticket, by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketBytes {
    /// Bytes of the host's memory.
    pub host: usize,
    /// Bytes of the device's own memory; 0 on the CPU, where host and device are one tier.
    pub device: usize,
}

impl TicketBytes {
    /// Bytes of both tiers.
    pub fn total(self) -> usize {
        self.host + self.device
    }
}

/// Memory model of the loaded tickets of one base.
#[derive(Clone, Debug)]
pub struct TicketMemory {
    /// Device that layouts are built on; `None` if no ticket gets one.
    layouts_on: Option<Device>,
}

impl TicketMemory {
    /// Counts tickets that never get a layout.
    pub fn without_layouts() -> Self {
        Self { layouts_on: None }
    }

    /// Counts tickets together with their layouts on `device`.
    pub(crate) fn with_layouts_on(device: Device) -> Self {
        let layouts_on = Some(device);
        Self { layouts_on }
    }

    /// Upper bound of the bytes that a loaded ticket of the base takes.
    pub fn bytes_of(&self, ticket: &Ticket, base: &BaseManifest) -> TicketBytes {
        let host = ticket.resident_bytes();
        let Some(device) = &self.layouts_on else {
            return TicketBytes { host, device: 0 };
        };
        let layout = DeviceLayout::bytes_for(&fused(ticket, base), device);
        if has_own_memory(device) {
            return TicketBytes {
                host,
                device: layout,
            };
        }
        TicketBytes {
            host: host + layout,
            device: 0,
        }
    }

    /// Builds the layout of a ticket that was just loaded, if it gets one, on the calling thread: a
    /// step that overlays the ticket then finds it. On a GPU the layout is left to the engine's
    /// thread, whose stream it is copied on.
    ///
    /// # Errors
    /// The ticket is bound to another base, or there is no room for its layout.
    pub fn prepare(&self, ticket: &LoadedTicket, base: &BaseManifest) -> Result<(), ModelError> {
        match &self.layouts_on {
            Some(device) if !has_own_memory(device) => {
                let build =
                    |ticket: &BoundTicket| TicketLayout::on_this_thread(ticket, base, device);
                ticket.layout_or_build(build).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Says what [`Self::bytes_of`] depends on besides ticket and base: facts that were computed
    /// under another tag do not hold.
    pub fn tag(&self) -> String {
        match &self.layouts_on {
            Some(device) => format!("layouts on {:?}", device.location()),
            None => "no layouts".to_owned(),
        }
    }
}
