//! The decoder: independence from batching, and agreement with candle-transformers' models.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tombola::model::{Base, Dtype};

use crate::support::bases::{TINY, load_tiny, tiny_folder};
use crate::support::player::{Player, logprobs};

/// The largest absolute difference.
fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Runs prompts together: each step takes the next chunk of each, `cuts` long, in the order
/// `order`. Returns the last log-probabilities of each prompt.
fn together(base: &Base, prompts: &[Vec<u32>], cuts: &[usize], order: &[usize]) -> Vec<Vec<f32>> {
    let mut player = Player::new(base, prompts.len(), 80);
    let mut done = vec![0; prompts.len()];
    let mut last = vec![Vec::new(); prompts.len()];
    for (turn, &cut) in cuts.iter().cycle().enumerate() {
        let mut chunks = Vec::new();
        for i in 0..prompts.len() {
            let sequence = (i + order[turn % order.len()]) % prompts.len();
            let left = &prompts[sequence][done[sequence]..];
            let chunk = &left[..left.len().min(cut + i)];
            if !chunk.is_empty() {
                chunks.push((sequence, chunk));
                done[sequence] += chunk.len();
            }
        }
        if chunks.is_empty() {
            return last;
        }
        for ((sequence, _), row) in chunks.iter().zip(player.step(&chunks)) {
            last[*sequence] = row;
        }
    }
    last
}

#[test]
fn log_probabilities_do_not_depend_on_batch_chunks_or_place() {
    let prompts = prop::collection::vec(prop::collection::vec(3u32..256, 1..70), 1..5);
    let cuts = prop::collection::vec(1usize..40, 1..4);
    let order = prop::collection::vec(0usize..4, 1..4);
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        let mut runner = TestRunner::new(Config::with_cases(12));
        let property = |(prompts, cuts, order): (Vec<Vec<u32>>, Vec<usize>, Vec<usize>)| {
            let company = together(&base, &prompts, &cuts, &order);
            for (prompt, company) in prompts.iter().zip(&company) {
                let alone = Player::new(&base, 1, 80).step(&[(0, prompt)]).remove(0);
                let difference = worst(&alone, company);
                prop_assert!(difference <= 1e-4, "{name}: {difference}");
                // The CPU kernels promise more: the same bits.
                prop_assert_eq!(&alone, company);
            }
            Ok(())
        };
        runner
            .run(&(prompts.clone(), cuts.clone(), order.clone()), property)
            .unwrap();
    }
}

/// A tiny model for candle-transformers: its weights, and its configuration with the keys that the
/// structs there require.
fn tiny_files(name: &str) -> (VarBuilder<'static>, serde_json::Value) {
    let folder = tiny_folder(name);
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu);
    let vars = VarBuilder::from_tensors(tensors.unwrap(), DType::F32, &Device::Cpu);
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rope = config["rope_parameters"].clone();
    config["rope_theta"] = rope["rope_theta"].clone();
    if rope["rope_type"] == "llama3" {
        config["rope_scaling"] = rope;
    }
    (vars, config)
}

/// Log-probabilities after a prompt, by candle-transformers.
fn candle_logprobs(name: &str, prompt: &[u32]) -> Vec<f32> {
    let (vars, config) = tiny_files(name);
    let input = Tensor::new(prompt, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let logits = match name {
        "llama-untied" | "llama3-rope" => {
            let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let model = llama::Llama::load(vars, &config).unwrap();
            model.forward(&input, 0, &mut cache).unwrap()
        }
        "mistral-window" => {
            let mut config: mistral::Config = serde_json::from_value(config).unwrap();
            // Its window excludes the current position; that of transformers includes it.
            config.sliding_window = config.sliding_window.map(|window| window - 1);
            let mut model = mistral::Model::new(&config, vars).unwrap();
            model.forward(&input, 0).unwrap()
        }
        "qwen2" => {
            let mut config = config;
            // The struct there allows no null: a window as long as the context has no effect.
            config["sliding_window"] = config["max_position_embeddings"].clone();
            let config: qwen2::Config = serde_json::from_value(config).unwrap();
            let mut model = qwen2::ModelForCausalLM::new(&config, vars).unwrap();
            model.forward(&input, 0).unwrap()
        }
        "qwen3" => {
            let config: qwen3::Config = serde_json::from_value(config).unwrap();
            let mut model = qwen3::ModelForCausalLM::new(&config, vars).unwrap();
            model.forward(&input, 0).unwrap()
        }
        other => panic!("no second judge for {other}"),
    };
    let vocab = logits.dims().last().copied().unwrap();
    logprobs(&logits.reshape(((), vocab)).unwrap())
        .pop()
        .unwrap()
}

#[test]
fn candle_transformers_agrees() {
    for name in TINY {
        let base = load_tiny(name, Dtype::F32);
        for length in [1, 7, 40] {
            let prompt: Vec<u32> = (0..length).map(|i| (i * 37 + 11) % 256).collect();
            let ours = Player::new(&base, 1, 40).step(&[(0, &prompt)]).remove(0);
            let difference = worst(&ours, &candle_logprobs(name, &prompt));
            assert!(difference < 1e-4, "{name}, {length} tokens: {difference}");
        }
    }
}
