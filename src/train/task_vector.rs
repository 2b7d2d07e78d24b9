//! The task vector of a tuned model: its weights minus those of the base. A ticket holds the part
//! of it that the mask keeps.

use candle_core::{Result, Tensor};

use crate::ticket::{DeltaDtype, Deltas, TensorDelta, TicketError};

/// `tuned − base` of one parameter, row-major; both tensors are in f32. It takes them by value to
/// keep no more than three copies of a parameter in memory.
pub fn difference(tuned: Tensor, base: Tensor) -> Result<Vec<f32>> {
    let mut values = tuned.flatten_all()?.to_vec1::<f32>()?;
    drop(tuned);
    let base = base.flatten_all()?.to_vec1::<f32>()?;
    values.iter_mut().zip(base).for_each(|(v, base)| *v -= base);
    Ok(values)
}

/// `|tuned − base|` of one parameter, by which a mask ranks its weights.
pub fn distance(tuned: Tensor, base: Tensor) -> Result<Vec<f32>> {
    let mut distances = difference(tuned, base)?;
    distances.iter_mut().for_each(|d| *d = d.abs());
    Ok(distances)
}

/// The deltas of one parameter at the flat, strictly increasing `positions`, rounded to `dtype`.
///
/// # Errors
/// The deltas are not finite, or the positions do not fit the shape.
pub fn delta(
    parameter: &str,
    shape: [usize; 2],
    positions: &[usize],
    deltas: Vec<f32>,
    dtype: DeltaDtype,
) -> std::result::Result<TensorDelta, TicketError> {
    let deltas = Deltas::from_f32(deltas, dtype);
    TensorDelta::from_flat(shape, positions, deltas).map_err(|fault| TicketError::Delta {
        parameter: parameter.to_owned(),
        fault,
    })
}
