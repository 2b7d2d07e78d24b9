//! Apply and revert of a ticket on resident weights, in place.

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, WithDType};

use super::overlay::{DeviceLayout, WeightDeltas};
use crate::kernels::cpu::element::{Column, Element, elements_mut, with_element};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::prefetch;
use crate::kernels::cuda;
use crate::ticket::{Columns, Deltas, TensorDelta};

/// Deltas of a ticket, with the weights that they change.
pub enum SwapTarget<'a> {
    /// Parameter by parameter, on the CPU: each `[out, in]`, possibly a view of a fused weight.
    Parameters(Vec<(&'a Tensor, &'a TensorDelta)>),
    /// All weights at once, on a GPU: the ticket's device layout, and the base's weights by number.
    Weights(&'a DeviceLayout, &'a [Tensor]),
}

/// Whether the device applies tickets by their layout, as [`SwapTarget::Weights`].
pub fn applies_by_layout(device: &Device) -> bool {
    !device.is_cpu()
}

/// Base values that an applied ticket replaced, in the order of its deltas, in the resident dtype.
pub enum Saved {
    /// Values in CPU memory, per parameter.
    Cpu(Vec<CpuStorage>),
    /// Values in GPU memory.
    Gpu(cuda::DeviceSaved),
}

/// Sets `w[r, c] = round(w[r, c] + scale·δ)` at the positions of the deltas, and returns the
/// replaced values.
///
/// # Errors
/// A weight does not have the shape of its deltas. Nothing is written in that case.
///
/// # Panics
/// If a column is outside its weight, which is impossible for a bound ticket.
pub fn apply(target: &SwapTarget, scale: f32) -> Result<Saved> {
    match target {
        SwapTarget::Parameters(parameters) => {
            for (weight, delta) in parameters {
                check(delta, weight.layout())?;
            }
            let saved = parameters.iter().map(|(weight, delta)| {
                let saved = Mutex::new(None);
                weight.inplace_op1(&Apply {
                    delta,
                    scale,
                    saved: &saved,
                })?;
                let saved = saved.into_inner().expect("no thread panicked");
                Ok(saved.expect("the operation ran"))
            });
            Ok(Saved::Cpu(saved.collect::<Result<_>>()?))
        }
        SwapTarget::Weights(DeviceLayout::Gpu(ticket), weights) => {
            Ok(Saved::Gpu(cuda::apply(ticket, weights, scale)?))
        }
        SwapTarget::Weights(DeviceLayout::Cpu(_), _) => {
            candle_core::bail!("apply: the CPU applies tickets parameter by parameter")
        }
    }
}

/// Sets `w[r, c] = round(w[r, c] + scale·δ)` in one parameter, without saving the old values.
///
/// # Errors
/// As [`apply`].
///
/// # Panics
/// As [`apply`].
pub fn add(weight: &Tensor, delta: &TensorDelta, scale: f32) -> Result<()> {
    if !applies_by_layout(weight.device()) {
        return apply(&SwapTarget::Parameters(vec![(weight, delta)]), scale).map(drop);
    }
    let deltas = WeightDeltas {
        shape: weight.dims2()?.into(),
        parts: vec![(0, delta)],
    };
    let layout = DeviceLayout::new(&[Some(deltas)], weight.device())?;
    let weights = std::slice::from_ref(weight);
    apply(&SwapTarget::Weights(&layout, weights), scale).map(drop)
}

/// Writes the saved values back: the weights are then bit-identical to those before [`apply`].
///
/// # Errors
/// The values were saved from different weights.
pub fn revert(target: &SwapTarget, saved: &Saved) -> Result<()> {
    match (target, saved) {
        (SwapTarget::Parameters(parameters), Saved::Cpu(saved)) => {
            for ((weight, delta), saved) in parameters.iter().zip(saved) {
                weight.inplace_op1(&Revert { delta, saved })?;
            }
            Ok(())
        }
        (SwapTarget::Weights(DeviceLayout::Gpu(ticket), weights), Saved::Gpu(saved)) => {
            cuda::revert(ticket, weights, saved)
        }
        _ => candle_core::bail!("revert: the values were saved on another device"),
    }
}

struct Apply<'a> {
    delta: &'a TensorDelta,
    scale: f32,
    saved: &'a Mutex<Option<CpuStorage>>,
}

impl InplaceOp1 for Apply<'_> {
    fn name(&self) -> &'static str {
        "ticket-apply"
    }

    fn cpu_fwd(&self, weight: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let inner = check(self.delta, layout)?;
        let saved = with_element!(weight, T => {
            let weight = elements_mut::<T>(weight, layout)?;
            T::to_cpu_storage_owned(apply_any(weight, inner, self.delta, self.scale))
        });
        *self.saved.lock().expect("no thread panicked") = Some(saved);
        Ok(())
    }
}

