"""The default base as a Hugging Face folder in float32, from its GGUF file.

usage: model.py IN.gguf OUT_FOLDER          needs numpy, gguf, safetensors, tokenizers

Quantised weights are dequantised exactly, so that all servers compute with the same numbers as
Tombola. The rows of q_proj and k_proj, which GGUF keeps in the order of llama.cpp's RoPE, take the
checkpoint's order. Only for SmolLM2.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from names import CHECKPOINT, LAYER

CONTROL = 3  # the token type of `<|im_start|>` and other special tokens


def checkpoint_name(name):
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight"""
    stem = name.removesuffix(".weight")
    if stem in CHECKPOINT:
        return f"{CHECKPOINT[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.weight"


def unpermute(weight, heads):
    """Rows (head, pair, half) -> (head, half, pair)."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def weights(reader, heads, kv_heads):
    found = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape(
            [int(size) for size in reversed(tensor.shape)]
        )  # GGUF lists the fastest axis first
        for part, count in ((".attn_q.", heads), (".attn_k.", kv_heads)):
            if part in tensor.name:
                weight = unpermute(weight, count)
        found[checkpoint_name(tensor.name)] = np.ascontiguousarray(weight)
    return found


def tokenizer(get, tokens, special):
    merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return made


def config(get, ids, tokens, tied):
    heads, hidden = get("llama.attention.head_count"), get("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "vocab_size": len(tokens),
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": float(f"{get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": get("llama.rope.freq_base"),
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **ids,
    }


def tokenizer_config(get, ids, tokens, special):
    bos, eos, pad = (tokens[ids[f"{name}_token_id"]] for name in ("bos", "eos", "pad"))
    unknown = tokens[get("tokenizer.ggml.unknown_token_id")]
    plain = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": get("llama.context_length"),
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "pad_token": pad,
        "additional_special_tokens": [bos, eos],
        "added_tokens_decoder": {
            str(tokens.index(token)): {"content": token, **plain} for token in special
        },
        "chat_template": get("tokenizer.chat_template"),
    }


def main(source, out):
    reader = GGUFReader(source)

    def get(key):
        return reader.fields[key].contents()

    if (found := get("tokenizer.ggml.pre")) != "smollm":
        raise SystemExit(f"{source} has the pre-tokenizer {found}; expected smollm")
    tokens, kinds = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds) if kind == CONTROL]
    ids = {
        f"{name}_token_id": get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    tensors = weights(
        reader, get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer(get, tokens, special).save(str(out / "tokenizer.json"))
    for name, value in (
        ("config", config(get, ids, tokens, "lm_head.weight" not in tensors)),
        ("tokenizer_config", tokenizer_config(get, ids, tokens, special)),
        ("generation_config", ids),
    ):
        (out / f"{name}.json").write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(
        f"{out}: {len(tensors)} tensors, {sum(t.size for t in tensors.values())} parameters, "
        f"{len(tokens)} tokens"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
