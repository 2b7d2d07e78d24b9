use super::*;
use candle_core::{DType, Device};
use proptest::prelude::*;

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_dtype(DType::F32).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn positions(shape: [usize; 2], density: f64, seed: u64) -> Vec<usize> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let weights = shape[0] * shape[1];
    let edge = |i: usize| i == 0 || i == weights - 1;
    let kept = (0..weights).filter(|&i| rng.random_bool(density) || edge(i));
    kept.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn equals_the_dense_gradient_at_the_positions(
        rows in 1usize..200, inner in 1usize..90, out in 1usize..90,
        density in prop::sample::select(vec![0.0, 0.01, 0.1, 0.5, 1.0]), seed in any::<u64>(),
    ) {
        let x = Tensor::randn(0f32, 1., (rows, inner), &Device::Cpu).unwrap();
        let dy = Tensor::randn(0f32, 1., (rows, out), &Device::Cpu).unwrap();
        let positions = positions([out, inner], density, seed);
        let pattern = Pattern::from_flat([out, inner], &positions);
        let gradient = Tensor::ones(positions.len(), DType::F32, &Device::Cpu).unwrap();
        add_sddmm_gradient(&gradient, &pattern, &x, &dy).unwrap();
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let dense = wide(&dy).t().unwrap().matmul(&wide(&x)).unwrap();
        let dense = flat(&dense);
        for (got, &at) in flat(&gradient).iter().zip(&positions) {
            prop_assert!((got - 1.0 - dense[at]).abs() < 1e-4 * (rows as f32).sqrt());
        }
    }

    #[test]
    fn only_the_values_at_the_positions_are_read_and_written(
        inner in 1usize..40, out in 1usize..40, seed in any::<u64>(),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
    ) {
        let positions = positions([out, inner], 0.2, seed);
        let pattern = Pattern::from_flat([out, inner], &positions);
        let fused = Tensor::randn(0f32, 1., (out + 3, inner), &Device::Cpu).unwrap();
        let fused = fused.to_dtype(dtype).unwrap();
        let weight = fused.narrow(0, 2, out).unwrap();
        let before = flat(&fused);
        let values = gather(&weight, &pattern).unwrap();
        let want: Vec<f32> = positions.iter().map(|i| before[2 * inner + i]).collect();
        prop_assert_eq!(flat(&values), want);
        set(&weight, &pattern, &(&values + 1.0).unwrap()).unwrap();
        let changed = (&fused.flatten_all().unwrap().to_dtype(DType::F32).unwrap()
            - Tensor::new(before.as_slice(), &Device::Cpu).unwrap()).unwrap();
        let changed: Vec<usize> = flat(&changed).iter().enumerate()
            .filter(|(_, d)| **d != 0.0).map(|(i, _)| i).collect();
        let all: Vec<usize> = positions.iter().map(|i| 2 * inner + i).collect();
        prop_assert_eq!(changed, all);
        set(&weight, &pattern, &values).unwrap();
        prop_assert_eq!(flat(&fused), before);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let pattern = Pattern::from_flat([2, 3], &[0, 5]);
    let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
    assert!(gather(&weight, &pattern).is_err());
    let gradient = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let x = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(add_sddmm_gradient(&gradient, &pattern, &x, &x).is_err());
}
