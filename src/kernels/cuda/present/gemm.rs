//! Dense products with cuBLAS.

use std::ffi::c_void;

use candle_core::cuda::cudarc::cublas::sys::cublasOperation_t as Operation;
use candle_core::cuda::cudarc::cublas::{result, sys};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Result};

use super::launch::count_launch;
use super::view::{View, ViewMut};

/// `y = scale·x·Wᵀ + keep·y`, for contiguous `x` `[rows, inner]` and `W` `[out, inner]` of one
/// dtype, and `y` `[rows, out]` of that dtype or f32. Sums are in f32; only if cuBLAS splits a sum,
/// it may add the partial sums in the result's dtype.
pub struct Product<'a> {
    pub x: View<'a>,
    pub weight: View<'a>,
    pub y: ViewMut<'a>,
    /// `[rows, inner, out]`.
    pub shape: [usize; 3],
    pub scale: f32,
    pub keep: f32,
}

/// Computes a product.
///
/// # Errors
/// cuBLAS refuses it.
///
/// # Safety
/// The matrices have the product's shape.
pub unsafe fn product(device: &CudaDevice, product: &Product) -> Result<()> {
    let [rows, inner, out] = product.shape;
    let Product { x, weight, y, .. } = product;
    // cuBLAS is column-major: its A is our weight, transposed; its B and C are x and y unchanged.
    let call = Gemm {
        shape: [out, rows, inner],
        a: (*weight, Operation::CUBLAS_OP_T, inner),
        b: (*x, Operation::CUBLAS_OP_N, inner),
        scale: product.scale,
        keep: product.keep,
    };
    // SAFETY: the caller's promise.
    unsafe { call.run(device, y) }
}

/// Adds `dyᵀ·x` to `sum` `[out, inner]`, for `[x, dy]`, `[rows, inner]` and `[rows, out]`; `shape`
/// is `[rows, inner, out]`.
///
/// # Errors
/// cuBLAS refuses it.
///
/// # Safety
/// The matrices have that shape.
pub unsafe fn add_transposed_product(
    device: &CudaDevice,
    sum: &ViewMut,
    [x, dy]: [View; 2],
    [rows, inner, out]: [usize; 3],
) -> Result<()> {
    let call = Gemm {
        shape: [inner, out, rows],
        a: (x, Operation::CUBLAS_OP_N, inner),
        b: (dy, Operation::CUBLAS_OP_T, out),
        scale: 1.0,
        keep: 1.0,
    };
    // SAFETY: the caller's promise.
    unsafe { call.run(device, sum) }
}

/// `C = scale·op(A)·op(B) + keep·C` in cuBLAS's terms, all column-major: `[m, k]`, `[k, n]` and
/// `[m, n]`.
struct Gemm<'a> {
    /// `[m, n, k]`.
    shape: [usize; 3],
    /// Matrix, `op`, and leading dimension.
    a: (View<'a>, Operation, usize),
    b: (View<'a>, Operation, usize),
    scale: f32,
    keep: f32,
}

impl Gemm<'_> {
    /// # Safety
    /// The matrices have that shape.
    unsafe fn run(&self, device: &CudaDevice, c: &ViewMut) -> Result<()> {
        let [m, n, k] = self.shape;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let dtype = self.a.0.dtype();
        let b = self.b.0.of_dtype(dtype)?;
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let blas = device.cublas_handle();
        device.cuda_stream().context().bind_to_thread().w()?;
        // SAFETY: the shape is the caller's promise; the scalars are read before the call returns
        // (the handle's pointer mode is the host's).
        unsafe {
            result::gemm_ex(
                *blas.handle(),
                self.a.1,
                self.b.1,
                size(m)?,
                size(n)?,
                size(k)?,
                scalar(&self.scale),
                self.a.0.pointer() as *const c_void,
                data_type(dtype)?,
                size(self.a.2)?,
                b.pointer() as *const c_void,
                data_type(dtype)?,
                size(self.b.2)?,
                scalar(&self.keep),
                c.pointer() as *mut c_void,
                data_type(c.dtype())?,
                size(m)?,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()?;
        count_launch();
        Ok(())
    }
}

/// Converts a size to a cuBLAS argument.
fn size(n: usize) -> Result<i32> {
    match i32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => candle_core::bail!("a matrix dimension of {n} is too large for cuBLAS"),
    }
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        other => candle_core::bail!("cuBLAS products do not support {other:?}"),
    }
}
