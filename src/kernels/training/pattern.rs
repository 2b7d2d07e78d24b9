//! Sparsity pattern of a matrix: the positions that are trained.

use std::sync::OnceLock;

use candle_core::{CudaDevice, Result};

use crate::kernels::cuda;

/// Positions of a matrix `[rows, width]` in row-major order, as compressed sparse rows (CSR).
#[derive(Debug)]
pub struct Pattern {
    width: usize,
    row_offsets: Vec<u32>,
    columns: Vec<u32>,
    /// Copy in GPU memory, created on first use.
    on_gpu: OnceLock<cuda::DevicePattern>,
}

impl Pattern {
    /// Pattern of strictly increasing row-major positions, `row · width + column`.
    ///
    /// # Panics
    /// If a position is out of order or outside the matrix, or if a dimension or the number of
    /// positions does not fit 32 bits. Both are impossible for positions from a mask or a checked
    /// ticket.
    pub fn from_flat([rows, width]: [usize; 2], positions: &[usize]) -> Self {
        assert!(u32::try_from(width).is_ok() && u32::try_from(positions.len()).is_ok());
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(positions.last().is_none_or(|&last| last < rows * width));
        let mut row_offsets = vec![0u32; rows + 1];
        for position in positions {
            row_offsets[position / width + 1] += 1;
        }
        for row in 0..rows {
            row_offsets[row + 1] += row_offsets[row];
        }
        let columns = positions.iter().map(|p| (p % width) as u32).collect();
        Self::new(width, row_offsets, columns)
    }

    fn new(width: usize, row_offsets: Vec<u32>, columns: Vec<u32>) -> Self {
        Self {
            width,
            row_offsets,
            columns,
            on_gpu: OnceLock::new(),
        }
    }

    /// Copy of the pattern in GPU memory, created by the first call.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub(in crate::kernels) fn on_gpu(&self, device: &CudaDevice) -> Result<&cuda::DevicePattern> {
        if let Some(on_gpu) = self.on_gpu.get() {
            return Ok(on_gpu);
        }
        let on_gpu = cuda::DevicePattern::new(device, self)?;
        Ok(self.on_gpu.get_or_init(|| on_gpu))
    }

    /// Pattern of matrices of equal width, stacked by rows.
    ///
    /// # Panics
    /// If `parts` is empty, the widths differ, or the number of positions does not fit 32 bits.
    pub fn stack(parts: &[&Self]) -> Self {
        let width = parts[0].width;
        let mut all = Self::new(width, vec![0], Vec::new());
        for part in parts {
            assert_eq!(part.width, width, "stacked matrices have equal widths");
            let start = u32::try_from(all.columns.len()).expect("positions fit 32 bits");
            let offsets = part.row_offsets[1..].iter();
            all.row_offsets.extend(offsets.map(|offset| start + offset));
            all.columns.extend(&part.columns);
        }
        assert!(u32::try_from(all.columns.len()).is_ok());
        all
    }

    /// Number of rows of the matrix.
    pub fn rows(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// Number of columns of the matrix.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of positions.
    pub fn nonzeros(&self) -> usize {
        self.columns.len()
    }

    /// `[rows + 1]`: the positions of row `r` are `row_offsets[r]..row_offsets[r + 1]`.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// `[nonzeros]`: columns below [`Self::width`], strictly increasing within a row.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Positions as `row · width + column`, strictly increasing.
    pub fn flat(&self) -> impl Iterator<Item = usize> + '_ {
        let rows = self.row_offsets.windows(2).enumerate();
        rows.flat_map(move |(row, bounds)| {
            let columns = &self.columns[bounds[0] as usize..bounds[1] as usize];
            columns.iter().map(move |&c| row * self.width + c as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_round_trip_alone_and_stacked() {
        let first = Pattern::from_flat([3, 4], &[0, 3, 9]);
        let second = Pattern::from_flat([2, 4], &[5]);
        assert_eq!(first.row_offsets(), [0, 2, 2, 3]);
        assert_eq!(first.columns(), [0, 3, 1]);
        assert_eq!(first.flat().collect::<Vec<_>>(), [0, 3, 9]);
        let both = Pattern::stack(&[&first, &second]);
        assert_eq!((both.rows(), both.nonzeros()), (5, 4));
        assert_eq!(both.flat().collect::<Vec<_>>(), [0, 3, 9, 12 + 5]);
    }
}
