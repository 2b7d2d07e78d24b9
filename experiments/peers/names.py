"""Names of a Llama model's parameters in llama.cpp's files (keys) and in checkpoints (values)."""

CHECKPOINT = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# The matrices that adapters and tickets change.
PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

LAYER = PROJECTIONS | {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def shapes(config):
    """[out, in] of each projection, by its checkpoint name; `config` is the content of
    config.json."""
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    by_part = {
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    return {
        f"model.layers.{layer}.{PROJECTIONS[part]}": shape
        for layer in range(config["num_hidden_layers"])
        for part, shape in by_part.items()
    }
