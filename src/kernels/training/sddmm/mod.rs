//! Trained positions of a weight: their gradient by a sampled dense-dense product (SDDMM), which
//! never computes the dense gradient, and reads and writes of their values.

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Tensor,
};

use super::pattern::Pattern;
use crate::kernels::cpu::element::{Element, elements, elements_mut, with_element};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch, sum_lanes};
use crate::kernels::cuda;

/// Adds to `gradient` `[nonzeros]` the weight gradient `Σ_t dy[t, r]·x[t, c]` at the pattern's
/// positions `(r, c)`, for `x` `[rows, in]` and `dy` `[rows, out]`.
///
/// # Errors
/// The shapes do not fit the pattern.
pub fn add_sddmm_gradient(
    gradient: &Tensor,
    pattern: &Pattern,
    x: &Tensor,
    dy: &Tensor,
) -> Result<()> {
    gradient.inplace_op3(x, dy, &SddmmGradient { pattern })
}

/// Values of the weight at the pattern's positions, `[nonzeros]`, widened to f32.
///
/// # Errors
/// The weight does not have the pattern's shape.
pub fn gather(weight: &Tensor, pattern: &Pattern) -> Result<Tensor> {
    let values = Mutex::new(Vec::new());
    weight.inplace_op1(&Gather {
        pattern,
        values: &values,
    })?;
    let values = values.into_inner().expect("no thread panicked");
    Tensor::from_vec(values, pattern.nonzeros(), weight.device())
}

/// Writes `values` `[nonzeros]`, rounded to the weight's dtype, at the pattern's positions.
///
/// # Errors
/// The shapes do not fit the pattern.
pub fn set(weight: &Tensor, pattern: &Pattern, values: &Tensor) -> Result<()> {
    weight.inplace_op2(values, &Set { pattern })
}

/// Checks that a matrix has the pattern's shape.
pub(in crate::kernels) fn check(pattern: &Pattern, layout: &Layout) -> Result<()> {
    let (rows, width) = layout.shape().dims2()?;
    if (pattern.rows(), pattern.width()) != (rows, width) {
        let (height, across) = (pattern.rows(), pattern.width());
        candle_core::bail!(
            "sddmm: a pattern [{height}, {across}] does not fit a matrix [{rows}, {width}]"
        );
    }
    Ok(())
}

struct Gather<'a> {
    pattern: &'a Pattern,
    values: &'a Mutex<Vec<f32>>,
}

impl InplaceOp1 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, weight: &mut CpuStorage, layout: &Layout) -> Result<()> {
        check(self.pattern, layout)?;
        let values = with_element!(weight, T => {
            let weight = elements::<T>(weight, layout)?;
            self.pattern.flat().map(|i| weight[i].widen()).collect()
        });
        *self.values.lock().expect("no thread panicked") = values;
        Ok(())
    }

    fn cuda_fwd(&self, weight: &mut CudaStorage, weight_layout: &Layout) -> Result<()> {
        let values = cuda::gather_positions((weight, weight_layout), self.pattern)?;
        *self.values.lock().expect("no thread panicked") = values;
        Ok(())
    }
}

struct Set<'a> {
    pattern: &'a Pattern,
}

impl InplaceOp2 for Set<'_> {
    fn name(&self) -> &'static str {
        "set"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        check(self.pattern, layout)?;
        let values = elements::<f32>(values, values_layout)?;
        check_values(self.pattern, values_layout)?;
        with_element!(weight, T => {
            let weight = elements_mut::<T>(weight, layout)?;
            for (position, value) in self.pattern.flat().zip(values) {
                // Qualified: `f32::round` would round to integers.
                weight[position] = <T as Element>::round(*value);
            }
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        weight: &mut CudaStorage,
        weight_layout: &Layout,
        values: &CudaStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        cuda::set_positions(
            (weight, weight_layout),
            (values, values_layout),
            self.pattern,
        )
    }
}

/// Checks that there is one value per position.
pub(in crate::kernels) fn check_values(pattern: &Pattern, values: &Layout) -> Result<()> {
    let (values, nonzeros) = (values.shape().elem_count(), pattern.nonzeros());
    if values != nonzeros {
        candle_core::bail!("sddmm: {nonzeros} positions need as many values, got {values}");
    }
    Ok(())
}

struct SddmmGradient<'a> {
    pattern: &'a Pattern,
}

