//! Rows of a matrix by index, widened to f32.

use candle_core::{DType, Result};

use super::launch::Launch;
use super::view::{NewTensor, View};
use crate::kernels::cuda::{Input, Output};
use crate::kernels::gather_rows::check;
use crate::kernels::step::indices::Indices;

/// [`gather_rows`](crate::kernels::gather_rows::gather_rows).
pub fn gather_rows(from: Input, ids: &Indices) -> Result<Output> {
    let width = check(ids, from.1)?;
    let (rows, device) = (ids.host().len(), &from.0.device);
    let mut to = NewTensor::new(device, DType::F32, (rows, width))?;
    let from = View::new(from)?;
    let launch = Launch::new(device, "gather_rows", from.dtype())?
        .write(&to.write()?)
        .read(&from)
        .u64(ids.on_gpu()?.pointer()?)
        .size(width)?;
    // SAFETY: gather_rows' arguments; every index is a row of the matrix (checked).
    unsafe { launch.run_rows(rows) }?;
    Ok(to.into_output())
}
