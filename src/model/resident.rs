//! The resident parameters as tickets see them: one ticket may be applied at a time, and reverting
//! it gives back the base bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use super::overlay::TicketOverlay;
use super::weights::{Projection, Weights};
use crate::kernels::ticket::apply;
use crate::kernels::ticket::apply::{Saved, Target};
use crate::kernels::weight::Weight;
use crate::ticket::{BaseManifest, BoundTicket, Digest};

/// The base's parameters by checkpoint name, and the ticket that is applied to them.
pub struct Resident {
    parameters: BTreeMap<String, Weight>,
    /// The weights that parameters are fused into, by [`weight_number`](super::overlay::weight_number): the same
    /// values. None where the base is kept quantised.
    weights: Vec<Tensor>,
    manifest: Arc<BaseManifest>,
    device: Device,
    applied: Option<Applied>,
}

struct Applied {
    /// Kept here, since it holds the positions that are to be restored.
    ticket: Arc<BoundTicket>,
    scale: f32,
    saved: Saved,
}

/// What a swap did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapReport {
    /// Weights written, reverting and applying together.
    pub nonzeros: usize,
    pub took: Duration,
}

impl Resident {
    pub(super) fn new(
        parameters: BTreeMap<String, Weight>,
        weights: &Weights,
        manifest: Arc<BaseManifest>,
    ) -> Self {
        let fused = weights.layers.iter().flat_map(|layer| {
            Projection::ALL.map(|projection| layer.linear(projection).weight().cloned())
        });
        Self {
            parameters,
            weights: fused
                .collect::<candle_core::Result<_>>()
                .unwrap_or_default(),
            manifest,
            device: weights.embedding.device().clone(),
            applied: None,
        }
    }

    /// The parameters, to train.
    ///
    /// # Errors
    /// If any is kept quantised.
    pub(super) fn into_parameters(self) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let names = self.parameters.keys();
        let tensor = |name: &String| Ok((name.clone(), tensor(&self.parameters, name)?.clone()));
        names.map(tensor).collect()
    }

    /// Whether tickets can be applied: not to a base that is kept quantised.
    pub fn can_apply(&self) -> bool {
        self.parameters.values().all(Weight::is_dense)
    }

    /// Bytes that the parameters take.
    pub fn bytes(&self) -> usize {
        self.parameters.values().map(Weight::bytes).sum()
    }

    /// The digest of the ticket that is applied now.
    pub fn applied(&self) -> Option<Digest> {
        self.applied.as_ref().map(|applied| applied.ticket.digest())
    }

    /// Makes `ticket` at `scale` the one that is applied (`None`: the bare base), reverting
    /// another first. Returns `None` where that is so already.
    ///
    /// # Errors
    /// If the ticket is bound to another base, adapts a weight that is kept quantised, or has no room on the GPU;
    /// nothing has changed then.
    pub fn swap(
        &mut self,
        ticket: Option<&Arc<BoundTicket>>,
        scale: f32,
    ) -> Result<Option<SwapReport>, ModelError> {
        let wanted = ticket.map(|ticket| (ticket.digest(), scale));
        let current = self.applied.as_ref().map(|a| (a.ticket.digest(), a.scale));
        if wanted == current {
            return Ok(None);
        }
        if let Some(ticket) = ticket.filter(|ticket| ticket.bound_to() != self.manifest.fingerprint)
        {
            return Err(ModelError::ForeignTicket {
                ticket: ticket.bound_to(),
                base: self.manifest.fingerprint,
            });
        }
        for name in ticket.iter().flat_map(|ticket| ticket.tensors().keys()) {
            tensor(&self.parameters, name)?;
        }
        if let Some(ticket) = ticket.filter(|_| apply::takes_layouts(&self.device)) {
            // What can fail comes before anything is changed, and is not the swap's time.
            TicketOverlay::of(ticket, &self.manifest, &self.device)?;
        }
        let start = Instant::now();
        let mut nonzeros = self.revert()?;
        if let Some(ticket) = ticket {
            nonzeros += ticket.nonzeros();
            self.apply(ticket, scale)?;
        }
        self.device.synchronize()?;
        let took = start.elapsed();
        Ok(Some(SwapReport { nonzeros, took }))
    }

    fn apply(&mut self, ticket: &Arc<BoundTicket>, scale: f32) -> Result<(), ModelError> {
        let saved = self.at_positions(ticket, |target| apply::apply(target, scale))?;
        self.applied = Some(Applied {
            ticket: Arc::clone(ticket),
            scale,
            saved,
        });
        Ok(())
    }

    /// Writes back what the applied ticket replaced, if any; returns how many weights that were.
    fn revert(&mut self) -> Result<usize, ModelError> {
        let Some(Applied { ticket, saved, .. }) = &self.applied else {
            return Ok(0);
        };
        self.at_positions(ticket, |target| apply::revert(target, saved))?;
        let nonzeros = ticket.nonzeros();
        self.applied = None;
        Ok(nonzeros)
    }

    /// Runs `write` on the ticket's deltas and the weights that they are for, as the device takes them.
    fn at_positions<T>(
        &self,
        ticket: &BoundTicket,
        write: impl FnOnce(&Target) -> candle_core::Result<T>,
    ) -> Result<T, ModelError> {
        if apply::takes_layouts(&self.device) {
            let laid_out = TicketOverlay::of(ticket, &self.manifest, &self.device)?;
            return Ok(write(&Target::Weights(laid_out.layouts(), &self.weights))?);
        }
        let mut parameters = Vec::with_capacity(ticket.tensors().len());
        for (name, delta) in ticket.tensors() {
            parameters.push((tensor(&self.parameters, name)?, delta));
        }
        Ok(write(&Target::Parameters(parameters))?)
    }

    /// The digest of each parameter's values as they are now, with whatever is applied: the same whether
    /// they are in f32 or kept quantised.
    pub fn digests(&self) -> Result<BTreeMap<String, Digest>, ModelError> {
        let digest = |(name, weight): (&String, &Weight)| {
            let mut hasher = Sha256::new();
            weight.hash_values(&mut hasher)?;
            Ok((name.clone(), Digest(hasher.finalize().into())))
        };
        self.parameters.par_iter().map(digest).collect()
    }

    /// One digest over all of [`Self::digests`], in the order of the names.
    pub fn digest(&self) -> Result<Digest, ModelError> {
        let mut hasher = Sha256::new();
        for digest in self.digests()?.values() {
            hasher.update(digest.0);
        }
        Ok(Digest(hasher.finalize().into()))
    }
}

/// A parameter, to write into.
fn tensor<'a>(
    parameters: &'a BTreeMap<String, Weight>,
    name: &str,
) -> Result<&'a Tensor, ModelError> {
    let weight = parameters.get(name);
    let weight = weight.ok_or_else(|| ModelError::UnknownParameter(name.to_owned()))?;
    let quantized = |_| ModelError::Quantized(name.to_owned());
    weight.dense().map_err(quantized)
}
