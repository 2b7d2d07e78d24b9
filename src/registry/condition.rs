//! Conditions under which a ticket may be written or deleted.

use super::error::RegistryError;
use super::generation::Generation;
use crate::ticket::Digest;

/// What must hold of the ticket that a name points at for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Contents one of which the ticket must have (`If-Match`).
    pub matches: Option<Match>,
    /// The name must be free (`If-None-Match: *`).
    pub absent: bool,
    /// An existing ticket is replaced; otherwise it is an error.
    pub replace: bool,
}

/// Contents that a condition accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Any content, as long as there is a ticket (`*`).
    Any,
    /// One of these.
    OneOf(Vec<Digest>),
}

impl Condition {
    /// Creates or replaces.
    pub fn upsert() -> Self {
        Self {
            replace: true,
            ..Self::default()
        }
    }

    /// Creates; an existing ticket is an error.
    pub fn create() -> Self {
        Self::default()
    }

    /// Checks the condition for publishing over `found`, the ticket that the name points at.
    pub(super) fn check_publish(
        &self,
        alias: &str,
        found: Option<&Generation>,
    ) -> Result<(), RegistryError> {
        self.check_match(alias, found)?;
        match found {
            Some(found) if self.absent => Err(failed(alias, Some(found))),
            Some(found) if found.alias() != alias => Err(RegistryError::DiffersInCase {
                alias: alias.to_owned(),
                existing: found.alias().to_owned(),
            }),
            Some(_) if !self.replace => Err(RegistryError::Exists(alias.to_owned())),
            _ => Ok(()),
        }
    }

    /// Checks which content the ticket has.
    pub(super) fn check_match(
        &self,
        alias: &str,
        found: Option<&Generation>,
    ) -> Result<(), RegistryError> {
        let holds = match (&self.matches, found) {
            (None, _) | (Some(Match::Any), Some(_)) => true,
            (Some(Match::OneOf(digests)), Some(found)) => digests.contains(&found.digest()),
            (Some(_), None) => false,
        };
        if holds {
            Ok(())
        } else {
            Err(failed(alias, found))
        }
    }
}

fn failed(alias: &str, found: Option<&Generation>) -> RegistryError {
    RegistryError::Precondition {
        alias: alias.to_owned(),
        found: found.map(Generation::digest),
    }
}
