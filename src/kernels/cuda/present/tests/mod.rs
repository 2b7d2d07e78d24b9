//! Tests of all kernels against their CPU counterparts, on a GPU or under `deploy/cuda/emulated`.

mod attention;
mod training;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ticket::overlay::{DeviceRows, is_dense};
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
use crate::kernels::ticket::overlay::{DeviceLayout, OverlayRows, Overlays, WeightDeltas, overlay};
use crate::ticket::{DeltaDtype, Deltas, TensorDelta};

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

/// Delta with nonzeros in the first and last corner of `[rows, inner]` and at random positions;
/// every fifth row is empty.
fn delta([rows, inner]: [usize; 2], density: f64, dtype: DeltaDtype, seed: u64) -> TensorDelta {
    let mut rng = StdRng::seed_from_u64(seed);
    let last = rows * inner - 1;
    let kept = (0..=last).filter(|&at| {
        let empty = at / inner % 5 == 3;
        at == 0 || at == last || !empty && rng.random_bool(density)
    });
    let kept: Vec<usize> = kept.collect();
    let deltas = kept
        .iter()
        .map(|at| (*at as f32 * 0.37).sin() + 0.5)
        .collect();
    TensorDelta::from_flat([rows, inner], &kept, Deltas::from_f32(deltas, dtype)).unwrap()
}

