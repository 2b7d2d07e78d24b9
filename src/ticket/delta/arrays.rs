//! The arrays of a ticket's nonzeros, in the widths that files use.

use std::fmt;

use half::bf16;
use serde::{Deserialize, Serialize};

/// Column of each nonzero, `[nnz]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Columns {
    /// For parameters of at most [`MAX_U16_COLUMNS`](super::MAX_U16_COLUMNS) columns.
    U16(Vec<u16>),
    /// For wider parameters.
    U32(Vec<u32>),
}

/// Delta of each nonzero, `[nnz]`: the value that the ticket adds to the base's weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Deltas {
    /// 2 bytes per delta.
    Bf16(Vec<bf16>),
    /// 4 bytes per delta.
    F32(Vec<f32>),
}

/// Element type of the stored deltas, from the narrowest to the widest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaDtype {
    /// 2 bytes per nonzero; f32 values are rounded to nearest, ties to even.
    #[default]
    Bf16,
    /// 4 bytes per nonzero.
    F32,
}

impl Columns {
    /// The number of nonzeros.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(columns) => columns.len(),
            Self::U32(columns) => columns.len(),
        }
    }

    /// Whether there are no nonzeros.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes per column index.
    pub fn size(&self) -> usize {
        match self {
            Self::U16(_) => size_of::<u16>(),
            Self::U32(_) => size_of::<u32>(),
        }
    }

    /// The column of nonzero `i`.
    ///
    /// # Panics
    /// `i` is not below [`Columns::len`].
    pub fn get(&self, i: usize) -> u32 {
        match self {
            Self::U16(columns) => columns[i].into(),
            Self::U32(columns) => columns[i],
        }
    }
}

impl DeltaDtype {
    /// Bytes per delta.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => size_of::<bf16>(),
            Self::F32 => size_of::<f32>(),
        }
    }
}

impl Deltas {
    /// Converts f32 values to `dtype`.
    pub fn from_f32(values: Vec<f32>, dtype: DeltaDtype) -> Self {
        match dtype {
            DeltaDtype::Bf16 => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            DeltaDtype::F32 => Self::F32(values),
        }
    }

    /// The number of nonzeros.
    pub fn len(&self) -> usize {
        match self {
            Self::Bf16(deltas) => deltas.len(),
            Self::F32(deltas) => deltas.len(),
        }
    }

    /// Whether there are no nonzeros.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The delta of nonzero `i`, widened to f32.
    ///
    /// # Panics
    /// `i` is not below [`Deltas::len`].
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::Bf16(deltas) => deltas[i].to_f32(),
            Self::F32(deltas) => deltas[i],
        }
    }

    /// Element type of the deltas.
    pub fn dtype(&self) -> DeltaDtype {
        match self {
            Self::Bf16(_) => DeltaDtype::Bf16,
            Self::F32(_) => DeltaDtype::F32,
        }
    }

    /// Whether every delta is zero, of either sign.
    pub(in crate::ticket) fn all_zero(&self) -> bool {
        match self {
            Self::Bf16(deltas) => deltas.iter().all(|d| *d == bf16::ZERO),
            Self::F32(deltas) => deltas.iter().all(|d| *d == 0.0),
        }
    }

    /// Index and value of the first delta that is not finite.
    pub(super) fn first_not_finite(&self) -> Option<(usize, f32)> {
        let index = match self {
            Self::Bf16(deltas) => deltas.iter().position(|d| !d.is_finite()),
            Self::F32(deltas) => deltas.iter().position(|d| !d.is_finite()),
        };
        index.map(|index| (index, self.get(index)))
    }
}

impl fmt::Display for DeltaDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}
