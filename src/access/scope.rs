//! Scopes: what a key may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A permission that a route requires and a key grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Completions, and the list of models.
    #[serde(rename = "infer")]
    Infer,
    /// List and show tickets.
    #[serde(rename = "tickets:read")]
    TicketsRead,
    /// Upload, replace and delete tickets.
    #[serde(rename = "tickets:write")]
    TicketsWrite,
    /// Read the Prometheus series.
    #[serde(rename = "metrics")]
    Metrics,
    /// Everything, the checks and switches of the operator included.
    #[serde(rename = "admin")]
    Admin,
}

/// A name that is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a scope; expected `infer`, `tickets:read`, `tickets:write`, `metrics` or `admin`"
)]
pub struct ScopeError(String);

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [
        Self::Infer,
        Self::TicketsRead,
        Self::TicketsWrite,
        Self::Metrics,
        Self::Admin,
    ];

    /// The name, as keys and messages spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::TicketsRead => "tickets:read",
            Self::TicketsWrite => "tickets:write",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(name: &str) -> Result<Self, ScopeError> {
        let scope = Self::ALL.into_iter().find(|scope| scope.name() == name);
        scope.ok_or_else(|| ScopeError(name.chars().take(64).collect()))
    }
}

/// A set of scopes. [`Scope::Admin`] implies all others. Displayed as a list with commas.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct Scopes(u8);

impl Scopes {
    /// Every permission.
    pub const ALL: Self = Self(1 << Scope::Admin as u8);

    /// Whether the set grants `scope`, directly or by [`Scope::Admin`].
    pub fn allows(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8 | Self::ALL.0) != 0
    }

    /// Whether no scope is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes that were granted by name.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        let contains = move |scope: &Scope| self.0 & (1 << *scope as u8) != 0;
        Scope::ALL.into_iter().filter(contains)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, s| set | 1 << s as u8))
    }
}

impl From<Vec<Scope>> for Scopes {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.iter().collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, scope) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{scope}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_implies_every_scope_and_no_other_implies_a_second_one() {
        for granted in Scope::ALL {
            let scopes = Scopes::from_iter([granted]);
            for wanted in Scope::ALL {
                let expected = granted == wanted || granted == Scope::Admin;
                assert_eq!(scopes.allows(wanted), expected, "{granted} for {wanted}");
            }
        }
        assert!(Scope::ALL.iter().all(|s| !Scopes::default().allows(*s)));
    }

    #[test]
    fn names_are_those_of_the_file() {
        for scope in Scope::ALL {
            assert_eq!(scope.name().parse(), Ok(scope));
            let json = serde_json::to_string(&scope).unwrap();
            assert_eq!(json, format!("{:?}", scope.name()));
        }
        let error = "tickets".parse::<Scope>().unwrap_err().to_string();
        assert!(error.contains("tickets:read"), "{error}");
    }
}
