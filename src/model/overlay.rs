//! A ticket as the decoder takes it beside the base's weights, which stay as they are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use super::error::ModelError;
use super::load::Base;
use super::weights::{Projection, layers};
use crate::kernels::step::inputs::Inputs;
use crate::kernels::ticket::overlay::{Layouts, OverlayRows, Overlays, WeightDeltas, overlay};
use crate::ticket::{BaseManifest, BoundTicket, Ticket};

/// A ticket's deltas by the fused weights that they are for, arranged for the sparse product where the base is
/// (and on a GPU for being applied too).
pub struct TicketOverlay {
    layouts: Layouts,
}

/// The number of a layer's fused weight among all of them.
pub fn weight_number(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection as usize
}

impl TicketOverlay {
    /// Arranges a ticket of the base that `manifest` describes, on all cores.
    ///
    /// # Errors
    /// If the ticket is bound to another base, or there is no room for it on the device.
    pub fn new(
        ticket: &BoundTicket,
        manifest: &BaseManifest,
        device: &Device,
    ) -> Result<Self, ModelError> {
        if ticket.bound_to() != manifest.fingerprint {
            return Err(ModelError::ForeignTicket {
                ticket: ticket.bound_to(),
                base: manifest.fingerprint,
            });
        }
        let layouts = Layouts::new(&fused(ticket, manifest), device)?;
        Ok(Self { layouts })
    }

    /// What [`Self::new`] has made of the ticket, kept with it.
    ///
    /// # Errors
    /// As there.
    pub fn of(
        ticket: &BoundTicket,
        manifest: &BaseManifest,
        device: &Device,
    ) -> Result<Arc<Self>, ModelError> {
        ticket.derived(|ticket| Self::new(ticket, manifest, device))
    }

    /// The deltas by [`weight_number`].
    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// Computes all that the ticket adds to a step of `rows` rows, on made-up activations, and throws it
    /// away: how long it took, without what surrounds it. The base is the one that the ticket was
    /// arranged for.
    ///
    /// # Errors
    /// There is no memory for the activations.
    pub fn time(&self, rows: usize, base: &Base) -> Result<Duration, ModelError> {
        let (manifest, device) = (&base.manifest, base.device());
        let dtype = base.decoder.weights().norm.dtype();
        let mut took = Duration::ZERO;
        let ticket = OverlayRows {
            rows: 0..rows,
            ticket: &self.layouts,
            scale: 1.0,
        };
        let mut inputs = Inputs::new(device);
        let overlays = Overlays::new(vec![ticket], rows, &mut inputs)?;
        inputs.upload()?;
        for projection in Projection::ALL {
            // All layers have the shapes of the first. The activations are made before the clock runs.
            let [out, inner] = shape_of(manifest, projection);
            let y = Tensor::ones((rows, out), DType::F32, device)?;
            let x = Tensor::ones((rows, inner), dtype, device)?;
            device.synchronize()?;
            let start = Instant::now();
            for layer in 0..layers(manifest) {
                let weight = weight_number(layer, projection);
                if self.layouts.shape(weight).is_some() {
                    overlay(y.clone(), &x, &overlays, weight)?;
                }
            }
            device.synchronize()?;
            took += start.elapsed();
        }
        Ok(took)
    }

    pub fn nonzeros(&self) -> usize {
        self.layouts.nonzeros()
    }

    /// Bytes of the memory that the base is in.
    pub fn bytes(&self) -> usize {
        self.layouts.bytes()
    }

    /// Bytes that a ticket takes together with its overlay, at most.
    pub fn resident_bytes_of(ticket: &Ticket, manifest: &BaseManifest, device: &Device) -> usize {
        ticket.resident_bytes() + Layouts::bytes_for(&fused(ticket, manifest), device)
    }
}

impl fmt::Debug for TicketOverlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketOverlay")
            .field("nonzeros", &self.nonzeros())
            .finish()
    }
}

/// A ticket's deltas by [`weight_number`].
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

/// The shape of a fused weight, as the first layer has it.
fn shape_of(manifest: &BaseManifest, projection: Projection) -> [usize; 2] {
    let parts = projection.parts(0, manifest).into_iter();
    parts.fold([0, 0], |_, (name, first, rows)| {
        [first + rows, manifest.parameters[&name].shape[1]]
    })
}

/// Rows of a batch that a ticket is laid over.
#[derive(Clone, Debug)]
pub struct Overlaid {
    pub rows: Range<usize>,
    pub ticket: Arc<TicketOverlay>,
}
