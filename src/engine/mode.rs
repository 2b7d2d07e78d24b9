//! How tickets reach the rows that name them.

use std::fmt;
use std::str::FromStr;

/// Whether steps run one ticket or all, as the operator wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TicketMode {
    /// Each step is one or the other, whichever costs less.
    #[default]
    Auto,
    /// A step runs the sequences of one ticket, with its deltas written into the resident weights;
    /// tickets take turns.
    Apply,
    /// A step runs all sequences together; the weights stay the base's, and each row adds the product
    /// with its own ticket's deltas.
    Overlay,
}

impl TicketMode {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Apply, Self::Overlay];

    /// As flags have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Apply => "apply",
            Self::Overlay => "overlay",
        }
    }
}

impl FromStr for TicketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("{text:?} is not a ticket mode: `auto`, `apply` or `overlay`"))
    }
}

impl fmt::Display for TicketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