impl InplaceOp3 for SddmmGradient<'_> {
    fn name(&self) -> &'static str {
        "sddmm-gradient"
    }

    fn cpu_fwd(
        &self,
        gradient: &mut CpuStorage,
        gradient_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<()> {
        let pattern = self.pattern;
        let [rows, width] = check_gradient(pattern, gradient_layout, x_layout, dy_layout)?;
        let gradient = elements_mut::<f32>(gradient, gradient_layout)?;
        let (x, dy) = (
            elements::<f32>(x, x_layout)?,
            elements::<f32>(dy, dy_layout)?,
        );
        let tile = tile(width);
        for start in (0..rows).step_by(tile) {
            let end = (start + tile).min(rows);
            let x = Columns::new(&x[start * width..end * width], width);
            let dy = Columns::new(
                &dy[start * pattern.rows()..end * pattern.rows()],
                pattern.rows(),
            );
            add_tile(gradient, pattern, &x, &dy);
        }
        Ok(())
    }

    fn cuda_fwd(
        &self,
        gradient: &mut CudaStorage,
        gradient_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<()> {
        let gradient = (gradient, gradient_layout);
        cuda::add_sddmm_gradient(gradient, self.pattern, (x, x_layout), (dy, dy_layout))
    }
}

/// Checks that all shapes fit the pattern, and returns the shape of `x`.
pub(in crate::kernels) fn check_gradient(
    pattern: &Pattern,
    gradient: &Layout,
    x: &Layout,
    dy: &Layout,
) -> Result<[usize; 2]> {
    let (rows, width) = x.shape().dims2()?;
    let fits = width == pattern.width() && dy.shape().dims() == [rows, pattern.rows()];
    if !fits || gradient.shape().elem_count() != pattern.nonzeros() {
        let (x, dy) = (x.shape(), dy.shape());
        candle_core::bail!("sddmm gradient: x {x:?} and dy {dy:?} do not fit the pattern");
    }
    Ok([rows, width])
}

/// Rows of activations per tile: few enough that all columns of `x` stay in the L2 cache, because
/// access to them is random.
fn tile(width: usize) -> usize {
    const VALUES: usize = 160 << 10;
    (VALUES / width.max(1))
        .next_multiple_of(LANES)
        .clamp(64, 512)
}

/// Matrix in column-major order, with columns zero-padded to whole vectors: the gradient of a
/// position is the dot product of two contiguous slices.
struct Columns {
    values: Vec<f32>,
    height: usize,
}

impl Columns {
    fn new(matrix: &[f32], width: usize) -> Self {
        let rows = matrix.len() / width;
        let height = rows.next_multiple_of(LANES);
        let mut values = vec![0f32; width * height];
        {
            let out = Scattered::new(&mut values);
            for_each_range(width, LANES, |columns| {
                // SAFETY: ranges of columns do not overlap.
                let out = unsafe { out.slice(columns.start * height..columns.end * height) };
                for (row, values) in matrix.chunks_exact(width).enumerate() {
                    for (i, value) in values[columns.clone()].iter().enumerate() {
                        out[i * height + row] = *value;
                    }
                }
            });
        }
        Self { values, height }
    }

    #[inline(always)]
    fn column(&self, index: usize) -> &[f32] {
        &self.values[index * self.height..(index + 1) * self.height]
    }
}

fn add_tile(gradient: &mut [f32], pattern: &Pattern, x: &Columns, dy: &Columns) {
    let offsets = pattern.row_offsets();
    let gradient = Scattered::new(gradient);
    for_each_range(pattern.rows(), 8, |rows| {
        let nonzeros = offsets[rows.start] as usize..offsets[rows.end] as usize;
        // SAFETY: ranges of rows do not overlap, so neither do their nonzeros.
        let gradient = unsafe { gradient.slice(nonzeros.clone()) };
        dispatch(Rows {
            offsets: &offsets[rows.start..=rows.end],
            columns: &pattern.columns()[nonzeros],
            first: rows.start,
            x,
            dy,
            gradient,
        });
    });
}

/// Gradient update of consecutive rows of a pattern, for one tile of activations.
struct Rows<'a> {
    offsets: &'a [u32],
    columns: &'a [u32],
    first: usize,
    x: &'a Columns,
    dy: &'a Columns,
    gradient: &'a mut [f32],
}

impl Vectorised for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        /// Positions of a row per load of `dy`.
        const AT_ONCE: usize = 4;
        let base = self.offsets[0] as usize;
        for (row, bounds) in self.offsets.windows(2).enumerate() {
            let nonzeros = bounds[0] as usize - base..bounds[1] as usize - base;
            if nonzeros.is_empty() {
                continue;
            }
            let dy = self.dy.column(self.first + row);
            let columns = self.columns[nonzeros.clone()].chunks(AT_ONCE);
            for (columns, gradient) in columns.zip(self.gradient[nonzeros].chunks_mut(AT_ONCE)) {
                if let ([a, b, c, d], [ga, gb, gc, gd]) = (columns, &mut *gradient) {
                    let x = [a, b, c, d].map(|&column| self.x.column(column as usize));
                    let sums = dots::<A, AT_ONCE>(dy, x);
                    for (g, sum) in [ga, gb, gc, gd].into_iter().zip(sums) {
                        *g += sum;
                    }
                    continue;
                }
                for (&column, g) in columns.iter().zip(gradient) {
                    *g += dots::<A, 1>(dy, [self.x.column(column as usize)])[0];
                }
            }
        }
    }
}

/// `N` dot products with the same vector `y`, each summed in the same order for any `N`.
#[inline(always)]
fn dots<A: Arithmetic, const N: usize>(y: &[f32], x: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0f32; LANES]; N];
    let x = x.map(|x| &x[..y.len()]);
    for start in (0..y.len() / LANES * LANES).step_by(LANES) {
        let y: &[f32; LANES] = y[start..start + LANES].try_into().expect("LANES values");
        for n in 0..N {
            let x: &[f32; LANES] = x[n][start..start + LANES].try_into().expect("LANES values");
            for l in 0..LANES {
                sums[n][l] = A::mul_add(x[l], y[l], sums[n][l]);
            }
        }
    }
    sums.map(sum_lanes)
}

#[cfg(test)]
mod tests;
