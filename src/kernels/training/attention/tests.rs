use candle_core::{D, DType, Device};
use proptest::prelude::*;

use super::*;

/// Attention of one sequence in f64, from candle operations that autograd can differentiate.
fn reference(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>, scale: f64) -> Tensor {
    let (rows, heads, dim) = q.dims3().unwrap();
    let kv_heads = k.dim(1).unwrap();
    let repeat = |x: &Tensor| {
        let x = x.unsqueeze(2).unwrap();
        let x = x.broadcast_as((rows, kv_heads, heads / kv_heads, dim));
        x.unwrap().reshape((rows, heads, dim)).unwrap()
    };
    let by_head = |x: &Tensor| x.transpose(0, 1).unwrap().contiguous().unwrap();
    let (q, k, v) = (by_head(q), by_head(&repeat(k)), by_head(&repeat(v)));
    let scores = q.matmul(&k.t().unwrap()).unwrap();
    let hidden = |i: usize, j: usize| j > i || i - j >= window.unwrap_or(usize::MAX);
    let mask = (0..rows * rows).map(|at| {
        let hidden = hidden(at / rows, at % rows);
        if hidden { f64::NEG_INFINITY } else { 0.0 }
    });
    let mask = Tensor::from_vec(mask.collect(), (1, rows, rows), &Device::Cpu).unwrap();
    let scores = (scores * scale).unwrap().broadcast_add(&mask).unwrap();
    let most = scores.max_keepdim(D::Minus1).unwrap().detach();
    let weights = scores.broadcast_sub(&most).unwrap().exp().unwrap();
    let sums = weights.sum_keepdim(D::Minus1).unwrap();
    let y = weights.broadcast_div(&sums).unwrap().matmul(&v).unwrap();
    y.transpose(0, 1).unwrap()
}

fn random(shape: (usize, usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    let a = a.to_dtype(DType::F64).unwrap();
    let difference = (a - b.to_dtype(DType::F64).unwrap())
        .unwrap()
        .abs()
        .unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_the_reference_forward_and_backward(
        lengths in prop::collection::vec(1usize..150, 1..4),
        kv_heads in 1usize..3,
        group in 1usize..4,
        dim in prop::sample::select(vec![4usize, 16, 20]),
        window in prop::option::of(1usize..100),
    ) {
        let rows = lengths.iter().sum();
        let [q, dy] = [(); 2].map(|()| random((rows, kv_heads * group, dim)));
        let (k, v) = (random((rows, kv_heads, dim)), random((rows, kv_heads, dim)));
        let mut start = 0;
        let sequences: Vec<Range<usize>> = lengths.iter().map(|length| {
            start += length;
            start - length..start
        }).collect();
        let scale = 0.3;
        let options = CausalOptions { sequences: &sequences, window, scale };
        let (y, log_sums) = causal_attention(&q, &k, &v, &options).unwrap();
        let gradients =
            causal_attention_backward([&q, &k, &v], &y, &log_sums, &dy, &options).unwrap();
        for range in &sequences {
            let part = |x: &Tensor| {
                let part = x.narrow(0, range.start, range.len()).unwrap();
                part.to_dtype(DType::F64).unwrap()
            };
            let variables = [&q, &k, &v].map(|x| candle_core::Var::from_tensor(&part(x)).unwrap());
            let [q, k, v] = &variables;
            let want = reference(q, k, v, window, f64::from(scale));
            prop_assert!(worst(&part(&y), &want) < 1e-5);
            let loss = (want * part(&dy)).unwrap().sum_all().unwrap();
            let store = loss.backward().unwrap();
            for (variable, got) in variables.iter().zip(&gradients) {
                let want = store.get(variable.as_tensor()).unwrap();
                prop_assert!(worst(&part(got), want) < 2e-4, "{}", worst(&part(got), want));
            }
        }
    }
}

#[test]
fn sequences_past_the_last_row_are_refused() {
    let x = random((4, 2, 8));
    let options = CausalOptions {
        sequences: std::slice::from_ref(&(0..5)),
        window: None,
        scale: 1.0,
    };
    let error = causal_attention(&x, &x, &x, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("sequences to row 5"), "{error}");
}