fn delta_dtype(half: bool) -> DeltaDtype {
    if half {
        DeltaDtype::Bf16
    } else {
        DeltaDtype::F32
    }
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
    fn overlays_equal_the_cpus_and_ignore_the_batch(
        (first, second, inner) in (1usize..40, 1usize..40, 1usize..90),
        density in prop::sample::select(vec![0.001, 0.01, 0.1, 0.6]),
        half in any::<bool>(), dtype in dtypes(),
        rows in prop::collection::vec(0usize..7, 3),
    ) {
        let gpu = gpu();
        let shape = [first + second, inner];
        let parts = |seed| [
            delta([first, inner], density, delta_dtype(half), seed),
            delta([second, inner], density, delta_dtype(!half), seed + 1),
        ];
        let tickets = [parts(1), parts(3)];
        let weights = tickets.each_ref().map(|[a, b]| {
            // The tickets do not touch the first weight.
            [None, Some(WeightDeltas { shape, parts: vec![(0, a), (first, b)] })]
        });
        let batch = rows.iter().sum::<usize>() + 1;
        let (x, x_there) = both(&random((batch, inner)), dtype, &gpu);
        let y = random((batch, shape[0]));
        let (before, y_there) = (values(&y), y.to_device(&gpu).unwrap());
        let overlaid = |y: &Tensor, x: &Tensor, spans: [Range<usize>; 2], device: &Device| {
            let layouts = weights.each_ref();
            let layouts = layouts.map(|weights| DeviceLayout::new(weights, device).unwrap());
            for (layouts, weights) in layouts.iter().zip(&weights) {
                assert!(layouts.bytes() <= DeviceLayout::bytes_for(weights, device));
                assert_eq!(layouts.shape(1), Some(shape));
            }
            let parts = spans.into_iter().zip(&layouts);
            let parts = parts.map(|(rows, ticket)| OverlayRows { rows, ticket, scale: -0.7 });
            let batch = x.dim(0).unwrap();
            let overlays = uploaded(device, |inputs| Overlays::new(parts.collect(), batch, inputs));
            assert!(overlays.touches(1) && !overlays.touches(0));
            overlay(y.copy().unwrap(), x, &overlays, 1).unwrap()
        };
        let spans = || [rows[0]..rows[0] + rows[1], rows[0] + rows[1]..batch - 1];
        let here = overlaid(&y, &x, spans(), &Device::Cpu);
        let there = overlaid(&y_there, &x_there, spans(), &gpu);
        prop_assert_eq!(there.dtype(), dtype);
        let scale = (inner as f32 * density as f32).max(1.0);
        assert_near(&here, &there, scale * unit(dtype));
        // Each row alone gives the same bits, unless the batch was large enough to expand the
        // deltas.
        let all = values(&there);
        let [under, _] = spans();
        let ticket = DeviceLayout::new(&weights[0], &gpu).unwrap();
        for row in under.clone().filter(|_| !is_expanded(&ticket, under.len())) {
            let alone = row * shape[0]..(row + 1) * shape[0];
            let y = Tensor::new(&before[alone.clone()], &Device::Cpu).unwrap();
            let y = y.reshape((1, shape[0])).unwrap().to_device(&gpu).unwrap();
            let y = overlaid(&y, &x_there.narrow(0, row, 1).unwrap(), [0..1, 1..1], &gpu);
            prop_assert_eq!(&values(&y), &all[alone]);
        }
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

    #[test]
    fn apply_equals_the_cpus_bit_for_bit_and_revert_undoes_it(
        (rows, inner) in (1usize..60, 1usize..120),
        density in prop::sample::select(vec![0.001, 0.02, 0.5, 1.0]),
        half in any::<bool>(), dtype in dtypes(), scale in -2f32..2.0,
    ) {
        let gpu = gpu();
        let shapes = [[rows, inner], [inner, rows], [3, 40]];
        let deltas = [0, 2].map(|at| delta(shapes[at], density, delta_dtype(half), at as u64));
        let here = shapes.map(|shape| random((shape[0], shape[1])).to_dtype(dtype).unwrap());
        let there = here.each_ref().map(|weight| weight.to_device(&gpu).unwrap());
        let before = here.each_ref().map(values);
        let mut of = shapes.map(|_| None);
        for (delta, at) in deltas.iter().zip([0, 2]) {
            of[at] = Some(WeightDeltas { shape: shapes[at], parts: vec![(0, delta)] });
        }
        let layouts = DeviceLayout::new(&of, &gpu).unwrap();
        let parameters = vec![(&here[0], &deltas[0]), (&here[2], &deltas[1])];
        let _saved = apply::apply(&SwapTarget::Parameters(parameters), scale).unwrap();
        let target = SwapTarget::Weights(&layouts, &there);
        let saved = apply::apply(&target, scale).unwrap();
        prop_assert_eq!(there.each_ref().map(values), here.each_ref().map(values));
        apply::revert(&target, &saved).unwrap();
        prop_assert_eq!(there.each_ref().map(values), before);
        // `add` saves no values; the trainer applies deltas with it.
        apply::add(&there[0], &deltas[0], scale).unwrap();
        prop_assert_eq!(values(&there[0]), values(&here[0]));
    }
}

/// Whether `rows` rows with a ticket are computed with expanded deltas.
fn is_expanded(ticket: &DeviceLayout, rows: usize) -> bool {
    let DeviceLayout::Gpu(ticket) = ticket else {
        panic!("a ticket on the GPU");
    };
    is_dense(&DeviceRows {
        ticket,
        first_row: 0,
        rows,
        scale: 1.0,
    })
}

#[test]
fn deltas_are_expanded_for_many_rows_of_a_dense_ticket() {
    let gpu = gpu();
    let shape = [70, 50];
    let delta = delta(shape, 0.9, DeltaDtype::Bf16, 7);
    let weights = [Some(WeightDeltas {
        shape,
        parts: vec![(0, &delta)],
    })];
    // Deltas as small as a trainer's must count in every dtype.
    let small = Deltas::from_f32(vec![1e-6; delta.nonzeros()], DeltaDtype::F32);
    let kept: Vec<usize> = delta
        .entries()
        .map(|(row, column, _)| row * 50 + column)
        .collect();
    let small = TensorDelta::from_flat(shape, &kept, small).unwrap();
    let of_small = [Some(WeightDeltas {
        shape,
        parts: vec![(0, &small)],
    })];
    for (weights, scale) in [(&weights, 1.5), (&of_small, 3e5)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (x, x_there) = both(&random((60, 50)), dtype, &gpu);
            let y = random((60, 70));
            let [here, there] = [(&x, &Device::Cpu), (&x_there, &gpu)].map(|(x, device)| {
                let ticket = &DeviceLayout::new(weights, device).unwrap();
                let rows = OverlayRows {
                    rows: 10..58,
                    ticket,
                    scale,
                };
                if device.is_cuda() {
                    assert!(is_expanded(ticket, 48) && !is_expanded(ticket, 1));
                }
                let overlays = uploaded(device, |inputs| Overlays::new(vec![rows], 60, inputs));
                let y = y.copy().unwrap().to_device(device).unwrap();
                overlay(y, x, &overlays, 0).unwrap()
            });
            assert_eq!(there.dtype(), dtype);
            assert_near(&here, &there, 8.0 * unit(dtype));
        }
    }
}

