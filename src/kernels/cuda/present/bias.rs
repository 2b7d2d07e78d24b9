//! In-place addition of a bias.

use candle_core::{DType, Result};

use super::launch::Launch;
use super::view::{View, ViewMut};
use crate::kernels::bias::check;
use crate::kernels::cuda::{InOut, Input};

/// [`add`](crate::kernels::bias::add); `y` is in the bias's dtype or in f32.
pub fn bias_add(y: InOut, bias: Input) -> Result<()> {
    let out = check(y.1, bias.1)?;
    let (count, device) = (y.1.shape().elem_count(), y.0.device.clone());
    let (y, bias) = (ViewMut::new(y)?, View::new(bias)?);
    let (kernel, dtype) = if y.dtype() == bias.dtype() {
        ("bias_add", bias.dtype())
    } else {
        ("bias_add_to_f32", DType::F32)
    };
    let launch = Launch::new(&device, kernel, bias.dtype())?
        .write(&y.of_dtype(dtype)?)
        .read(&bias)
        .size(out)?
        .u64(count as u64);
    // SAFETY: the kernel's arguments; y has rows of as many values as the bias (checked).
    unsafe { launch.run_over(count) }
}