struct Revert<'a> {
    delta: &'a TensorDelta,
    saved: &'a CpuStorage,
}

impl InplaceOp1 for Revert<'_> {
    fn name(&self) -> &'static str {
        "ticket-revert"
    }

    fn cpu_fwd(&self, weight: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let inner = check(self.delta, layout)?;
        with_element!(weight, T => {
            let saved = self.saved.as_slice::<T>()?;
            if saved.len() != self.delta.nonzeros() {
                let nonzeros = self.delta.nonzeros();
                candle_core::bail!("revert: {} saved values for {nonzeros} deltas", saved.len());
            }
            revert_any(elements_mut::<T>(weight, layout)?, inner, self.delta, saved);
        });
        Ok(())
    }
}

/// Checks that the delta fits the weight, and returns the weight's `in`.
fn check(delta: &TensorDelta, layout: &Layout) -> Result<usize> {
    let (out, inner) = layout.shape().dims2()?;
    if delta.rows() != out {
        candle_core::bail!(
            "a delta of {} rows does not fit a weight [{out}, {inner}]",
            delta.rows()
        );
    }
    Ok(inner)
}

fn apply_any<T: Element>(
    weight: &mut [T],
    inner: usize,
    delta: &TensorDelta,
    scale: f32,
) -> Vec<T> {
    let offsets = delta.row_offsets();
    match (delta.columns(), delta.deltas()) {
        (Columns::U16(c), Deltas::Bf16(d)) => apply_rows(weight, inner, offsets, c, d, scale),
        (Columns::U16(c), Deltas::F32(d)) => apply_rows(weight, inner, offsets, c, d, scale),
        (Columns::U32(c), Deltas::Bf16(d)) => apply_rows(weight, inner, offsets, c, d, scale),
        (Columns::U32(c), Deltas::F32(d)) => apply_rows(weight, inner, offsets, c, d, scale),
    }
}

fn revert_any<T: Element>(weight: &mut [T], inner: usize, delta: &TensorDelta, saved: &[T]) {
    let offsets = delta.row_offsets();
    match delta.columns() {
        Columns::U16(columns) => revert_rows(weight, inner, offsets, columns, saved),
        Columns::U32(columns) => revert_rows(weight, inner, offsets, columns, saved),
    }
}

/// Minimum rows per range of a thread: below about `NONZEROS`, a fork costs more than it saves.
fn grain(offsets: &[u32], nonzeros: usize) -> usize {
    const NONZEROS: usize = 2048;
    let rows = offsets.len() - 1;
    (rows * NONZEROS).div_ceil(nonzeros.max(1)).max(1)
}

/// Prefetch distance in rows. At densities of about 0.3 % to 5 %, nearly every nonzero is a cache
/// miss, and most of the time is spent waiting for memory. Below, prefetching costs more than it
/// saves; above, the cache lines are close enough to each other without it.
fn rows_ahead(offsets: &[u32], nonzeros: usize) -> Option<usize> {
    let rows = offsets.len() - 1;
    let per_row = nonzeros / rows.max(1);
    (2..40).contains(&per_row).then(|| 64 / per_row)
}

fn apply_rows<T: Element, C: Column, D: Element>(
    weight: &mut [T],
    inner: usize,
    offsets: &[u32],
    columns: &[C],
    deltas: &[D],
    scale: f32,
) -> Vec<T> {
    let mut saved = vec![T::default(); columns.len()];
    let ahead = rows_ahead(offsets, columns.len());
    let (weight, saved_values) = (Scattered::new(weight), Scattered::new(&mut saved));
    for_each_range(offsets.len() - 1, grain(offsets, columns.len()), |rows| {
        let nonzeros = offsets[rows.start] as usize..offsets[rows.end] as usize;
        // SAFETY: ranges of rows do not overlap, so neither do their weights and nonzeros.
        let weight = unsafe { weight.slice(rows.start * inner..rows.end * inner) };
        // SAFETY: as above.
        let saved = unsafe { saved_values.slice(nonzeros.clone()) };
        let mut saved = saved.iter_mut();
        for row in rows.clone() {
            if let Some(later) = ahead.map(|ahead| row + ahead).filter(|row| *row < rows.end) {
                let start = (later - rows.start) * inner;
                for column in &columns[offsets[later] as usize..offsets[later + 1] as usize] {
                    prefetch(weight, start + column.index());
                }
            }
            let start = (row - rows.start) * inner;
            let weight = &mut weight[start..start + inner];
            let nonzeros = offsets[row] as usize..offsets[row + 1] as usize;
            let positions = columns[nonzeros.clone()].iter().zip(&deltas[nonzeros]);
            for ((column, delta), saved) in positions.zip(&mut saved) {
                let weight = &mut weight[column.index()];
                *saved = *weight;
                *weight = T::round(weight.widen() + scale * delta.widen());
            }
        }
    });
    saved
}