/// Deltas that add less than half a unit in the last place of `y` would be lost if `y` were rounded
/// first.
#[test]
fn small_deltas_survive_the_rounding_of_the_product() {
    let gpu = gpu();
    let (rows, out) = (200, 64);
    let shape = [out, 1];
    let kept: Vec<usize> = (0..out).collect();
    let deltas = Deltas::from_f32(vec![1.0; out], DeltaDtype::F32);
    let delta = TensorDelta::from_flat(shape, &kept, deltas).unwrap();
    let weights = [Some(WeightDeltas {
        shape,
        parts: vec![(0, &delta)],
    })];
    let ticket = &DeviceLayout::new(&weights, &gpu).unwrap();
    // One row per segment, and all rows in one, which expands the deltas.
    let one_by_one: Vec<_> = (0..rows).map(|row| row..row + 1).collect();
    let at_once = vec![0..rows; 1];
    assert!(is_expanded(ticket, rows) && !is_expanded(ticket, 1));
    for (dtype, spans) in [
        (DType::BF16, &one_by_one),
        (DType::BF16, &at_once),
        (DType::F16, &one_by_one),
        (DType::F16, &at_once),
    ] {
        let scale = unit(dtype) / 16.0;
        let part = |rows| OverlayRows {
            rows,
            ticket,
            scale,
        };
        let parts = spans.iter().cloned().map(part).collect();
        let overlays = uploaded(&gpu, |inputs| Overlays::new(parts, rows, inputs));
        let x = Tensor::ones((rows, 1), dtype, &gpu).unwrap();
        let y = Tensor::rand(1f32, 2f32, (rows, out), &Device::Cpu).unwrap();
        let sums = overlay(y.to_device(&gpu).unwrap(), &x, &overlays, 0).unwrap();
        let total = |tensor| values(tensor).into_iter().map(f64::from).sum::<f64>();
        let mean = (total(&sums) - total(&y)) / y.elem_count() as f64;
        let share = mean / f64::from(scale);
        assert!((share - 1.0).abs() < 0.1, "{share} of it in {dtype:?}");
    }
}

#[test]
fn wide_weights_keep_their_columns() {
    let gpu = gpu();
    let shape = [3, 70_000];
    let delta = delta(shape, 0.001, DeltaDtype::F32, 3);
    let weights = [Some(WeightDeltas {
        shape,
        parts: vec![(0, &delta)],
    })];
    let x = random((2, 70_000));
    let y = random((2, 3));
    let [here, there] = [&Device::Cpu, &gpu].map(|device| {
        let x = x.to_device(device).unwrap();
        let y = y.copy().unwrap().to_device(device).unwrap();
        let ticket = &DeviceLayout::new(&weights, device).unwrap();
        let rows = OverlayRows {
            rows: 0..2,
            ticket,
            scale: 1.0,
        };
        let overlays = uploaded(device, |inputs| Overlays::new(vec![rows], 2, inputs));
        overlay(y, &x, &overlays, 0).unwrap()
    });
    assert_near(&here, &there, 1e-4);
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
