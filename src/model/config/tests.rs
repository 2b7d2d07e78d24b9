use super::*;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 112, "vocab_size": 256,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "eos_token_id": [2, 3],
    })
}

fn parse(changes: Value) -> Result<ModelConfig, String> {
    let mut config = base();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string())
}

fn scaling_with_type(kind: &str) -> Value {
    json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_type": kind,
    })
}

#[test]
fn old_and_new_rope_spellings_agree() {
    let scaling = scaling_with_type("llama3");
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500000.0);
    let old = parse(json!({"rope_theta": 500000.0, "rope_scaling": scaling})).unwrap();
    let new = parse(json!({"rope_parameters": parameters})).unwrap();
    assert_eq!(old, new);
    assert_eq!(old.rope_theta, 500_000.0);
    let mut both = scaling_with_type("llama3");
    both["type"] = json!("llama3");
    let both = parse(json!({"rope_theta": 500000.0, "rope_scaling": both})).unwrap();
    assert_eq!(both, new);
    assert!(matches!(
        old.rope_scaling,
        RopeScaling::Llama3 { factor: 8.0, .. }
    ));
}

#[test]
fn defaults_follow_the_family() {
    let llama = parse(json!({})).unwrap();
    assert_eq!(
        (llama.head_dim, llama.qkv_bias, llama.qk_norm),
        (16, false, false)
    );
    assert_eq!(llama.eos_token_ids, [2, 3]);
    let qwen2 = parse(json!({"model_type": "qwen2"})).unwrap();
    assert_eq!((qwen2.qkv_bias, qwen2.output_bias), (true, false));
    assert!(parse(json!({"model_type": "qwen3"})).unwrap().qk_norm);
}

#[test]
fn windows_follow_the_family() {
    let mistral = parse(json!({"model_type": "mistral", "sliding_window": 16})).unwrap();
    assert_eq!(mistral.windows, [Some(16); 3]);
    let mistral = parse(json!({"model_type": "mistral", "sliding_window": null})).unwrap();
    assert_eq!(mistral.windows, [None; 3]);
    let qwen = json!({
        "model_type": "qwen2", "sliding_window": 16, "use_sliding_window": true,
        "max_window_layers": 2,
    });
    assert_eq!(parse(qwen).unwrap().windows, [None, None, Some(16)]);
}

#[test]
fn unsupported_and_impossible_configurations_are_refused() {
    for (change, word) in [
        (json!({"model_type": "gemma"}), "gemma"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
            "yarn",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
            "low_freq_factor",
        ),
        (json!({"num_key_value_heads": 3}), "evenly"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"head_dim": 15}), "15"),
        (json!({"vocab_size": -1}), "vocab_size"),
        (
            json!({"num_hidden_layers": 1_000_000_000_000u64}),
            "num_hidden_layers",
        ),
    ] {
        let error = parse(change).unwrap_err();
        assert!(
            error.contains(word) || error.contains("invalid value"),
            "{word}: {error}"
        );
    }
}

#[test]
fn numbers_that_make_no_logits_finite_are_refused() {
    let scaled = |name: &str, value: Value| {
        let mut scaling = scaling_with_type("llama3");
        scaling[name] = value;
        json!({"rope_scaling": scaling})
    };
    for (change, message) in [
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps is -1"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
        (json!({"rope_theta": 0.0}), "rope_theta is 0"),
        (json!({"rope_theta": -5.0}), "rope_theta is -5"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}),
            "rope factor is 0",
        ),
        (scaled("factor", json!(-8.0)), "rope factor is -8"),
        (
            scaled("low_freq_factor", json!(0.0)),
            "low_freq_factor is 0",
        ),
        (scaled("high_freq_factor", json!(1.0)), "expected less than"),
        (
            scaled("original_max_position_embeddings", json!(0)),
            "original_max_position_embeddings is 0",
        ),
    ] {
        let error = parse(change.clone()).expect_err(&change.to_string());
        assert!(error.contains(message), "{message}: {error}");
    }
    let mut config = parse(json!({})).unwrap();
    let mut divisors = vec![1.0; config.head_dim / 2];
    divisors[3] = f32::NAN;
    config.rope_scaling = RopeScaling::Divisors(divisors);
    let error = config.check().unwrap_err();
    assert!(error.contains("a rope divisor is NaN"), "{error}");
}