fn revert_rows<T: Element, C: Column>(
    weight: &mut [T],
    inner: usize,
    offsets: &[u32],
    columns: &[C],
    saved: &[T],
) {
    let weight = Scattered::new(weight);
    for_each_range(offsets.len() - 1, grain(offsets, columns.len()), |rows| {
        // SAFETY: ranges of rows do not overlap, so neither do their weights.
        let weight = unsafe { weight.slice(rows.start * inner..rows.end * inner) };
        for row in rows.clone() {
            let start = (row - rows.start) * inner;
            let weight = &mut weight[start..start + inner];
            let nonzeros = offsets[row] as usize..offsets[row + 1] as usize;
            for (column, saved) in columns[nonzeros.clone()].iter().zip(&saved[nonzeros]) {
                weight[column.index()] = *saved;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    /// A delta at the positions where `kept` is set.
    fn delta(shape: [usize; 2], kept: &[bool], half: bool) -> TensorDelta {
        let positions: Vec<usize> = (0..kept.len()).filter(|&i| kept[i]).collect();
        let value = |i: &usize| (i * 37 % 19) as f32 / 8.0 - 1.0;
        let deltas = positions.iter().map(value);
        let deltas = if half {
            Deltas::Bf16(deltas.map(bf16::from_f32).collect())
        } else {
            Deltas::F32(deltas.collect())
        };
        TensorDelta::from_flat(shape, &positions, deltas).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Checks that apply equals the formula at the delta's positions and changes no other value,
    /// even in a view of a larger weight, and that revert restores the bits.
    fn check(dtype: DType, shape: [usize; 2], kept: &[bool], half: bool, scale: f32) {
        let [rows, inner] = shape;
        let fused = Tensor::randn(0f32, 1., (rows + 3, inner), &Device::Cpu).unwrap();
        let fused = fused.to_dtype(dtype).unwrap();
        let before = values(&fused);
        let weight = fused.narrow(0, 2, rows).unwrap();
        let delta = delta(shape, kept, half);
        let mut want = before.clone();
        for (row, column, value) in delta.entries() {
            let at = (row + 2) * inner + column;
            let exact = Tensor::new(want[at] + scale * value, &Device::Cpu).unwrap();
            want[at] = values(&exact.to_dtype(dtype).unwrap())[0];
        }
        let target = SwapTarget::Parameters(vec![(&weight, &delta)]);
        let saved = apply(&target, scale).unwrap();
        assert_eq!(values(&fused), want);
        revert(&target, &saved).unwrap();
        assert_eq!(values(&fused), before);
        add(&weight, &delta, scale).unwrap();
        assert_eq!(values(&fused), want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_formula_and_is_undone(
            (rows, inner) in (1usize..40, 1usize..200),
            density in prop::sample::select(vec![0.0, 0.01, 0.1, 0.5, 1.0]),
            dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
            half in any::<bool>(),
            scale in -2f32..2.0,
            seed in any::<u64>(),
        ) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut kept: Vec<bool> = (0..rows * inner).map(|_| rng.random_bool(density)).collect();
            // The first and the last position.
            kept[0] = true;
            kept[rows * inner - 1] = true;
            check(dtype, [rows, inner], &kept, half, scale);
        }
    }

    #[test]
    fn many_threads_share_a_large_weight() {
        let (rows, inner) = (600, 300);
        let kept: Vec<bool> = (0..rows * inner).map(|i| i % 7 == 0).collect();
        check(DType::BF16, [rows, inner], &kept, true, 0.5);
    }

    #[test]
    fn columns_beyond_65536() {
        let (rows, inner) = (2, 70_000);
        let kept: Vec<bool> = (0..rows * inner).map(|i| i % 9_999 == 0).collect();
        check(DType::F32, [rows, inner], &kept, false, 1.0);
    }

    #[test]
    fn a_delta_with_the_wrong_number_of_rows_writes_nothing() {
        let weight = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
        let delta = delta([2, 4], &[true; 8], false);
        let fitting = self::delta([3, 4], &[true; 12], false);
        let target = SwapTarget::Parameters(vec![(&weight, &fitting), (&weight, &delta)]);
        let error = apply(&target, 1.0).err().unwrap().to_string();
        assert!(error.contains("2 rows"), "{error}");
        assert_eq!(values(&weight), [1.0; 12]);
    }
}
