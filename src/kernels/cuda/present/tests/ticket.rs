//! Tests of applied and overlaid tickets against the CPU.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::ticket::overlay::{DeviceRows, is_dense};
use super::{assert_near, both, dtypes, gpu, random, unit, uploaded, values};
use crate::kernels::ticket::apply::{self, SwapTarget};
use crate::kernels::ticket::overlay::{DeviceLayout, OverlayRows, Overlays, WeightDeltas, overlay};
use crate::ticket::{DeltaDtype, Deltas, TensorDelta};

/// Delta with nonzeros in the first and last corner of `[rows, inner]` and at random positions;
/// every fifth row is empty.
pub(super) fn delta(
    [rows, inner]: [usize; 2],
    density: f64,
    dtype: DeltaDtype,
    seed: u64,
) -> TensorDelta {
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
