use candle_core::Device;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::layout::Order;
use super::*;
use crate::ticket::{DeltaDtype, Deltas, TensorDelta};

/// Delta `[rows, inner]` with nonzeros at `positions`.
fn delta([rows, inner]: [usize; 2], positions: &[usize], dtype: DeltaDtype) -> TensorDelta {
    let value = |(i, _): (usize, &usize)| (i as f32 * 0.37).sin() + 1.5;
    let values: Vec<f32> = positions.iter().enumerate().map(value).collect();
    TensorDelta::from_flat([rows, inner], positions, Deltas::from_f32(values, dtype)).unwrap()
}

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

/// Layout of a ticket that touches one weight, which is fused from `parts`.
fn ticket(shape: [usize; 2], parts: &[&TensorDelta]) -> DeviceLayout {
    let weight = fused(shape, parts);
    let layouts = DeviceLayout::new(&[Some(weight.clone())], &Device::Cpu).unwrap();
    let bound = DeviceLayout::bytes_for(&[Some(weight)], &Device::Cpu);
    assert!(layouts.bytes() <= bound, "{} {bound}", layouts.bytes());
    layouts
}

fn fused<'a>(shape: [usize; 2], parts: &[&'a TensorDelta]) -> WeightDeltas<'a> {
    let mut first = 0;
    let part = |part: &&'a TensorDelta| {
        first += part.rows();
        (first - part.rows(), *part)
    };
    let parts = parts.iter().map(part).collect();
    WeightDeltas { shape, parts }
}

/// Overlays tickets on the rows of a weight's product, in place.
fn add_overlay(y: &Tensor, x: &Tensor, parts: &[OverlayRows]) -> Result<()> {
    let mut inputs = Inputs::new(&Device::Cpu);
    let overlays = Overlays::new(parts.to_vec(), y.dim(0)?, &mut inputs)?;
    overlay(y.clone(), x, &overlays, 0).map(|_| ())
}

fn rows_of(t: &Tensor) -> Vec<Vec<f32>> {
    t.to_vec2().unwrap()
}

