//! A ticket as the decoder takes it beside the base's weights, which stay as they are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::error::ModelError;
use super::weights::{Projection, layers};
use crate::kernels::overlay::{OverlayLayout, OverlayRows, overlay};
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

    /// Computes all that the ticket adds to a step of `rows` rows, on made-up activations, and throws it
    /// away: how long it took, without what surrounds it. The base is the one that the ticket was
    /// arranged for.
    ///
    /// # Errors
    /// There is no memory for the activations.
    pub fn time(
        &self,
        rows: usize,
        manifest: &BaseManifest,
        device: &Device,
    ) -> Result<Duration, ModelError> {
        let mut took = Duration::ZERO;
        for projection in Projection::ALL {
            // All layers have the shapes of the first. The activations are made before the clock runs.
            let shape = shape_of(manifest, projection);
            let [y, x] = shape.map(|n| Tensor::ones((rows, n), DType::F32, device));
            let (y, x) = (y?, x?);
            for layer in &self.layers {
                if let Some(layout) = &layer[projection as usize] {
                    let part = OverlayRows {
                        rows: 0..rows,
                        layout,
                        scale: 1.0,
                    };
                    let start = Instant::now();
                    overlay(&y, &x, &[part])?;
                    took += start.elapsed();
                }
            }
        }
        Ok(took)
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
