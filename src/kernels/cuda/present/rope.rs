//! Rotary position embedding, in place.

use candle_core::{DType, Result, Tensor};

use super::launch::Launch;
use super::view::{View, ViewMut, with_storage};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::rope::{HeadNorms, check};

/// [`rotate`](crate::kernels::rope::rotate): angles are in f32, norms in the heads' dtype.
pub fn rotate(heads: InOut, [cos, sin]: [Input; 2], norms: Option<&HeadNorms>) -> Result<()> {
    let [rows, count, dim] = check(heads.1, [cos.1, sin.1], norms)?;
    let device = heads.0.device.clone();
    let (heads, stride) = ViewMut::rows(heads)?;
    let launch = Launch::new(&device, "rotate", heads.dtype())?
        .write(&heads)
        .u64(stride as u64)
        .read(&View::new(cos)?.of_dtype(DType::F32)?)
        .read(&View::new(sin)?.of_dtype(DType::F32)?);
    let launch = match norms {
        None => launch.null().null().u32(0).f32(0.0),
        Some(norms) => launch
            .u64(norm_pointer(norms.queries, heads.dtype())?)
            .u64(norm_pointer(norms.keys, heads.dtype())?)
            .size(norms.query_heads)?
            .f32(norms.eps),
    };
    let launch = launch.size(count)?.size(dim)?;
    // SAFETY: rotate's arguments; rows, heads, angles and norms have the shapes that were checked,
    // and the caller holds the norms' tensors until after the launch.
    unsafe { launch.run_rows(rows) }
}

/// Device address of a norm's weight.
fn norm_pointer(weight: &Tensor, dtype: DType) -> Result<u64> {
    with_storage(weight, |weight| {
        Ok(View::new(weight)?.of_dtype(dtype)?.pointer())
    })
}
