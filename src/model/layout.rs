//! Device layout of a ticket: its deltas by fused weight, in the order in which kernels read them.

use std::fmt;

use candle_core::Device;

use super::error::ModelError;
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
    pub(super) fn on_this_thread(
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

/// Deltas of a ticket by [`weight_number`]; `None` for each weight that it does not touch.
pub(super) fn fused<'a>(
    ticket: &'a Ticket,
    manifest: &BaseManifest,
) -> Vec<Option<WeightDeltas<'a>>> {
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
