//! Device layout of a ticket: its deltas by fused weight, in the order in which kernels read them.

use std::fmt;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::device::has_own_memory;
use super::error::ModelError;
use super::loaded_ticket::LoadedTicket;
use super::weights::{Projection, layers};
use crate::kernels::ticket::overlay::{DeviceLayout, WeightDeltas};
use crate::ticket::{BaseManifest, BoundTicket, Ticket};

/// Layout of a ticket on the base's device, for the sparse product that an overlay adds. On a GPU,
/// apply and revert use it too.
pub struct TicketLayout {
    layouts: DeviceLayout,
}

/// Index of a layer's fused weight among all fused weights of the base.
pub(crate) fn weight_number(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection as usize
}

impl TicketLayout {
    /// Builds the layout of a ticket of the base that `manifest` describes, on all cores.
    ///
    /// # Errors
    /// The ticket is bound to another base, or the device has no room for its layout.
    pub(crate) fn new(
        ticket: &BoundTicket,
        manifest: &BaseManifest,
        device: &Device,
    ) -> Result<Self, ModelError> {
        check_base(ticket, manifest)?;
        let layouts = DeviceLayout::new(&fused(ticket, manifest), device)?;
        Ok(Self { layouts })
    }

    /// As [`Self::new`], but on the calling thread alone: the engine's steps keep all other cores.
    fn on_this_thread(
        ticket: &BoundTicket,
        manifest: &BaseManifest,
        device: &Device,
    ) -> Result<Self, ModelError> {
        check_base(ticket, manifest)?;
        let layouts = DeviceLayout::on_this_thread(&fused(ticket, manifest), device)?;
        Ok(Self { layouts })
    }

    /// Layouts of the touched weights, by [`weight_number`].
    pub(crate) fn layouts(&self) -> &DeviceLayout {
        &self.layouts
    }

    /// Nonzeros of the ticket.
    pub fn nonzeros(&self) -> usize {
        self.layouts.nonzeros()
    }

    /// Bytes of device memory that the layout takes.
    pub fn bytes(&self) -> usize {
        self.layouts.bytes()
    }
}

fn check_base(ticket: &BoundTicket, manifest: &BaseManifest) -> Result<(), ModelError> {
    if ticket.bound_to() != manifest.fingerprint {
        return Err(ModelError::ForeignTicket {
            ticket: ticket.bound_to(),
            base: manifest.fingerprint,
        });
    }
    Ok(())
}

impl fmt::Debug for TicketLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketLayout")
            .field("nonzeros", &self.nonzeros())
            .finish()
    }
}

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

/// Deltas of a ticket by [`weight_number`]; `None` for each weight that it does not touch.
fn fused<'a>(ticket: &'a Ticket, manifest: &BaseManifest) -> Vec<Option<WeightDeltas<'a>>> {
    let weight = |layer: usize, projection: Projection| {
        let (mut shape, mut parts) = ([0, 0], Vec::new());
        for (name, first, rows) in projection.parts(layer, manifest) {
            shape = [first + rows, manifest.parameters[&name].shape[1]];
            parts.extend(ticket.tensors().get(&name).map(|delta| (first, delta)));
        }
        (!parts.is_empty()).then_some(WeightDeltas { shape, parts })
    };
    let layer = |layer| Projection::ALL.map(|projection| weight(layer, projection));
    (0..layers(manifest)).flat_map(layer).collect()
}
