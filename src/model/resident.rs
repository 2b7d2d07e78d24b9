//! Applying and reverting tickets on the resident parameters: at most one ticket is applied at a
//! time, and reverting it restores the base bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use super::layout::TicketLayout;
use super::loaded_ticket::LoadedTicket;
use super::weights::{Projection, Weights};
use crate::kernels::ticket::apply;
use crate::kernels::ticket::apply::{Saved, SwapTarget};
use crate::kernels::weight::Weight;
use crate::ticket::{BaseManifest, Digest};

/// The base's parameters by checkpoint name, and the ticket that is applied to them.
pub struct Resident {
    parameters: BTreeMap<String, Weight>,
    /// Fused weights, by [`weight_number`](super::layout::weight_number); they share the storage of
    /// the parameters. Empty if the base is kept quantised.
    weights: Vec<Tensor>,
    manifest: Arc<BaseManifest>,
    device: Device,
    applied: Option<Applied>,
}

/// The applied ticket, and the values that revert it.
struct Applied {
    /// Holds the positions that a revert restores.
    ticket: Arc<LoadedTicket>,
    scale: f32,
    /// The base's values at those positions.
    saved: Saved,
}

/// Outcome of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapReport {
    /// Weights written: those reverted plus those applied.
    pub nonzeros: usize,
    /// Time of the swap, without building a layout.
    pub took: Duration,
}

impl Resident {
    /// The loaded parameters, with no ticket applied.
    ///
    /// # Errors
    /// All parameters are dense, but a fused weight is not.
    pub(super) fn new(
        parameters: BTreeMap<String, Weight>,
        weights: &Weights,
        manifest: Arc<BaseManifest>,
    ) -> Result<Self, ModelError> {
        let mut resident = Self {
            parameters,
            weights: Vec::new(),
            manifest,
            device: weights.embedding.device().clone(),
            applied: None,
        };
        if resident.can_apply() {
            let linears = weights
                .layers
                .iter()
                .flat_map(|layer| Projection::ALL.map(|projection| layer.linear(projection)));
            resident.weights = linears
                .map(|linear| linear.weight().cloned())
                .collect::<candle_core::Result<_>>()?;
        }
        Ok(resident)
    }

