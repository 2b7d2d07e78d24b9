//! The base manifest: the identity and parameter shapes that tickets are checked against.

use std::collections::BTreeMap;

use super::error::brief;
use super::{Digest, TicketError};

/// Name, fingerprint and parameter shapes of a base.
#[derive(Clone, Debug)]
pub struct BaseManifest {
    /// The name that requests use for the base (`smollm2-135m`).
    pub name: String,
    /// SHA-256 digest over all parameters, as defined in `model::fingerprint`.
    pub fingerprint: Digest,
    /// Parameters by checkpoint name.
    pub parameters: BTreeMap<String, ParameterInfo>,
}

/// One parameter of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// `[out, in]` for a projection.
    pub shape: Vec<usize>,
    /// Whether tickets may adapt it. Only attention and MLP projection weights are adaptable.
    pub adaptable: bool,
}

impl BaseManifest {
    /// Number of weights that tickets may adapt: the denominator of density.
    pub fn adaptable_weights(&self) -> usize {
        let adaptable = self.parameters.values().filter(|p| p.adaptable);
        adaptable.map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// Shape `[out, in]` of an adaptable parameter.
    ///
    /// # Errors
    /// The base has no such parameter, or it is not a projection.
    pub fn projection(&self, parameter: &str) -> Result<[usize; 2], TicketError> {
        let Some(info) = self.parameters.get(parameter) else {
            return Err(TicketError::UnknownParameter {
                parameter: brief(parameter),
                base: self.name.clone(),
            });
        };
        match info.shape[..] {
            [out, columns] if info.adaptable => Ok([out, columns]),
            _ => Err(TicketError::NotAdaptable(brief(parameter))),
        }
    }
}
