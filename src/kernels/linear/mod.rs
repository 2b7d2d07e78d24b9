//! The linear layer: `y = x·Wᵀ + b`. candle has no bf16 product on the CPU, so the CPU kernels are
//! our own.

mod outer;
mod packed;
mod pairs;
mod panel;

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::bias;
use super::cpu::element::{Element, elements, with_element};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{LANES, dispatch, multiplies_pairs};
use super::cuda;
use outer::Outer;
use pairs::Pairs;
use panel::Panel;

/// `x·Wᵀ + b` for activations `x` `[rows, in]` (f32 on the CPU, the dtype of the weight on a GPU),
/// a row-major weight `[out, in]` in f32, bf16 or f16, and a bias `[out]` in the activations'
/// dtype.
///
/// On the CPU the sum over `in` has the same order for any number of rows, so a row's result does
/// not depend on its batch. If the processor has a bf16 dot-product instruction, `x` is rounded to
/// bf16 for bf16 weights. On a GPU, cuBLAS chooses the algorithm by the number of rows.
///
/// # Errors
/// The shapes do not fit, a tensor is not contiguous, or a dtype has no kernel.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Linear { f32_output: false }.run(x, weight, bias)
}

/// Like [`linear`], but returns f32 for activations of any dtype: the result is not yet rounded.
///
/// # Errors
/// Those of [`linear`].
pub fn linear_f32(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Linear { f32_output: true }.run(x, weight, bias)
}

struct Linear {
    /// Whether the result is f32 on a GPU too.
    f32_output: bool,
}

impl Linear {
    fn run(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = x.apply_op2_no_bwd(weight, self)?;
        if let Some(bias) = bias {
            bias::add(&y, bias)?;
        }
        Ok(y)
    }
}

/// Checks the shapes and returns `[rows, in, out]`.
pub(super) fn check(x: &Layout, weight: &Layout) -> Result<[usize; 3]> {
    let (rows, inner) = x.shape().dims2()?;
    let (out, weight_inner) = weight.shape().dims2()?;
    if inner != weight_inner {
        candle_core::bail!("linear: x is [{rows}, {inner}], the weight [{out}, {weight_inner}]");
    }
    Ok([rows, inner, out])
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [rows, inner, out] = check(x_layout, weight_layout)?;
        let x = elements::<f32>(x, x_layout)?;
        let mut y = vec![0f32; rows * out];
        with_element!(weight, T => {
            product(x, elements::<T>(weight, weight_layout)?, inner, &mut y);
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::linear((x, x_layout), (weight, weight_layout), self.f32_output)
    }
}

/// `y[r, o] = Σ_k x[r, k]·w[o, k]`, split among threads by weight rows.
fn product<W: Element>(x: &[f32], weight: &[W], inner: usize, y: &mut [f32]) {
    if inner == 0 {
        return;
    }
    let out = weight.len() / inner;
    let y = SharedOutput::new(y, out);
    let weights = |range: &Range<usize>| range.start * inner..range.end * inner;
    if let (Some(weight), true) = (W::as_bf16(weight), multiplies_pairs()) {
        let x = &pairs::Rows::new(x, inner);
        return for_each_range(out, PANEL_GRAIN, |range| {
            dispatch(Pairs {
                x,
                weight: &weight[weights(&range)],
                inner,
                // SAFETY: ranges do not overlap.
                store: |row, o, value| unsafe { y.write(&range, row, o, &[value]) },
            });
        });
    }
    let x = PackedActivations::new(x, inner, out);
    for_each_range(out, x.grain(), |range| {
        x.times(&weight[weights(&range)], inner, |row, o, values| {
            // SAFETY: ranges do not overlap.
            unsafe { y.write(&range, row, o, values) }
        });
    });
}

/// Panels take weight rows in multiples of this: whole tiles of 8 or 3 rows.
const PANEL_GRAIN: usize = 24;

/// Activations `[rows, inner]`, arranged for the product that is fastest for their number of rows.
pub(super) enum PackedActivations {
    Panel(panel::Rows),
    Outer(outer::Rows),
}

impl PackedActivations {
    /// Arranges `x` `[rows, inner]` for a weight `[out, inner]`.
    pub fn new(x: &[f32], inner: usize, out: usize) -> Self {
        if x.len() / inner >= outer::MIN_ROWS && out.is_multiple_of(LANES) {
            Self::Outer(outer::Rows::new(x, inner))
        } else {
            Self::Panel(panel::Rows::new(x, inner))
        }
    }

    /// [`Self::times`] takes weight rows in multiples of this, except for the last ones.
    pub fn grain(&self) -> usize {
        match self {
            Self::Panel(_) => PANEL_GRAIN,
            Self::Outer(_) => LANES,
        }
    }

    /// Multiplies all rows of `x` by weight rows. `store` receives results as `(row of x, first
    /// weight row, values of consecutive weight rows)`. A value does not depend on the other rows.
    pub fn times<W: Element>(
        &self,
        weight: &[W],
        inner: usize,
        store: impl Fn(usize, usize, &[f32]),
    ) {
        match self {
            Self::Panel(x) => dispatch(Panel {
                x,
                weight,
                inner,
                store: |row, o, value| store(row, o, &[value]),
            }),
            Self::Outer(x) => dispatch(Outer {
                x,
                weight,
                inner,
                store: |row, o, values: &[f32; LANES]| store(row, o, values),
            }),
        }
    }
}

/// A result `[rows, out]` whose columns are divided among threads.
pub(super) struct SharedOutput<'a> {
    y: Scattered<'a, f32>,
    out: usize,
}

