//! Rows of a matrix by index (embedding lookup), widened to f32.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::cpu::element::{Element, elements, with_element};
use super::cuda;
use super::step::indices::Indices;

/// Rows `from[ids[i]]` of a matrix `[n, width]` in any dtype, as `[ids, width]` in f32.
///
/// # Errors
/// An index is out of range.
pub fn gather_rows(from: &Tensor, ids: &Indices) -> Result<Tensor> {
    from.apply_op1_no_bwd(&GatherRows { ids })
}

struct GatherRows<'a> {
    ids: &'a Indices<'a>,
}

/// Checks the indices, and returns the width of the matrix.
pub(super) fn check(ids: &Indices, layout: &Layout) -> Result<usize> {
    let (n, width) = layout.shape().dims2()?;
    match ids.host().iter().find(|&&id| id as usize >= n) {
        Some(id) => candle_core::bail!("gather-rows: row {id} out of range ({n} rows)"),
        None => Ok(width),
    }
}

impl CustomOp1 for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, from: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = check(self.ids, layout)?;
        let ids = self.ids.host();
        let mut rows = Vec::with_capacity(ids.len() * width);
        with_element!(from, T => {
            let from = elements::<T>(from, layout)?;
            for &id in ids {
                let row = &from[id as usize * width..][..width];
                rows.extend(row.iter().map(|value| value.widen()));
            }
        });
        Ok((CpuStorage::F32(rows), Shape::from((ids.len(), width))))
    }

    fn cuda_fwd(&self, from: &CudaStorage, from_layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::gather_rows((from, from_layout), self.ids)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn rows_are_widened_in_the_order_of_their_ids() {
        let matrix = Tensor::randn(0f32, 1., (7, 5), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let matrix = matrix.to_dtype(dtype).unwrap();
            let ids = Indices::uploaded(&[6, 0, 0, 3], &Device::Cpu).unwrap();
            let got: Vec<Vec<f32>> = gather_rows(&matrix, &ids).unwrap().to_vec2().unwrap();
            let all: Vec<Vec<f32>> = matrix.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
            assert_eq!(got, [6, 0, 0, 3].map(|row: usize| all[row].clone()));
            let beyond = Indices::uploaded(&[7], &Device::Cpu).unwrap();
            let error = gather_rows(&matrix, &beyond).unwrap_err().to_string();
            assert!(error.contains("row 7 out of range (7 rows)"), "{error}");
        }
    }
}
