//! A ticket as the decoder takes it beside the base's weights, which stay as they are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::error::ModelError;
use super::weights::{Projection, layers};
use crate::kernels::overlay::OverlayLayout;
use crate::ticket::{BaseManifest, BoundTicket, TensorDelta, Ticket};

/// A ticket's deltas by the fused weights that they are for, arranged for the sparse product.
pub struct TicketOverlay {
    layers: Vec<LayerOverlay>,
}

/// In the order of [`Projection::ALL`]; `None` where the ticket does not touch the weight.
type LayerOverlay = [Option<OverlayLayout>; Projection::ALL.len()];

impl TicketOverlay {
    /// Arranges a ticket of the base that `manifest` describes, on all cores.
    ///
    /// # Errors
    /// If the ticket is bound to another base.
    pub fn new(ticket: &BoundTicket, manifest: &BaseManifest) -> Result<Self, ModelError> {
        if ticket.bound_to() != manifest.fingerprint {
            return Err(ModelError::ForeignTicket {
                ticket: ticket.bound_to(),
                base: manifest.fingerprint,
            });
        }
        let layer = |layer| {
            Projection::ALL.map(|projection| {
                let (shape, deltas) = fused(ticket, manifest, layer, projection);
                (!deltas.is_empty()).then(|| OverlayLayout::new(shape, &deltas))
            })
        };
        let layers = (0..layers(manifest)).into_par_iter().map(layer);
        Ok(Self {
            layers: layers.collect(),
        })
    }

    /// What is beside a layer's weight; `None` where the ticket does not touch it.
    pub fn layout(&self, layer: usize, projection: Projection) -> Option<&OverlayLayout> {
        self.layers[layer][projection as usize].as_ref()
    }

    pub fn nonzeros(&self) -> usize {
        self.layouts().map(OverlayLayout::nonzeros).sum()
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let layouts = self.layouts().map(OverlayLayout::bytes);
        size_of_val(&self.layers[..]) + layouts.sum::<usize>()
    }

    /// Heap bytes that a ticket takes together with its overlay, at most.
    pub fn resident_bytes_of(ticket: &Ticket, manifest: &BaseManifest) -> usize {
        let mut bytes = ticket.resident_bytes();
        for layer in 0..layers(manifest) {
            bytes += size_of::<LayerOverlay>();
            for projection in Projection::ALL {
                let ([out, inner], deltas) = fused(ticket, manifest, layer, projection);
                if !deltas.is_empty() {
                    bytes += OverlayLayout::bytes_for([out, inner], &deltas);
                }
            }
        }
        bytes
    }

    fn layouts(&self) -> impl Iterator<Item = &OverlayLayout> {
        self.layers.iter().flatten().flatten()
    }
}

impl fmt::Debug for TicketOverlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketOverlay")
            .field("layers", &self.layers.len())
            .field("nonzeros", &self.nonzeros())
            .finish()
    }
}

/// The shape of a layer's fused weight, and a ticket's deltas in it with the rows that they begin at.
fn fused<'a>(
    ticket: &'a Ticket,
    manifest: &BaseManifest,
    layer: usize,
    projection: Projection,
) -> ([usize; 2], Vec<(usize, &'a TensorDelta)>) {
    let (mut shape, mut deltas) = ([0, 0], Vec::new());
    for (name, first, rows) in projection.parts(layer, manifest) {
        shape = [first + rows, manifest.parameters[&name].shape[1]];
        deltas.extend(ticket.tensors().get(&name).map(|delta| (first, delta)));
    }
    (shape, deltas)
}

/// Rows of a batch that a ticket is laid over.
#[derive(Clone, Debug)]
pub struct Overlaid {
    pub rows: Range<usize>,
    pub ticket: Arc<TicketOverlay>,
}