impl<'a> SharedOutput<'a> {
    /// Borrows `y` `[rows, out]`.
    pub fn new(y: &'a mut [f32], out: usize) -> Self {
        let y = Scattered::new(y);
        Self { y, out }
    }

    /// Writes `values` into `row`, starting at column `o` of `range`.
    ///
    /// # Safety
    /// No other thread may access these columns.
    ///
    /// # Panics
    /// If there are more values than columns in the range.
    #[inline(always)]
    pub unsafe fn write(&self, range: &Range<usize>, row: usize, o: usize, values: &[f32]) {
        assert!(range.start + o + values.len() <= range.end && range.end <= self.out);
        let start = row * self.out + range.start + o;
        // SAFETY: only the caller accesses these columns (its contract), and the values lie within
        // them (asserted).
        unsafe { self.y.slice(start..start + values.len()) }.copy_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    /// The product in f64 of the stored weights and `x`, rounded as the kernel rounds it.
    fn reference(x: &Tensor, weight: &Tensor) -> Vec<Vec<f64>> {
        let rounds = weight.dtype() == DType::BF16 && multiplies_pairs();
        let dtype = if rounds { DType::BF16 } else { DType::F32 };
        let x = x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let weight = weight.to_dtype(DType::F32).unwrap();
        let (x, weight): (Vec<Vec<f32>>, Vec<Vec<f32>>) =
            (x.to_vec2().unwrap(), weight.to_vec2().unwrap());
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let row = |x: &Vec<f32>| weight.iter().map(|w| dot(x, w)).collect();
        x.iter().map(row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn equals_the_reference_and_ignores_the_batch(
            rows in 1usize..30, inner in 1usize..100, out in 1usize..40,
            dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        ) {
            let x = Tensor::randn(0f32, 1., (rows, inner), &Device::Cpu).unwrap();
            let weight = Tensor::randn(0f32, 1., (out, inner), &Device::Cpu).unwrap();
            let weight = weight.to_dtype(dtype).unwrap();
            let bias = Tensor::randn(0f32, 1., out, &Device::Cpu).unwrap();
            let y = linear(&x, &weight, Some(&bias)).unwrap();
            let b: Vec<f32> = bias.to_vec1().unwrap();
            let got: Vec<Vec<f32>> = y.to_vec2().unwrap();
            for (got, want) in got.iter().zip(reference(&x, &weight)) {
                for ((got, want), b) in got.iter().zip(want).zip(&b) {
                    let want = want + f64::from(*b);
                    prop_assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
                }
            }
            // Each row alone gives the same bits.
            for (r, got) in got.iter().enumerate() {
                let alone = linear(&x.narrow(0, r, 1).unwrap(), &weight, Some(&bias)).unwrap();
                prop_assert_eq!(got, &alone.to_vec2::<f32>().unwrap()[0]);
            }
        }
    }

    #[test]
    fn many_rows_are_multiplied_in_blocks() {
        let random = |shape| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        let x = random((201, 600));
        // The first by panels, the second by outer products (in bf16 unless pairs are multiplied).
        let weights = [random((50, 600)), random((96, 600))];
        let narrow = weights.each_ref().map(|w| w.to_dtype(DType::BF16).unwrap());
        for weight in weights.iter().chain(&narrow) {
            let got: Vec<Vec<f32>> = linear(&x, weight, None).unwrap().to_vec2().unwrap();
            for (got, want) in got.iter().zip(reference(&x, weight)) {
                let close = |(got, want): (&f32, f64)| (f64::from(*got) - want).abs() < 1e-3;
                assert!(got.iter().zip(want).all(close));
            }
            for row in [0, 79, 80, 191, 192, 200] {
                let alone = linear(&x.narrow(0, row, 1).unwrap(), weight, None).unwrap();
                assert_eq!(got[row], alone.to_vec2::<f32>().unwrap()[0]);
            }
        }
    }

    #[test]
    fn reads_a_view_of_a_fused_weight() {
        let fused = Tensor::randn(0f32, 1., (12, 20), &Device::Cpu).unwrap();
        let view = fused.narrow(0, 5, 4).unwrap();
        let x = Tensor::randn(0f32, 1., (2, 20), &Device::Cpu).unwrap();
        let whole: Vec<Vec<f32>> = linear(&x, &fused, None).unwrap().to_vec2().unwrap();
        let part: Vec<Vec<f32>> = linear(&x, &view, None).unwrap().to_vec2().unwrap();
        assert_eq!(whole[1][5..9], part[1][..]);
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        let x = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        let error = linear(&x, &weight, None).unwrap_err().to_string();
        assert!(
            error.contains("[1, 3]") && error.contains("[2, 4]"),
            "{error}"
        );
    }
}
