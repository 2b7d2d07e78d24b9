//! The linear layer: `y = x·Wᵀ + b`. candle has no bf16 product on the CPU, so it is ours.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::element::{Element, elements, with_element};
use super::parallel::{Scattered, for_each_range};
use super::simd::{Arithmetic, LANES, Vectorised, dispatch, sum_lanes};

/// `x·Wᵀ + b` for activations `x` `[rows, in]` (f32 on the CPU), a row-major weight
/// `[out, in]` of any dtype that the kernels know, and a bias `[out]` in the activations' dtype.
///
/// The sum over `in` is taken in one order whatever the number of rows, so a row's result does
/// not depend on the batch it is in.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.apply_op2_no_bwd(weight, &Linear)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct Linear;

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
        let (rows, inner) = x_layout.shape().dims2()?;
        let (out, weight_inner) = weight_layout.shape().dims2()?;
        if inner != weight_inner {
            candle_core::bail!(
                "linear: x is [{rows}, {inner}], the weight [{out}, {weight_inner}]"
            );
        }
        let x = elements::<f32>(x, x_layout)?;
        let mut y = vec![0f32; rows * out];
        with_element!(weight, T => product(x, elements::<T>(weight, weight_layout)?, inner, &mut y));
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }
}

/// Weight rows and activation rows that are multiplied at once, in registers.
const WEIGHT_TILE: usize = 4;
const ROW_TILE: usize = 2;

/// `y[r, o] = Σ_k x[r, k]·w[o, k]`, threads by ranges of weight rows.
fn product<W: Element>(x: &[f32], weight: &[W], inner: usize, y: &mut [f32]) {
    if inner == 0 {
        return;
    }
    let out = weight.len() / inner;
    let y = Scattered::new(y);
    for_each_range(out, WEIGHT_TILE, |range| {
        dispatch(Panel {
            x,
            weight: &weight[range.start * inner..range.end * inner],
            inner,
            store: |row, o, value| {
                assert!(range.start + o < range.end);
                // SAFETY: the element is in this range of weight rows (asserted), and ranges do
                // not overlap.
                unsafe { y.write(row * out + range.start + o, value) }
            },
        });
    });
}

/// All rows of `x` times a few rows of the weight.
struct Panel<'a, W, F> {
    x: &'a [f32],
    weight: &'a [W],
    inner: usize,
    store: F,
}

impl<W: Element, F: Fn(usize, usize, f32)> Vectorised for Panel<'_, W, F> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (rows, out) = (self.x.len() / self.inner, self.weight.len() / self.inner);
        let whole = out - out % WEIGHT_TILE;
        for o in (0..whole).step_by(WEIGHT_TILE) {
            self.weight_rows::<A, WEIGHT_TILE>(o, rows);
        }
        for o in whole..out {
            self.weight_rows::<A, 1>(o, rows);
        }
    }
}

impl<W: Element, F: Fn(usize, usize, f32)> Panel<'_, W, F> {
    #[inline(always)]
    fn weight_rows<A: Arithmetic, const O: usize>(&self, o: usize, rows: usize) {
        let whole = rows - rows % ROW_TILE;
        for row in (0..whole).step_by(ROW_TILE) {
            self.tile::<A, O, ROW_TILE>(o, row);
        }
        for row in whole..rows {
            self.tile::<A, O, 1>(o, row);
        }
    }

    /// `O × R` dot products over `inner`, each in [`LANES`] partial sums.
    #[inline(always)]
    fn tile<A: Arithmetic, const O: usize, const R: usize>(&self, o: usize, row: usize) {
        let inner = self.inner;
        let weights: [&[W]; O] =
            std::array::from_fn(|i| &self.weight[(o + i) * inner..(o + i + 1) * inner]);
        let inputs: [&[f32]; R] =
            std::array::from_fn(|i| &self.x[(row + i) * inner..(row + i + 1) * inner]);
        let mut sums = [[[0f32; LANES]; R]; O];
        let whole = inner - inner % LANES;
        for k in (0..whole).step_by(LANES) {
            let x: [[f32; LANES]; R] = std::array::from_fn(|r| lanes(&inputs[r][k..k + LANES]));
            for i in 0..O {
                let w = lanes(&weights[i][k..k + LANES]);
                for r in 0..R {
                    for l in 0..LANES {
                        sums[i][r][l] = A::mul_add(w[l], x[r][l], sums[i][r][l]);
                    }
                }
            }
        }
        if whole < inner {
            // Filled up with zeros, not taken one by one: an index into the sums that is only known
            // at run time would keep them all in memory.
            let x: [[f32; LANES]; R] = std::array::from_fn(|r| last_lanes(&inputs[r][whole..]));
            for i in 0..O {
                let w = last_lanes(&weights[i][whole..]);
                for r in 0..R {
                    for l in 0..LANES {
                        sums[i][r][l] = A::mul_add(w[l], x[r][l], sums[i][r][l]);
                    }
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (r, sums) in sums.into_iter().enumerate() {
                (self.store)(row + r, o + i, sum_lanes(sums));
            }
        }
    }
}

/// Fewer than [`LANES`] values, widened, and zeros.
#[inline(always)]
fn last_lanes<T: Element>(values: &[T]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, value) in lanes.iter_mut().zip(values) {
        *lane = value.widen();
    }
    lanes
}

/// [`LANES`] consecutive values, widened.
#[inline(always)]
fn lanes<T: Element>(values: &[T]) -> [f32; LANES] {
    let values: &[T; LANES] = values.try_into().expect("a slice of LANES values");
    values.map(T::widen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    /// The product in f64, from the values as stored.
    fn reference(x: &Tensor, weight: &Tensor) -> Vec<Vec<f64>> {
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
            rows in 1usize..10, inner in 1usize..100, out in 1usize..40,
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
            // Alone, every row gives the very same bits.
            for (r, got) in got.iter().enumerate() {
                let alone = linear(&x.narrow(0, r, 1).unwrap(), &weight, Some(&bias)).unwrap();
                prop_assert_eq!(got, &alone.to_vec2::<f32>().unwrap()[0]);
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
