//! Binding: the check of a ticket against a base.

use std::ops::Deref;

use super::error::brief;
use super::{BaseManifest, Columns, Digest, MAX_U16_COLUMNS, TensorDelta, Ticket, TicketError};

/// A ticket that fits a base: all parameters are known and adaptable, and all positions lie within
/// their parameter.
#[derive(Debug)]
pub struct BoundTicket {
    ticket: Ticket,
    bound_to: Digest,
}

impl Ticket {
    /// Checks the ticket against a base. With `allow_foreign_base`, a ticket made for another base
    /// is accepted if its names and shapes fit this one.
    ///
    /// # Errors
    /// The fingerprints differ; a parameter is unknown, not adaptable or of another shape; a column
    /// is out of range or stored in the wrong width; the stated density is not that of the file
    /// (not checked for a foreign base, of whose weights it is a share).
    pub fn bind(
        self,
        base: &BaseManifest,
        allow_foreign_base: bool,
    ) -> Result<BoundTicket, TicketError> {
        let metadata = self.metadata();
        if metadata.base_fingerprint != base.fingerprint && !allow_foreign_base {
            return Err(TicketError::ForeignBase {
                ticket_base: metadata.base_name.clone(),
                ticket_fingerprint: metadata.base_fingerprint,
                base: base.name.clone(),
                base_fingerprint: base.fingerprint,
            });
        }
        for (parameter, delta) in self.tensors() {
            check_fits(parameter, delta, base.projection(parameter)?)?;
        }
        if metadata.base_fingerprint == base.fingerprint {
            metadata.check_density(self.nonzeros(), base)?;
        }
        Ok(BoundTicket {
            ticket: self,
            bound_to: base.fingerprint,
        })
    }
}

impl BoundTicket {
    /// Fingerprint of the base that the ticket was checked against. For an accepted foreign ticket,
    /// it differs from [`super::Metadata::base_fingerprint`].
    pub fn bound_to(&self) -> Digest {
        self.bound_to
    }
}

impl Deref for BoundTicket {
    type Target = Ticket;

    fn deref(&self) -> &Ticket {
        &self.ticket
    }
}

fn check_fits(
    parameter: &str,
    delta: &TensorDelta,
    [rows, columns]: [usize; 2],
) -> Result<(), TicketError> {
    let parameter = || brief(parameter);
    if delta.rows() != rows {
        return Err(TicketError::Rows {
            parameter: parameter(),
            found: delta.rows(),
            expected: rows,
        });
    }
    let found = match delta.columns() {
        Columns::U16(_) => "U16",
        Columns::U32(_) => "U32",
    };
    let narrow = columns <= MAX_U16_COLUMNS;
    let expected = if narrow { "U16" } else { "U32" };
    if found != expected {
        return Err(TicketError::ColumnWidth {
            parameter: parameter(),
            found,
            expected,
            columns,
        });
    }
    match delta.rightmost() {
        Some((row, column)) if column as usize >= columns => Err(TicketError::ColumnOutOfRange {
            parameter: parameter(),
            row,
            column,
            columns,
        }),
        _ => Ok(()),
    }
}
