//! The hand-written backward pass against finite differences, and the forward pass against serving.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::support::bases::TINY;
use crate::support::player::Player;

/// Dense gradients of all slots.
#[derive(Default)]
struct Dense(BTreeMap<Slot, Tensor>);

impl Dense {
    fn put(&mut self, slot: Slot, gradient: Tensor) -> candle_core::Result<()> {
        let sum = match self.0.remove(&slot) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(slot, sum);
        Ok(())
    }
}

impl Gradients for Dense {
    fn everything(&self) -> bool {
        true
    }

    fn product(&mut self, slot: Slot, x: &Tensor, dy: &Tensor) -> candle_core::Result<()> {
        self.put(slot, dy.t()?.matmul(x)?)
    }

    fn add(&mut self, slot: Slot, gradient: &Tensor) -> candle_core::Result<()> {
        self.put(slot, gradient.clone())
    }

    fn add_rows(&mut self, slot: Slot, rows: &[u32], values: &Tensor) -> candle_core::Result<()> {
        let (cpu, device) = (Device::Cpu, values.device());
        let (rows, vocab) = (Tensor::new(rows, &cpu)?, 256);
        let zeros = Tensor::zeros((vocab, values.dim(1)?), DType::F32, &cpu)?;
        let sum = zeros.index_add(&rows, &values.to_device(&cpu)?, 0)?;
        self.put(slot, sum.to_device(device)?)
    }
}

fn rows() -> Rows {
    let mut rows = Rows::default();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 250).collect();
    rows.push(&tokens[..23], &[5..9, 12..23]);
    rows.push(&tokens[20..], std::slice::from_ref(&(1..17)));
    rows
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let products = (a * b).unwrap().to_device(&Device::Cpu).unwrap();
    let products = products.to_dtype(DType::F64).unwrap();
    products.sum_all().unwrap().to_scalar().unwrap()
}

fn random_like(tensor: &Tensor, rng: &mut StdRng) -> Tensor {
    let values: Vec<f32> = (0..tensor.elem_count())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap()
}

/// The slope of the loss equals the gradient, along the gradient itself and along random
/// directions.
#[test]
fn gradients_equal_finite_differences_in_all_families() {
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        for checkpointing in [false, true] {
            let backprop = Backprop {
                decoder: &base.decoder,
                checkpointing,
            };
            let rows = rows();
            let mut rng = StdRng::seed_from_u64(5);
            let mut dense = Dense::default();
            let weight = 1.0 / rows.targets.len() as f32;
            backprop.gradients(&rows, weight, &mut dense).unwrap();
            let tied = base.decoder.config().tie_word_embeddings;
            let slots = Slot::all(base.decoder.weights(), tied);
            assert_eq!(
                slots.len(),
                dense.0.len(),
                "{name}: every tensor has a gradient"
            );
            for slot in slots {
                let tensor = slot.tensor(base.decoder.weights()).unwrap();
                let gradient = &dense.0[&slot];
                let before = tensor.copy().unwrap();
                let slope = |direction: &Tensor, step: f64| {
                    let at = |sign: f64| {
                        let moved = &before + (direction * (sign * step)).unwrap();
                        tensor.slice_set(&moved.unwrap(), 0, 0).unwrap();
                        mean(&backprop, &rows)
                    };
                    let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
                    tensor.slice_set(&before, 0, 0).unwrap();
                    slope
                };
                let total = dot(gradient, gradient).sqrt();
                let own = slope(&(gradient / total).unwrap(), 2e-2 / total.max(1.0));
                let near = (own - total).abs() < 0.02 * total + 2e-3;
                assert!(near, "{name} {slot}: {total}, the loss's slope {own}");
                // A random direction covers every part of the tensor: a missing part of the
                // gradient shows up as about its norm over the square root of the number of
                // weights.
                let weights = gradient.elem_count() as f64;
                for _ in 0..3 {
                    let random = random_like(gradient, &mut rng);
                    let direction = (&random / dot(&random, &random).sqrt()).unwrap();
                    let want = dot(gradient, &direction);
                    let got = slope(&direction, 0.1);
                    let near = (got - want).abs() < 0.2 * total / weights.sqrt() + 2e-4;
                    assert!(near, "{name} {slot}: {want}, the loss's slope {got}");
                }
            }
        }
    }
}

#[test]
fn the_training_forward_pass_is_the_serving_one() {
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        let backprop = Backprop {
            decoder: &base.decoder,
            checkpointing: false,
        };
        let rows = rows();
        let logits = backprop
            .all_logits(&rows)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for range in &rows.sequences {
            for end in range.clone() {
                let tokens = &rows.tokens[range.start..=end];
                let mut player = Player::new(&base, 1, 48);
                let served = player
                    .logits(&[(0, tokens)])
                    .to_vec2::<f32>()
                    .unwrap()
                    .remove(0);
                let pairs = served.iter().zip(&logits[end]);
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-4, "{name}: {worst}");
            }
        }
    }
}
