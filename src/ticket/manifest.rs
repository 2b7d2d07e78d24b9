//! What a ticket is checked against: the base's identity and the shapes of its parameters.

use std::collections::BTreeMap;

use super::error::brief;
use super::{Digest, TicketError};

/// The base as tickets see it: its name, its fingerprint and every parameter's shape.
#[derive(Clone, Debug)]
pub struct BaseManifest {
    /// The name that requests use for the base (`smollm2-135m`).
    pub name: String,
    /// SHA-256 over all parameters; see `model::fingerprint` for its definition.
    pub fingerprint: Digest,
    /// Parameters by checkpoint name.
    pub parameters: BTreeMap<String, ParameterInfo>,
}

/// One parameter of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// `[out, in]` for a projection.
    pub shape: Vec<usize>,
    /// Whether tickets may adapt it: attention and MLP projection weights only.
    pub adaptable: bool,
}

impl BaseManifest {
    /// The number of weights that tickets may adapt: what density counts over.
    pub fn adaptable_weights(&self) -> usize {
        let adaptable = self.parameters.values().filter(|p| p.adaptable);
        adaptable.map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// The shape `[out, in]` of a parameter that tickets may adapt.
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