/// Deltas of a weight fused from two parts, each in either dtype. Either a few nonzeros, in column
/// order (in small weights still enough to transpose), or about half of all positions, in row
/// order.
fn weight() -> impl Strategy<Value = ([usize; 2], [TensorDelta; 2])> {
    let rows = prop_oneof![1usize..20, 1usize..700];
    let sparse = (rows, 1usize..40, 1usize..80, Just(false));
    let dense = (1usize..30, 1usize..20, 60usize..120, Just(true));
    prop_oneof![sparse, dense].prop_flat_map(|(first, second, inner, dense)| {
        let positions = move |rows: usize| {
            // Often includes the first and the last position.
            let few = btree_set(
                prop_oneof![Just(0), Just(rows * inner - 1), 0..rows * inner],
                0..200,
            );
            let few = few.prop_map(|set| set.into_iter().collect::<Vec<_>>());
            let half = vec(any::<bool>(), rows * inner);
            let half = half.prop_map(|kept| (0..kept.len()).filter(|&at| kept[at]).collect());
            if dense { half.boxed() } else { few.boxed() }
        };
        let dtypes = vec(
            prop::sample::select(vec![DeltaDtype::Bf16, DeltaDtype::F32]),
            2,
        );
        (positions(first), positions(second), dtypes).prop_map(move |(a, b, dtypes)| {
            let parts = [
                delta([first, inner], &a, dtypes[0]),
                delta([second, inner], &b, dtypes[1]),
            ];
            ([first + second, inner], parts)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_the_reference_and_ignores_the_batch(
        (shape, parts) in weight(),
        before in 0usize..3, under in 0usize..40, after in 0usize..3,
        scale in prop_oneof![Just(1.0f32), -2.0..2.0f32],
    ) {
        let [out, inner] = shape;
        let first = parts[0].rows();
        let ticket = &ticket(shape, &[&parts[0], &parts[1]]);
        prop_assert_eq!(ticket.nonzeros(), parts[0].nonzeros() + parts[1].nonzeros());
        let batch = before + under + after;
        prop_assume!(batch > 0);
        let (x, y) = (random((batch, inner)), random((batch, out)));
        let (xs, mut want) = (rows_of(&x), rows_of(&y));
        let dense = want.clone();
        for (row, (want, x)) in want.iter_mut().zip(&xs).enumerate() {
            if (before..before + under).contains(&row) {
                let mut sums: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
                for (part, first) in parts.iter().zip([0, first]) {
                    for (r, c, d) in part.entries() {
                        sums[first + r] += f64::from(scale) * f64::from(d) * f64::from(x[c]);
                    }
                }
                *want = sums.into_iter().map(|v| v as f32).collect();
            }
        }
        let rows = before..before + under;
        add_overlay(&y, &x, &[OverlayRows { rows: rows.clone(), ticket, scale }]).unwrap();
        let got = rows_of(&y);
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            prop_assert!((got - want).abs() < 1e-3, "{got} {want}");
        }
        // Each row alone gives the same bits.
        for row in rows {
            let y = Tensor::new(vec![dense[row].clone()], &Device::Cpu).unwrap();
            let x = x.narrow(0, row, 1).unwrap();
            add_overlay(&y, &x, &[OverlayRows { rows: 0..1, ticket, scale }]).unwrap();
            prop_assert_eq!(&rows_of(&y)[0], &got[row]);
        }
    }
}

#[test]
fn dense_weights_are_in_row_order() {
    let kept = |share: usize| (0..400 * 300).step_by(share).collect::<Vec<_>>();
    for (share, by_row) in [(100, false), (20, false), (10, true), (2, true)] {
        let delta = delta([400, 300], &kept(share), DeltaDtype::Bf16);
        let layout = OverlayLayout::new(&fused([400, 300], &[&delta]));
        assert_eq!(matches!(layout.order, Order::Row { .. }), by_row, "{share}");
    }
}

#[test]
fn each_row_gets_the_deltas_of_its_ticket() {
    let shape = [5, 3];
    let one = delta(shape, &[0, 7], DeltaDtype::Bf16);
    let other = delta(shape, &[14], DeltaDtype::F32);
    let [one, other] = [one, other].map(|delta| ticket(shape, &[&delta]));
    let parts = |rows: [Range<usize>; 2]| {
        let [a, b] = rows;
        let part = |rows, ticket| OverlayRows {
            rows,
            ticket,
            scale: 1.0,
        };
        [part(a, &one), part(b, &other)]
    };
    let x = Tensor::new(&[[1f32, 10., 100.]; 4], &Device::Cpu).unwrap();
    let y = Tensor::zeros((4, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
    add_overlay(&y, &x, &parts([0..1, 2..4])).unwrap();
    let [a, b] = [1.5, 1.5 + 0.37f32.sin()];
    let b = half::bf16::from_f32(b).to_f32();
    let under_one = vec![a, 0., 10. * b, 0., 0.];
    let under_other = vec![0., 0., 0., 0., 150.];
    assert_eq!(
        rows_of(&y),
        [under_one, vec![0.; 5], under_other.clone(), under_other]
    );
    for bad in [[0..3, 2..4], [0..1, 2..5]] {
        let error = add_overlay(&y, &x, &parts(bad)).unwrap_err().to_string();
        assert!(error.contains("overlay: rows"), "{error}");
    }
    let narrow = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let error = add_overlay(&y, &narrow, &parts([0..1, 2..4]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[5, 3]") && error.contains("[5, 2]"),
        "{error}"
    );
}

#[test]
fn many_nonzeros_are_split_into_blocks_and_wide_weights_keep_their_columns() {
    for (shape, step, blocks) in [([2000, 90], 7, 8), ([3, 70_000], 11, 3)] {
        let [out, inner] = shape;
        let positions: Vec<usize> = (0..out * inner).step_by(step).collect();
        let delta = delta(shape, &positions, DeltaDtype::F32);
        let layout = OverlayLayout::new(&fused(shape, &[&delta]));
        assert_eq!(layout.blocks(), blocks);
        let ticket = &ticket(shape, &[&delta]);
        for batch in [1, 2, 5, 16, 21] {
            let x = random((batch, inner));
            let y = Tensor::zeros((batch, out), candle_core::DType::F32, &Device::Cpu).unwrap();
            let rows = OverlayRows {
                rows: 0..batch,
                ticket,
                scale: 1.0,
            };
            add_overlay(&y, &x, &[rows]).unwrap();
            for (x, got) in rows_of(&x).iter().zip(rows_of(&y)) {
                let (mut want, mut size) = (vec![0f64; out], vec![0f64; out]);
                for (r, c, d) in delta.entries() {
                    let product = f64::from(d) * f64::from(x[c]);
                    want[r] += product;
                    size[r] += product.abs();
                }
                for ((got, want), size) in got.iter().zip(want).zip(size) {
                    assert!(
                        (f64::from(*got) - want).abs() <= 1e-5 * size,
                        "{got} {want}"
                    );
                }
            }
        }
    }
}
