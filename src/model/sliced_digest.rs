//! Digest of the resident parameters in small pieces, so that it can be computed between steps.

use candle_core::Result;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use super::resident::Resident;
use crate::kernels::weight::Weight;
use crate::ticket::Digest;

/// Values hashed at once: about a millisecond.
const PIECE: usize = 1 << 16;

/// Digest of the resident parameters as far as it has been computed.
#[derive(Debug, Default)]
pub struct SlicedDigest {
    /// One per parameter, in the order of the names.
    parameters: Vec<ParameterDigest>,
}

/// Digest of the first `rows` rows of a parameter.
#[derive(Clone, Debug, Default)]
struct ParameterDigest {
    hasher: Sha256,
    rows: usize,
}

impl SlicedDigest {
    /// Hashes the next piece of as many parameters as there are threads. Returns the digest, equal
    /// to [`Resident::digest`], once all are hashed. The same values have to be resident in all
    /// calls: those of the bare base.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn advance(
        &mut self,
        resident: &Resident,
    ) -> std::result::Result<Option<Digest>, ModelError> {
        let weights = resident.parameters().values();
        self.parameters.resize_with(weights.len(), Default::default);
        let pairs = self.parameters.iter_mut().zip(weights);
        let unfinished = pairs.filter(|(digest, weight)| digest.rows < weight.rows());
        let work: Vec<_> = unfinished.take(rayon::current_num_threads()).collect();
        if work.is_empty() {
            let mut all = Sha256::new();
            for parameter in std::mem::take(&mut self.parameters) {
                all.update(parameter.hasher.finalize());
            }
            return Ok(Some(Digest(all.finalize().into())));
        }
        let hashed: Result<()> = work
            .into_par_iter()
            .map(|(digest, weight)| digest.advance(weight))
            .collect();
        hashed?;
        Ok(None)
    }
}

impl ParameterDigest {
    /// Hashes the next piece.
    fn advance(&mut self, weight: &Weight) -> Result<()> {
        let rows = (PIECE / weight.row_len().max(1)).max(1);
        let end = weight.rows().min(self.rows + rows);
        weight.hash_rows(&mut self.hasher, self.rows..end)?;
        self.rows = end;
        Ok(())
    }
}
