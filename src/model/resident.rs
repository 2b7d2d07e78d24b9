//! The resident parameters as tickets see them: one ticket may be applied at a time, and reverting
//! it gives back the base bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use crate::kernels::scatter::{self, Saved};
use crate::kernels::weight::Weight;
use crate::ticket::{BoundTicket, Digest};

/// The base's parameters by checkpoint name, and the ticket that is applied to them.
pub struct Resident {
    parameters: BTreeMap<String, Weight>,
    /// The base's fingerprint, which tickets are bound to.
    fingerprint: Digest,
    applied: Option<Applied>,
}

struct Applied {
    /// Kept here, since it holds the positions that are to be restored.
    ticket: Arc<BoundTicket>,
    scale: f32,
    /// What the ticket replaced, in the order of its tensors.
    saved: Vec<Saved>,
}

/// What a swap did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapReport {
    /// Weights written, reverting and applying together.
    pub nonzeros: usize,
    pub took: Duration,
}

impl Resident {
    pub(super) fn new(parameters: BTreeMap<String, Weight>, fingerprint: Digest) -> Self {
        Self {
            parameters,
            fingerprint,
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
    /// If the ticket is bound to another base, or adapts a weight that is kept quantised; nothing has
    /// changed then.
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
        if let Some(ticket) = ticket.filter(|ticket| ticket.bound_to() != self.fingerprint) {
            return Err(ModelError::ForeignTicket {
                ticket: ticket.bound_to(),
                base: self.fingerprint,
            });
        }
        for name in ticket.iter().flat_map(|ticket| ticket.tensors().keys()) {
            tensor(&self.parameters, name)?;
        }
        let start = Instant::now();
        let mut nonzeros = self.revert()?;
        if let Some(ticket) = ticket {
            nonzeros += ticket.nonzeros();
            self.apply(ticket, scale)?;
        }
        let took = start.elapsed();
        Ok(Some(SwapReport { nonzeros, took }))
    }

    fn apply(&mut self, ticket: &Arc<BoundTicket>, scale: f32) -> Result<(), ModelError> {
        let applied = self.applied.insert(Applied {
            ticket: Arc::clone(ticket),
            scale,
            saved: Vec::new(),
        });
        for (name, delta) in ticket.tensors() {
            let weight = tensor(&self.parameters, name)?;
            applied.saved.push(scatter::apply(weight, delta, scale)?);
        }
        Ok(())
    }

    /// Writes back what the applied ticket replaced, if any; returns how many weights that were.
    fn revert(&mut self) -> Result<usize, ModelError> {
        let Some(applied) = &mut self.applied else {
            return Ok(0);
        };
        let mut nonzeros = 0;
        for ((name, delta), saved) in applied.ticket.tensors().iter().zip(&applied.saved) {
            scatter::revert(tensor(&self.parameters, name)?, delta, saved)?;
            nonzeros += delta.nonzeros();
        }
        self.applied = None;
        Ok(nonzeros)
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
