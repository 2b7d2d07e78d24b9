//! How tickets reach the rows that name them.

use std::fmt;
use std::str::FromStr;

/// How tickets reach the rows of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TicketMode {
    /// Each step applies or overlays, whichever costs less.
    #[default]
    Auto,
    /// Each step runs the sequences of one ticket, whose deltas are written into the resident
    /// weights. Tickets take turns.
    Apply,
    /// Each step runs all sequences together. The weights stay the base's, and the product with its
    /// ticket's deltas is added to each row.
    Overlay,
}

impl TicketMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Apply, Self::Overlay];

    /// Name of the mode on the command line.
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
