//! The trained positions of a matrix: their gradient (SDDMM), and their values, read and written.

use candle_core::DType::F32;
use candle_core::Result;
use candle_core::cuda::CudaDevice;

use crate::kernels::cuda::present::launch::{Launch, THREADS, WARP};
use crate::kernels::cuda::present::to_u32;
use crate::kernels::cuda::present::view::{NewTensor, View, ViewMut};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::training::pattern::Pattern;
use crate::kernels::training::sddmm::{check, check_gradient, check_values};

/// [`gather`](crate::kernels::training::sddmm::gather) of a matrix in f32, to the host.
pub fn gather_positions(matrix: Input, pattern: &Pattern) -> Result<Vec<f32>> {
    check(pattern, matrix.1)?;
    let device = &matrix.0.device;
    let on_gpu = pattern.on_gpu(device)?;
    let mut values = NewTensor::new(device, F32, pattern.nonzeros())?;
    let launch = Launch::single(device, "gather_positions")?
        .write(&values.write()?)
        .read(&View::new(matrix)?.of_dtype(F32)?);
    let launch = on_gpu
        .append(launch)
        .size(pattern.rows())?
        .size(pattern.width())?;
    // SAFETY: gather_positions' arguments; the positions lie in the matrix (checked).
    unsafe { on_gpu.run(launch) }?;
    values.to_vec()
}

/// [`set`](crate::kernels::training::sddmm::set) of a matrix in f32.
pub fn set_positions(matrix: InOut, values: Input, pattern: &Pattern) -> Result<()> {
    check(pattern, matrix.1)?;
    check_values(pattern, values.1)?;
    let device = matrix.0.device.clone();
    let on_gpu = pattern.on_gpu(&device)?;
    let launch = Launch::single(&device, "set_positions")?
        .write(&ViewMut::new(matrix)?.of_dtype(F32)?)
        .read(&View::new(values)?.of_dtype(F32)?);
    let launch = on_gpu
        .append(launch)
        .size(pattern.rows())?
        .size(pattern.width())?;
    // SAFETY: set_positions' arguments; the positions lie in the matrix and each has a value
    // (checked).
    unsafe { on_gpu.run(launch) }
}

/// [`add_sddmm_gradient`](crate::kernels::training::sddmm::add_sddmm_gradient).
pub fn add_sddmm_gradient(gradient: InOut, pattern: &Pattern, x: Input, dy: Input) -> Result<()> {
    let [rows, width] = check_gradient(pattern, gradient.1, x.1, dy.1)?;
    let device = gradient.0.device.clone();
    let gradient = ViewMut::new(gradient)?.of_dtype(F32)?;
    let on_gpu = pattern.on_gpu(&device)?;
    // SAFETY: a matrix of that shape (checked).
    let x = unsafe { transposed(&device, View::new(x)?, [rows, width]) }?;
    // SAFETY: as above.
    let dy = unsafe { transposed(&device, View::new(dy)?, [rows, pattern.rows()]) }?;
    let launch = Launch::single(&device, "sddmm_gradient")?.write(&gradient);
    let launch = on_gpu
        .append(launch)
        .read(&x.read()?)
        .read(&dy.read()?)
        .size(pattern.rows())?
        .size(rows)?;
    // SAFETY: sddmm_gradient's arguments; the positions lie in [out, width] and each has a gradient
    // (checked).
    unsafe { on_gpu.run(launch) }
}

/// The transpose of a matrix `[rows, columns]` in f32.
///
/// # Safety
/// The matrix has that shape.
unsafe fn transposed(
    device: &CudaDevice,
    matrix: View,
    [rows, columns]: [usize; 2],
) -> Result<NewTensor> {
    let mut result = NewTensor::new(device, F32, (columns, rows))?;
    let launch = Launch::single(device, "transpose")?
        .write(&result.write()?)
        .read(&matrix.of_dtype(F32)?)
        .size(rows)?
        .size(columns)?;
    let tiles = |n: usize| to_u32(n.div_ceil(WARP as usize));
    let grid = [tiles(columns)?, tiles(rows)?, 1];
    // SAFETY: transpose's arguments; both matrices have that many values.
    unsafe { launch.run(grid, THREADS, 0) }?;
    Ok(result)
}