    /// Hands the parameters over for training, by checkpoint name.
    ///
    /// # Errors
    /// A parameter is kept quantised.
    pub(super) fn into_parameters(self) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let names = self.parameters.keys();
        let tensor = |name: &String| Ok((name.clone(), tensor(&self.parameters, name)?.clone()));
        names.map(tensor).collect()
    }

    /// Whether tickets can be applied; false if the base is kept quantised.
    pub fn can_apply(&self) -> bool {
        self.parameters.values().all(Weight::is_dense)
    }

    /// The parameters by checkpoint name, with the applied ticket in them.
    pub(super) fn parameters(&self) -> &BTreeMap<String, Weight> {
        &self.parameters
    }

    /// Bytes that the parameters take.
    pub fn bytes(&self) -> usize {
        self.parameters.values().map(Weight::bytes).sum()
    }

    /// Digest of the applied ticket; `None` for the bare base.
    pub fn applied(&self) -> Option<Digest> {
        self.applied.as_ref().map(|applied| applied.ticket.digest())
    }

    /// Applies `ticket` at `scale`, after reverting the ticket that was applied before; `None`
    /// restores the bare base. Returns `None` if the same ticket at the same scale was applied
    /// already.
    ///
    /// # Errors
    /// The ticket is bound to another base, adapts a weight that is kept quantised, or has no room
    /// for its layout on the GPU; the weights stay as they were then. After
    /// [`ModelError::HalfWritten`] they must not be used any more.
    pub fn swap(
        &mut self,
        ticket: Option<&Arc<LoadedTicket>>,
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
        if let Some(ticket) = ticket.filter(|_| apply::applies_by_layout(&self.device)) {
            // Fails before anything is changed, and is not part of the swap's time.
            self.layout(ticket)?;
        }
        let start = Instant::now();
        let nonzeros = self.write_swap(ticket, scale);
        let nonzeros = nonzeros.map_err(|error| ModelError::HalfWritten(Box::new(error)))?;
        let took = start.elapsed();
        Ok(Some(SwapReport { nonzeros, took }))
    }

    /// Reverts the applied ticket and applies another; returns the number of weights written.
    fn write_swap(
        &mut self,
        ticket: Option<&Arc<LoadedTicket>>,
        scale: f32,
    ) -> Result<usize, ModelError> {
        let mut nonzeros = self.revert()?;
        if let Some(ticket) = ticket {
            nonzeros += ticket.nonzeros();
            self.apply(ticket, scale)?;
        }
        self.device.synchronize()?;
        Ok(nonzeros)
    }

    /// The ticket's layout on this device, kept with the ticket.
    fn layout<'a>(&self, ticket: &'a LoadedTicket) -> Result<&'a TicketLayout, ModelError> {
        let build = |ticket: &_| TicketLayout::new(ticket, &self.manifest, &self.device);
        Ok(ticket.layout_or_build(build)?)
    }

    fn apply(&mut self, ticket: &Arc<LoadedTicket>, scale: f32) -> Result<(), ModelError> {
        let saved = self.at_positions(ticket, |target| apply::apply(target, scale))?;
        self.applied = Some(Applied {
            ticket: Arc::clone(ticket),
            scale,
            saved,
        });
        Ok(())
    }

    /// Writes back the values that the applied ticket replaced; returns the number of weights
    /// written, 0 for the bare base.
    fn revert(&mut self) -> Result<usize, ModelError> {
        let Some(Applied { ticket, saved, .. }) = &self.applied else {
            return Ok(0);
        };
        self.at_positions(ticket, |target| apply::revert(target, saved))?;
        let nonzeros = ticket.nonzeros();
        self.applied = None;
        Ok(nonzeros)
    }

    /// Runs `write` on the ticket's deltas and their weights, in the form that the device needs.
    fn at_positions<T>(
        &self,
        ticket: &LoadedTicket,
        write: impl FnOnce(&SwapTarget) -> candle_core::Result<T>,
    ) -> Result<T, ModelError> {
        if apply::applies_by_layout(&self.device) {
            let layouts = self.layout(ticket)?.layouts();
            return Ok(write(&SwapTarget::Weights(layouts, &self.weights))?);
        }
        let mut parameters = Vec::with_capacity(ticket.tensors().len());
        for (name, delta) in ticket.tensors() {
            parameters.push((tensor(&self.parameters, name)?, delta));
        }
        Ok(write(&SwapTarget::Parameters(parameters))?)
    }

    /// Digest of each parameter's current values, with the applied ticket in them. A kept-quantised
    /// parameter has the digest of its values in f32.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn digests(&self) -> Result<BTreeMap<String, Digest>, ModelError> {
        let digest = |(name, weight): (&String, &Weight)| {
            let mut hasher = Sha256::new();
            weight.hash_values(&mut hasher)?;
            Ok((name.clone(), Digest(hasher.finalize().into())))
        };
        self.parameters.par_iter().map(digest).collect()
    }

    /// One digest over all of [`Self::digests`], in the order of the names.
    ///
    /// # Errors
    /// As [`Self::digests`].
    pub fn digest(&self) -> Result<Digest, ModelError> {
        let mut hasher = Sha256::new();
        for digest in self.digests()?.values() {
            hasher.update(digest.0);
        }
        Ok(Digest(hasher.finalize().into()))
    }
}

/// The dense parameter of that name.
fn tensor<'a>(
    parameters: &'a BTreeMap<String, Weight>,
    name: &str,
) -> Result<&'a Tensor, ModelError> {
    let unknown = || ModelError::UnknownParameter(name.to_owned());
    let weight = parameters.get(name).ok_or_else(unknown)?;
    let quantized = |_| ModelError::Quantized(name.to_owned());
    weight.dense().map_err(quantized)
}
