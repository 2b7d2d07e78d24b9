//! What a selection means now: generations, and for a composition its own identity and size.

use std::sync::Arc;

use super::generation::{Generation, Name};
use super::selection::{Part, Scale, Selection, SelectionError};
use super::{Registry, RegistryError, Tier};
use crate::access::Tenant;
use crate::model::TicketBytes;
use crate::ticket::Digest;
use crate::ticket::merge::{composition_digest, merged_dtype};

/// The word for the base that every server understands, whatever its base is called.
const BASE: &str = "base";

/// A generation and the factor of its deltas.
#[derive(Clone, Debug)]
pub struct ScaledGeneration {
    /// The generation.
    pub generation: Arc<Generation>,
    /// Factor of its deltas; never 0.
    pub scale: f32,
}

/// The ticket, or the composition of tickets, that a lease is of.
#[derive(Debug)]
pub(super) struct Target {
    parts: Vec<ScaledGeneration>,
    /// Digest of the ticket or of the composition.
    content: Digest,
    /// Upper bound of the memory that it takes.
    bytes: TicketBytes,
    /// Alias of the ticket, or the text of the composition.
    name: String,
}

impl Registry {
    /// The selection that `text` stands for: the base by its own name (or as `base`, if the caller
    /// sees no ticket of that name), a ticket, or a composition.
    ///
    /// # Errors
    /// The text is malformed; the caller has no such ticket; a composition contains the base or a
    /// ticket twice, or takes more memory than there is.
    pub fn select(&self, tenant: Option<&Tenant>, text: &str) -> Result<Selection, RegistryError> {
        if self.means_base(tenant, text) {
            return Ok(Selection::base());
        }
        self.check_selection(tenant, Selection::parse(text)?)
    }

    /// As [`Registry::select`], of a list of tickets.
    ///
    /// # Errors
    /// As [`Registry::select`]; a reference does not name one ticket.
    pub fn select_parts(
        &self,
        tenant: Option<&Tenant>,
        parts: Vec<Part>,
    ) -> Result<Selection, RegistryError> {
        if let [part] = &parts[..]
            && self.means_base(tenant, &part.reference)
        {
            return match part.scale {
                1.0 => Ok(Selection::base()),
                _ => Err(SelectionError::ScaledBase.into()),
            };
        }
        self.check_selection(tenant, Selection::of(parts)?)
    }

    fn check_selection(
        &self,
        tenant: Option<&Tenant>,
        selection: Selection,
    ) -> Result<Selection, RegistryError> {
        let mut references = selection.parts().iter().map(|part| &part.reference);
        if let Some(base) = references.find(|reference| self.means_base(tenant, reference)) {
            return Err(match selection.parts() {
                [_] => SelectionError::ScaledBase.into(),
                _ => SelectionError::BaseAsPart(base.clone()).into(),
            });
        }
        self.target(tenant, &selection)?;
        Ok(selection)
    }

    fn means_base(&self, tenant: Option<&Tenant>, name: &str) -> bool {
        name == self.base.name || (name == BASE && self.get(tenant, BASE).is_none())
    }

    /// What the selection means now. It must name a ticket.
    ///
    /// # Errors
    /// The caller has no such ticket; two parts are one ticket; a composition takes more memory
    /// than there is beside the pinned tickets.
    pub(super) fn target(
        &self,
        tenant: Option<&Tenant>,
        selection: &Selection,
    ) -> Result<Target, RegistryError> {
        let resolved: Result<Vec<_>, RegistryError> = {
            let names = self.names();
            let resolve = |Part { reference, scale }: &Part| {
                let found = names.resolve(tenant, reference);
                let found = found.ok_or_else(|| RegistryError::Unknown(reference.clone()))?;
                Ok(ScaledGeneration {
                    generation: Arc::clone(found),
                    scale: *scale,
                })
            };
            selection.parts().iter().map(resolve).collect()
        };
        let target = Target::new(resolved?, |parts| self.composed_bytes(parts))?;
        if target.ticket().is_none() {
            self.check_room_for_composition(&target)?;
        }
        Ok(target)
    }

