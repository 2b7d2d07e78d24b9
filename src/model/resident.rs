//! The resident parameters as tickets see them: one ticket may be applied at a time, and reverting
//! it gives back the base bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use crate::kernels::digest::hash_values;
use crate::kernels::scatter::{self, Saved};
use crate::ticket::{BoundTicket, Digest};

/// The base's parameters by checkpoint name, and the ticket that is applied to them.
pub struct Resident {
    parameters: BTreeMap<String, Tensor>,
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
    pub(super) fn new(parameters: BTreeMap<String, Tensor>, fingerprint: Digest) -> Self {
        Self {
            parameters,
            fingerprint,
            applied: None,
        }
    }

    pub(super) fn into_parameters(self) -> BTreeMap<String, Tensor> {
        self.parameters
    }

    /// The digest of the ticket that is applied now.
    pub fn applied(&self) -> Option<Digest> {
        self.applied.as_ref().map(|applied| applied.ticket.digest())
    }

    /// Makes `ticket` at `scale` the one that is applied (`None`: the bare base), reverting
    /// another first. Returns `None` where that is so already.
    ///
    /// # Errors
    /// If the ticket is bound to another base; nothing has changed then.
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
            let weight = parameter(&self.parameters, name)?;
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
            scatter::revert(parameter(&self.parameters, name)?, delta, saved)?;
            nonzeros += delta.nonzeros();
        }
        self.applied = None;
        Ok(nonzeros)
    }

    /// The digest of each parameter's values as they are now, with whatever is applied.
    pub fn digests(&self) -> Result<BTreeMap<String, Digest>, ModelError> {
        let digest = |(name, tensor): (&String, &Tensor)| {
            let mut hasher = Sha256::new();
            hash_values(&mut hasher, tensor)?;
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

fn parameter<'a>(
    parameters: &'a BTreeMap<String, Tensor>,
    name: &str,
) -> Result<&'a Tensor, ModelError> {
    let parameter = parameters.get(name);
    parameter.ok_or_else(|| ModelError::UnknownParameter(name.to_owned()))
}
