//! Tests of all kernels against their CPU counterparts, on a GPU or under `deploy/cuda/emulated`.

mod attention;
mod ticket;
mod training;

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use ticket::delta;

use crate::kernels::activation::silu_mul;
use crate::kernels::attention::{Span, Spans};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::linear::{linear, linear_f32};
use crate::kernels::residual;
use crate::kernels::rms_norm::rms_norm;
use crate::kernels::rope::{HeadNorms, rotate};
use crate::kernels::sample::{RandomSampling, SamplingMethod, sample};
use crate::kernels::step::indices::Indices;
use crate::kernels::step::inputs::Inputs;
use crate::kernels::ticket::apply::{self, SwapTarget};
use crate::kernels::ticket::overlay::{DeviceLayout, WeightDeltas};
use crate::ticket::DeltaDtype;

fn gpu() -> Device {
    super::open(0).expect("a GPU, or its emulation")
}

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Relative tolerance of values rounded to a dtype.
fn unit(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    }
}

/// Stages inputs with `place`, and uploads them.
fn uploaded<T>(device: &Device, place: impl FnOnce(&mut Inputs) -> Result<T>) -> T {
    let mut inputs = Inputs::new(device);
    let placed = place(&mut inputs).unwrap();
    inputs.upload().unwrap();
    placed
}

/// Asserts that the CPU's f32 values equal the GPU's, in any dtype, within a tolerance.
fn assert_near(cpu: &Tensor, gpu: &Tensor, tolerance: f32) {
    assert_eq!(cpu.dims(), gpu.dims());
    for (at, (want, got)) in values(cpu).into_iter().zip(values(gpu)).enumerate() {
        let off = (want - got).abs();
        assert!(
            off <= tolerance * (1.0 + want.abs()),
            "{want} {got} at {at}"
        );
    }
}

