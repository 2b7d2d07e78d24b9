//! Dense f32 matrix products by the `gemm` crate. Unlike candle's product they can write into a
//! part of a larger matrix, and add to the values that are there.

use std::marker::PhantomData;

use candle_core::{CpuStorage, CudaStorage, InplaceOp3, Layout, Result, Tensor};
use gemm::Parallelism;

use super::element::{elements, elements_mut};
use super::parallel::Scattered;
use crate::kernels::cuda;

/// A strided matrix in a slice: element `(r, c)` is at `r · row_stride + c · column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix of contiguous rows, `row_stride` apart, that starts at the start of `values`.
    ///
    /// # Panics
    /// If the matrix does not lie within `values`.
    pub fn new(values: &'a [f32], [rows, columns]: [usize; 2], row_stride: usize) -> Self {
        assert!(extent(rows, columns, row_stride) <= values.len());
        Self {
            values,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose, as a view of the same values.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A mutable matrix of contiguous rows, `row_stride` apart.
pub struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    values: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// A matrix of rows `row_stride` apart that starts at the start of `values`.
    ///
    /// # Panics
    /// If the matrix does not lie within `values`.
    pub fn new(
        values: &'a mut [f32],
        [rows, columns]: [usize; 2],
        row_stride: usize,
    ) -> MatrixMut<'a> {
        assert!(extent(rows, columns, row_stride) <= values.len());
        Self {
            start: values.as_mut_ptr(),
            rows,
            columns,
            row_stride,
            values: PhantomData,
        }
    }

    /// Like [`Self::new`], from element `start` of a slice that other threads write elsewhere.
    ///
    /// # Safety
    /// No other code may access the elements of the matrix during its lifetime.
    ///
    /// # Panics
    /// If the matrix does not lie within the slice.
    pub unsafe fn scattered(
        values: &'a Scattered<'_, f32>,
        start: usize,
        [rows, columns]: [usize; 2],
        row_stride: usize,
    ) -> MatrixMut<'a> {
        let extent = extent(rows, columns, row_stride);
        Self {
            start: values.pointer(start..start + extent),
            rows,
            columns,
            row_stride,
            values: PhantomData,
        }
    }
}

/// Number of elements from the first to the last of a matrix, inclusive.
fn extent(rows: usize, columns: usize, row_stride: usize) -> usize {
    assert!(columns <= row_stride || rows <= 1, "rows overlap");
    match rows {
        0 => 0,
        _ => (rows - 1) * row_stride + columns,
    }
}

/// What a product does with the values of its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Overwrites them.
    Replace,
    /// Adds to them.
    Add,
}

/// Number of threads that a product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread only.
    One,
    /// All threads of the rayon pool that it runs in.
    All,
}

/// `y = scale·a·b`, or `y += scale·a·b`.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply(y: &mut MatrixMut, write: Write, scale: f32, a: Matrix, b: Matrix, on: Threads) {
    assert!(a.rows == y.rows && a.columns == b.rows && b.columns == y.columns);
    let parallelism = match on {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: every element that the strides reach lies within the slices that the three matrices
    // were made from (checked by their constructors), and `y` is borrowed mutably, so it overlaps
    // neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            y.rows,
            y.columns,
            a.columns,
            y.start,
            1,
            y.row_stride as isize,
            write == Write::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Adds `dyᵀ·x` to the gradient `[out, in]` of a weight, for `dy` `[rows, out]` and `x`
/// `[rows, in]`.
///
/// # Errors
/// The shapes do not fit, or a tensor is not contiguous f32.
pub fn add_weight_gradient(gradient: &Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    gradient.inplace_op3(dy, x, &AddWeightGradient)
}

struct AddWeightGradient;

impl InplaceOp3 for AddWeightGradient {
    fn name(&self) -> &'static str {
        "add-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        gradient: &mut CpuStorage,
        gradient_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let [rows, inner, out] = check(gradient_layout, dy_layout, x_layout)?;
        let mut y = MatrixMut::new(
            elements_mut::<f32>(gradient, gradient_layout)?,
            [out, inner],
            inner,
        );
        let dy = Matrix::new(elements(dy, dy_layout)?, [rows, out], out).t();
        let x = Matrix::new(elements(x, x_layout)?, [rows, inner], inner);
        multiply(&mut y, Write::Add, 1.0, dy, x, Threads::All);
        Ok(())
    }

    fn cuda_fwd(
        &self,
        gradient: &mut CudaStorage,
        gradient_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let gradient = (gradient, gradient_layout);
        cuda::add_weight_gradient(gradient, (dy, dy_layout), (x, x_layout))
    }
}

/// Checks that the factors fit the gradient and returns `[rows, in, out]`.
pub(in crate::kernels) fn check(gradient: &Layout, dy: &Layout, x: &Layout) -> Result<[usize; 3]> {
    let (out, inner) = gradient.shape().dims2()?;
    let (rows, dy_out) = dy.shape().dims2()?;
    if (dy_out, x.shape().dims()) != (out, &[rows, inner]) {
        let (dy, x) = (dy.shape(), x.shape());
        candle_core::bail!("a weight [{out}, {inner}] has no gradient of {dy:?} and {x:?}");
    }
    Ok([rows, inner, out])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use proptest::prelude::*;

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_weight_gradient_is_added(rows in 1usize..40, inner in 1usize..30, out in 1usize..30) {
            let random = |shape| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            let (dy, x) = (random((rows, out)), random((rows, inner)));
            let gradient = random((out, inner));
            let want = (&gradient + dy.t().unwrap().matmul(&x).unwrap()).unwrap();
            add_weight_gradient(&gradient, &dy, &x).unwrap();
            for (got, want) in flat(&gradient).iter().zip(flat(&want)) {
                prop_assert!((got - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }

    #[test]
    fn a_product_writes_its_part_and_nothing_else() {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let a = Matrix::new(&a, [2, 2], 3);
        let b = [1.0, 0.0, 1.0, 1.0];
        let b = Matrix::new(&b, [2, 2], 2);
        let mut y = [7.0; 10];
        {
            let y = Scattered::new(&mut y);
            // SAFETY: only this thread accesses `y`.
            let mut part = unsafe { MatrixMut::scattered(&y, 1, [2, 2], 5) };
            multiply(&mut part, Write::Replace, 2.0, a, b.t(), Threads::One);
        }
        // a·bᵀ = [[1, 3], [3, 7]].
        assert_eq!(y, [7.0, 2.0, 6.0, 7.0, 7.0, 7.0, 6.0, 14.0, 7.0, 7.0]);
    }

    #[test]
    #[should_panic(expected = "extent")]
    fn a_matrix_beyond_its_values_is_refused() {
        Matrix::new(&[0.0; 5], [2, 3], 3);
    }
}