    /// Upper bound of the memory that a composition takes.
    fn composed_bytes(&self, parts: &[ScaledGeneration]) -> TicketBytes {
        let facts = || parts.iter().map(|part| part.generation.facts());
        let sizes = facts().map(|facts| (facts.memory, facts.nonzeros));
        let dtype = merged_dtype(facts().map(|facts| facts.dtype));
        self.options.ticket_memory.bytes_of_sum(sizes, dtype)
    }

    fn check_room_for_composition(&self, target: &Target) -> Result<(), RegistryError> {
        let (budget, pinned) = (self.memory.budget(), self.pinned_bytes());
        for (tier, needed, budget, pinned) in [
            (Tier::Host, target.bytes.host, budget.host, pinned.host),
            (
                Tier::Device,
                target.bytes.device,
                budget.device,
                pinned.device,
            ),
        ] {
            let available = budget.saturating_sub(pinned);
            if needed > available {
                return Err(RegistryError::CompositionTooLarge {
                    name: target.name.clone(),
                    tier,
                    needed,
                    available,
                });
            }
        }
        Ok(())
    }
}

impl Target {
    /// A single ticket.
    pub fn of_ticket(generation: Arc<Generation>) -> Self {
        Self {
            content: generation.digest(),
            bytes: generation.facts().memory,
            name: generation.alias().to_owned(),
            parts: vec![ScaledGeneration {
                generation,
                scale: 1.0,
            }],
        }
    }

    /// The ticket or composition of these parts; `composed_bytes` sizes a composition.
    fn new(
        mut parts: Vec<ScaledGeneration>,
        composed_bytes: impl FnOnce(&[ScaledGeneration]) -> TicketBytes,
    ) -> Result<Self, SelectionError> {
        if let [
            ScaledGeneration {
                generation,
                scale: 1.0,
            },
        ] = &parts[..]
        {
            return Ok(Self::of_ticket(Arc::clone(generation)));
        }
        for (index, part) in parts.iter().enumerate() {
            let digest = part.generation.digest();
            let same = |other: &&ScaledGeneration| other.generation.digest() == digest;
            if let Some(other) = parts[..index].iter().find(same) {
                return Err(SelectionError::Twice {
                    first: other.generation.alias().to_owned(),
                    second: part.generation.alias().to_owned(),
                });
            }
        }
        // As for the digest, the order of the first two does not count.
        let first_two = parts.len().min(2);
        parts[..first_two].sort_by(|a, b| a.generation.alias().cmp(b.generation.alias()));
        let identities = parts
            .iter()
            .map(|part| (part.generation.digest(), part.scale));
        let names = parts
            .iter()
            .map(|part| format!("{}{}", part.generation.alias(), Scale(part.scale)));
        Ok(Self {
            content: composition_digest(&identities.collect::<Vec<_>>()),
            bytes: composed_bytes(&parts),
            name: names.collect::<Vec<_>>().join("+"),
            parts,
        })
    }

    /// The generation, if this is a ticket as it was published.
    pub fn ticket(&self) -> Option<&Arc<Generation>> {
        match &self.parts[..] {
            [part] if part.scale == 1.0 => Some(&part.generation),
            _ => None,
        }
    }

    /// The generations, in the order of the sum.
    pub fn parts(&self) -> &[ScaledGeneration] {
        &self.parts
    }

    /// Digest of the ticket or of the composition.
    pub fn content(&self) -> Digest {
        self.content
    }

    /// Upper bound of the memory that it takes.
    pub fn bytes(&self) -> TicketBytes {
        self.bytes
    }

    /// Owner and alias; of a composition, the tenant whose ticket takes part, and the text.
    pub fn name(&self) -> Name<'_> {
        let mut parts = self.parts.iter();
        let owner = parts.find_map(|part| part.generation.owner());
        Name::new(owner, &self.name)
    }

    /// Whether both mean the same generations.
    pub fn same_generations(&self, other: &Self) -> bool {
        let ids = |target: &Self| -> Vec<_> {
            let parts = target.parts.iter();
            parts.map(|part| part.generation.id()).collect()
        };
        ids(self) == ids(other)
    }
}
