//! Tests of the trainer's kernels against the CPU.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::{assert_near, gpu, random, values};
use crate::kernels::Pattern;
use crate::kernels::activation::silu_mul_backward;
use crate::kernels::cpu::gemm;
use crate::kernels::rms_norm::{rms_norm_backward, rms_norm_weight_gradient};
use crate::kernels::training::attention::{
    CausalOptions, causal_attention, causal_attention_backward,
};
use crate::kernels::training::cross_entropy::{cross_entropy, nll};
use crate::kernels::training::optimizer::{Power, Step, sum_of_squares, update_mean};
use crate::kernels::training::{accumulate, sddmm};

/// The same tensor on the CPU and on the GPU.
fn pair(tensor: Tensor, gpu: &Device) -> [Tensor; 2] {
    let there = tensor.to_device(gpu).unwrap();
    [tensor, there]
}

/// Runs `run` on copies of the tensors on the CPU and on the GPU, then compares the first tensors.
fn both<const N: usize>(tensors: [Tensor; N], gpu: &Device, run: impl Fn(&[Tensor; N])) {
    let here = tensors.map(|tensor| tensor.copy().unwrap());
    let there = here.each_ref().map(|tensor| tensor.to_device(gpu).unwrap());
    run(&here);
    run(&there);
    assert_near(&here[0], &there[0], 1e-4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn gradients_equal_the_cpus(
        (rows, n) in (1usize..70, 1usize..90),
    ) {
        let gpu = gpu();
        let [gate_up, gate_up_there] = pair(random((rows, 2 * n)), &gpu);
        let [dy, dy_there] = pair(random((rows, n)), &gpu);
        let here = silu_mul_backward(&gate_up, &dy).unwrap();
        assert_near(&here, &silu_mul_backward(&gate_up_there, &dy_there).unwrap(), 1e-5);

        let [x, x_there] = pair(random((rows, n)), &gpu);
        let [weight, weight_there] = pair(random(n), &gpu);
        let here = rms_norm_backward(&x, &weight, &dy, 1e-5).unwrap();
        let there = rms_norm_backward(&x_there, &weight_there, &dy_there, 1e-5).unwrap();
        assert_near(&here, &there, 1e-4);
        let here = rms_norm_weight_gradient(&x, &dy, 1e-5).unwrap();
        let there = rms_norm_weight_gradient(&x_there, &dy_there, 1e-5).unwrap();
        assert_near(&here, &there, 1e-4);

        let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % n) as u32).collect();
        let here = nll(&x, &targets).unwrap();
        let there = nll(&x_there, &targets).unwrap();
        let losses = [cross_entropy(&x, &targets, 0.3), cross_entropy(&x_there, &targets, 0.3)];
        let [here_too, there_too] = losses.map(Result::unwrap);
        for (want, got) in here.iter().zip(there).chain(here_too.iter().zip(there_too)) {
            prop_assert!((want - got).abs() < 1e-4, "{} {}", want, got);
        }
        assert_near(&x, &x_there, 1e-5);

        let squares = [sum_of_squares(&gate_up), sum_of_squares(&gate_up_there)];
        let [here, there] = squares.map(Result::unwrap);
        prop_assert!((here - there).abs() <= 1e-5 * here, "{} {}", here, there);

        both([random((n, 7)), random((rows, n)), random((rows, 7))], &gpu, |[gradient, dy, x]| {
            gemm::add_weight_gradient(gradient, dy, x).unwrap();
        });
    }

    #[test]
    fn trained_positions_equal_the_cpus(
        (rows, out, inner) in (1usize..70, 1usize..50, 1usize..60),
        every in 1usize..40,
    ) {
        let gpu = gpu();
        let last = out * inner - 1;
        let kept: Vec<usize> = (0..=last).filter(|at| at % every == 0 || *at == last).collect();
        let pattern = Pattern::from_flat([out, inner], &kept);
        let tensors = [random(kept.len()), random((rows, inner)), random((rows, out))];
        both(tensors, &gpu, |[gradient, x, dy]| {
            sddmm::add_sddmm_gradient(gradient, &pattern, x, dy).unwrap();
        });
        both([random((out, inner)), random(kept.len())], &gpu, |[weight, values]| {
            sddmm::set(weight, &pattern, values).unwrap();
        });
        let [weight, there] = pair(random((out, inner)), &gpu);
        let gathered = |weight: &Tensor| values(&sddmm::gather(weight, &pattern).unwrap());
        let gathered = [gathered(&weight), gathered(&there)];
        prop_assert_eq!(&gathered[0], &gathered[1]);
    }

    #[test]
    fn updates_equal_the_cpus(n in 1usize..3000, square in any::<bool>()) {
        let gpu = gpu();
        let power = if square { Power::Square } else { Power::Gradient };
        both([random(n), random(n)], &gpu, |[mean, gradient]| {
            update_mean(mean, gradient, power, 0.9, 0.5).unwrap();
        });
        let step = Step { rate: 0.1, root: 1.5, eps: 1e-3, keep: 0.98 };
        both([random(n), random(n), random(n).sqr().unwrap()], &gpu, |[weights, direction, mean]| {
            step.take(weights, direction, mean).unwrap();
        });
        both([random((n, 3)), random((n, 3))], &gpu, |[sum, values]| {
            accumulate::add(sum, values).unwrap();
            accumulate::add_absolute(sum, values).unwrap();
        });
        let rows: Vec<u32> = (0..9).map(|i| (i * i % n) as u32).collect();
        both([random((n, 5)), random((9, 5))], &gpu, |[sum, values]| {
            accumulate::add_rows(sum, &rows, values).unwrap();
        });
        // Part of a larger tensor, whose other values must stay unchanged.
        both([random((n + 2, 3))], &gpu, |[sum]| {
            accumulate::clear(&sum.narrow(0, 1, n).unwrap()).unwrap();
        });
    }

    #[test]
    fn causal_attention_equals_the_cpus(
        lengths in prop::collection::vec(1usize..30, 1..4),
        (kv_heads, group) in (1usize..3, 1usize..4),
        dim in prop::sample::select(vec![4usize, 18, 64, 130]),
        window in prop::option::of(1usize..12),
    ) {
        let gpu = gpu();
        let mut sequences = Vec::new();
        for length in lengths {
            let first = sequences.last().map_or(0, |last: &std::ops::Range<usize>| last.end);
            sequences.push(first..first + length);
        }
        // The last row is outside every sequence.
        let rows = sequences[sequences.len() - 1].end + 1;
        let options = CausalOptions { sequences: &sequences, window, scale: 0.3 };
        let heads = kv_heads * group;
        let [q, q_there] = pair(random((rows, heads, dim)), &gpu);
        let [k, k_there] = pair(random((rows, kv_heads, dim)), &gpu);
        let [v, v_there] = pair(random((rows, kv_heads, dim)), &gpu);
        let [dy, dy_there] = pair(random((rows, heads, dim)), &gpu);
        let (y, sums) = causal_attention(&q, &k, &v, &options).unwrap();
        let there = causal_attention(&q_there, &k_there, &v_there, &options);
        let (y_there, sums_there) = there.unwrap();
        assert_near(&y, &y_there, 1e-4);
        assert_near(&sums, &sums_there, 1e-4);
        let here = causal_attention_backward([&q, &k, &v], &y, &sums, &dy, &options).unwrap();
        let inputs = [&q_there, &k_there, &v_there];
        let there = causal_attention_backward(inputs, &y_there, &sums_there, &dy_there, &options);
        for (here, there) in here.iter().zip(there.unwrap()) {
            assert_near(here, &there, 1e-3);
        }
    }
}

#[test]
fn tensors_in_other_dtypes_than_f32_are_refused() {
    let gpu = gpu();
    let half = random((2, 4))
        .to_dtype(DType::BF16)
        .unwrap()
        .to_device(&gpu)
        .unwrap();
    assert!(sum_of_squares(&half).is_err());
    assert!(accumulate::add(&half, &half.copy().unwrap()).is_err());
}