/// A tensor rounded to a dtype: widened to f32 for the CPU's kernels, and as rounded on the GPU.
fn both(tensor: &Tensor, dtype: DType, gpu: &Device) -> (Tensor, Tensor) {
    let rounded = tensor.to_dtype(dtype).unwrap();
    (
        rounded.to_dtype(DType::F32).unwrap(),
        rounded.to_device(gpu).unwrap(),
    )
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::BF16, DType::F16])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn decoder_operations_equal_the_cpus(
        (rows, heads, half) in (1usize..6, 1usize..5, 1usize..40),
        dtype in dtypes(), normed in any::<bool>(),
    ) {
        let gpu = gpu();
        let (dim, width) = (2 * half, 2 * half * heads);
        let x = random((rows, width));
        let (weight, weight_there) = both(&random(width), dtype, &gpu);
        let there = rms_norm(&x.to_device(&gpu).unwrap(), &weight_there, 1e-5).unwrap();
        prop_assert_eq!(there.dtype(), dtype);
        assert_near(&rms_norm(&x, &weight, 1e-5).unwrap(), &there, unit(dtype));

        let (gate_up, gate_up_there) = both(&random((rows, 2 * width)), dtype, &gpu);
        let there = silu_mul(&gate_up_there).unwrap();
        assert_near(&silu_mul(&gate_up).unwrap(), &there, unit(dtype));

        let (y, y_there) = both(&random((rows, width)), dtype, &gpu);
        let (sum, sum_there) = (x.copy().unwrap(), x.to_device(&gpu).unwrap());
        residual::add(&sum, &y).unwrap();
        residual::add(&sum_there, &y_there).unwrap();
        prop_assert_eq!(values(&sum), values(&sum_there));
        let here = residual::add_norm(&sum, &y, &weight, 1e-5).unwrap();
        let there = residual::add_norm(&sum_there, &y_there, &weight_there, 1e-5).unwrap();
        prop_assert_eq!(values(&sum), values(&sum_there));
        prop_assert_eq!(there.dtype(), dtype);
        assert_near(&here, &there, unit(dtype));

        // Heads within wider rows, as in a fused product.
        let (fused, fused_there) = both(&random((rows, heads + 2, dim)), dtype, &gpu);
        let [(queries, queries_there), (keys, keys_there)] =
            [(); 2].map(|()| both(&random(dim), dtype, &gpu));
        let angles = random((rows, half));
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let norms = |queries, keys| {
            normed.then_some(HeadNorms { queries, query_heads: heads / 2, keys, eps: 1e-5 })
        };
        rotate(&fused.narrow(1, 1, heads).unwrap(), &cos, &sin, norms(&queries, &keys)).unwrap();
        let (cos, sin) = (cos.to_device(&gpu).unwrap(), sin.to_device(&gpu).unwrap());
        let norms = norms(&queries_there, &keys_there);
        rotate(&fused_there.narrow(1, 1, heads).unwrap(), &cos, &sin, norms).unwrap();
        assert_near(&fused, &fused_there, unit(dtype));

        let ids: Vec<u32> = (0..9).map(|i| (i * 7 % rows) as u32).collect();
        let (matrix, matrix_there) = both(&x, dtype, &gpu);
        let here = gather_rows(&matrix, &Indices::uploaded(&ids, &Device::Cpu).unwrap()).unwrap();
        let there = gather_rows(&matrix_there, &Indices::uploaded(&ids, &gpu).unwrap()).unwrap();
        prop_assert_eq!(there.dtype(), DType::F32);
        prop_assert_eq!(values(&here), values(&there));
    }

    #[test]
    fn products_equal_the_cpus(
        (rows, inner, out) in (1usize..9, 1usize..60, 1usize..50),
        dtype in dtypes(),
    ) {
        let gpu = gpu();
        let (x, x_there) = both(&random((rows, inner)), dtype, &gpu);
        let (weight, weight_there) = both(&random((out, inner)), dtype, &gpu);
        let (bias, bias_there) = both(&random(out), dtype, &gpu);
        let here = linear(&x, &weight, Some(&bias)).unwrap();
        let there = linear(&x_there, &weight_there, Some(&bias_there)).unwrap();
        prop_assert_eq!(there.dtype(), dtype);
        assert_near(&here, &there, 4.0 * unit(dtype));
        let there = linear_f32(&x_there, &weight_there, Some(&bias_there)).unwrap();
        prop_assert_eq!(there.dtype(), DType::F32);
        assert_near(&here, &there, 1e-4);
    }

    #[test]
    fn tokens_are_sampled_as_on_the_cpu(
        vocabulary in 1usize..700, seed in any::<u64>(),
        params in prop::collection::vec(
            (0u32..4, 0.05f32..3.0, prop::sample::select(vec![0.0, -0.0, 0.02, 0.5]),
             prop::option::of(1usize..50), prop::sample::select(vec![1.0, 0.05, 0.6, 0.95]),
             0.0..1.0),
            1..12,
        ),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        // Multiples of 1/4, so that some logits are equal. Some are not finite; in the last row,
        // none is.
        let logit = |at| match rng.random_range(0..20) {
            _ if at >= 3 * vocabulary => f32::NAN,
            0 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3],
            _ => rng.random_range(-40i32..40) as f32 * 0.25,
        };
        let logits: Vec<f32> = (0..4 * vocabulary).map(logit).collect();
        let logits = Tensor::from_vec(logits, (4, vocabulary), &Device::Cpu).unwrap();
        let methods = params.into_iter().map(|(row, temperature, min_p, top_k, top_p, random)| {
            let method = if top_k == Some(9) {
                SamplingMethod::Greedy
            } else {
                SamplingMethod::Random(RandomSampling { temperature, min_p, top_k, top_p, random })
            };
            (row, method)
        });
        let methods: Vec<_> = methods.collect();
        let there = sample(&logits.to_device(&gpu()).unwrap(), &methods).unwrap();
        prop_assert_eq!(sample(&logits, &methods).unwrap(), there);
    }
}

#[test]
fn shapes_and_rows_that_do_not_fit_are_refused_on_a_gpu_too() {
    let gpu = gpu();
    let weight = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
    let weight = weight.to_device(&gpu).unwrap();
    let delta = delta([2, 4], 1.0, DeltaDtype::F32, 1);
    let weights = [Some(WeightDeltas {
        shape: [2, 4],
        parts: vec![(0, &delta)],
    })];
    let layouts = DeviceLayout::new(&weights, &gpu).unwrap();
    let error = apply::apply(&SwapTarget::Weights(&layouts, &[weight]), 1.0);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("[2, 4]"), "{error}");
    let beyond = Indices::uploaded(&[2], &gpu).unwrap();
    let matrix = random((2, 3)).to_device(&gpu).unwrap();
    assert!(gather_rows(&matrix, &beyond).is_err());
    let spans = [Span {
        first_row: 0,
        rows: 1,
        first_position: 0,
        blocks: vec![0],
    }];
    let error = Spans::new(&spans, 9, &mut Inputs::new(&gpu))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("9 query heads"), "{error}");
}
