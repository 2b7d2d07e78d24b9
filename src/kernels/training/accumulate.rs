//! In-place accumulation: of gradients within a step, and of scores over steps.

use candle_core::{CpuStorage, CudaStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor};

use crate::kernels::cpu::element::{elements, elements_mut};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cuda;

/// Minimum values per range of a thread.
const GRAIN: usize = 1 << 14;

/// Sets all values to zero.
pub fn clear(target: &Tensor) -> Result<()> {
    target.inplace_op1(&Clear)
}

/// `target += values`, for tensors of equal shape.
pub fn add(target: &Tensor, values: &Tensor) -> Result<()> {
    target.inplace_op2(values, &Add { absolute: false })
}

/// `target += |values|`, for tensors of equal shape.
pub fn add_absolute(target: &Tensor, values: &Tensor) -> Result<()> {
    target.inplace_op2(values, &Add { absolute: true })
}

/// `target[rows[i]] += values[i]`, for `target` `[n, width]` and `values` `[rows, width]`. `rows`
/// may contain duplicates.
pub fn add_rows(target: &Tensor, rows: &[u32], values: &Tensor) -> Result<()> {
    target.inplace_op2(values, &AddRows { rows })
}

struct Clear;

impl InplaceOp1 for Clear {
    fn name(&self) -> &'static str {
        "clear"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let target = elements_mut::<f32>(target, layout)?;
        let len = target.len();
        let target = Scattered::new(target);
        for_each_range(len, GRAIN, |range| {
            // SAFETY: ranges do not overlap.
            unsafe { target.slice(range) }.fill(0.0);
        });
        Ok(())
    }

    fn cuda_fwd(&self, target: &mut CudaStorage, target_layout: &Layout) -> Result<()> {
        cuda::clear((target, target_layout))
    }
}

struct Add {
    absolute: bool,
}

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        check(layout, values_layout)?;
        let values = elements::<f32>(values, values_layout)?;
        let target = Scattered::new(elements_mut::<f32>(target, layout)?);
        for_each_range(values.len(), GRAIN, |range| {
            // SAFETY: ranges do not overlap.
            let target = unsafe { target.slice(range.clone()) };
            for (target, value) in target.iter_mut().zip(&values[range]) {
                *target += if self.absolute { value.abs() } else { *value };
            }
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_layout: &Layout,
        values: &CudaStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        cuda::accumulate(
            (target, target_layout),
            (values, values_layout),
            self.absolute,
        )
    }
}

/// Checks that both have the same shape.
pub(in crate::kernels) fn check(target: &Layout, values: &Layout) -> Result<()> {
    if target.shape() != values.shape() {
        let (target, values) = (target.shape(), values.shape());
        candle_core::bail!(
            "accumulate: shapes do not match: {values:?} cannot be added to {target:?}"
        );
    }
    Ok(())
}

struct AddRows<'a> {
    rows: &'a [u32],
}

impl InplaceOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "accumulate-rows"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        let width = check_rows(self.rows, layout, values_layout)?;
        let values = elements::<f32>(values, values_layout)?;
        let target = elements_mut::<f32>(target, layout)?;
        for (&row, values) in self.rows.iter().zip(values.chunks_exact(width)) {
            let target = &mut target[row as usize * width..][..width];
            for (target, value) in target.iter_mut().zip(values) {
                *target += value;
            }
        }
        Ok(())
    }

    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_layout: &Layout,
        values: &CudaStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        cuda::accumulate_rows((target, target_layout), self.rows, (values, values_layout))
    }
}

/// Checks the rows and the shape of the values, and returns the width of the target.
pub(in crate::kernels) fn check_rows(
    rows: &[u32],
    target: &Layout,
    values: &Layout,
) -> Result<usize> {
    let (n, width) = target.shape().dims2()?;
    let inside = rows.iter().all(|&row| (row as usize) < n);
    if values.shape().dims() != [rows.len(), width] || !inside {
        let (values, rows) = (values.shape(), rows.len());
        candle_core::bail!(
            "accumulate: {rows} rows of {values:?} cannot be added to [{n}, {width}]"
        );
    }
    Ok(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor<const N: usize>(values: &[[f32; 2]; N]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn sums_accumulate_in_place() {
        let sum = tensor(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        let view = sum.narrow(0, 1, 2).unwrap();
        add(&view, &tensor(&[[1.0, -1.0], [0.5, 0.0]])).unwrap();
        add_absolute(&view, &tensor(&[[-2.0, 0.0], [1.0, -1.0]])).unwrap();
        add_rows(
            &sum,
            &[0, 2, 0],
            &tensor(&[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]),
        )
        .unwrap();
        let got: Vec<Vec<f32>> = sum.to_vec2().unwrap();
        assert_eq!(got, [[6.0, 7.0], [6.0, 3.0], [8.5, 9.0]]);
        clear(&view).unwrap();
        let got: Vec<Vec<f32>> = sum.to_vec2().unwrap();
        assert_eq!(got, [[6.0, 7.0], [0.0, 0.0], [0.0, 0.0]]);
    }

    #[test]
    fn shapes_and_rows_that_do_not_fit_are_refused() {
        let sum = tensor(&[[1.0, 2.0]]);
        assert!(add(&sum, &tensor(&[[1.0, 2.0], [1.0, 2.0]])).is_err());
        assert!(add_rows(&sum, &[1], &tensor(&[[1.0, 2.0]])).is_err());
    }
}
