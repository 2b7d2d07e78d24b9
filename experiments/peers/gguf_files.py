"""The base and its LoRA adapters as llama.cpp's GGUF files.

usage: gguf_files.py MODEL_FOLDER OUT_FOLDER {f32|bf16} [ADAPTER_FOLDER ...]
needs numpy, gguf, safetensors, ml_dtypes

Writes OUT_FOLDER/base-DTYPE.gguf and OUT_FOLDER/ADAPTER-DTYPE.gguf. The rows of q_proj and k_proj,
and of their LoRA factors B, take the order of llama.cpp's RoPE. Norms stay float32, as always in
llama.cpp.
"""

import json
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from names import CHECKPOINT, LAYER

GGUF_TOP = {name: key for key, name in CHECKPOINT.items()}
GGUF_LAYER = {name: key for key, name in LAYER.items()}


def gguf_name(stem):
    """model.layers.0.self_attn.q_proj -> blk.0.attn_q"""
    if stem in GGUF_TOP:
        return GGUF_TOP[stem]
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_LAYER[part]}"


def permuted(weight, stem, config):
    """The rows of q_proj and k_proj from (head, half, pair) to (head, pair, half); others
    unchanged."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(
        stem.split(".")[-1]
    )
    if heads is None:
        return weight
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def add(writer, name, weight, dtype):
    weight = np.ascontiguousarray(weight)
    if dtype == "bf16" and weight.ndim == 2:
        rows = weight.astype(ml_dtypes.bfloat16).view(
            np.uint8
        )  # the writer expects bf16 as rows of bytes
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, weight)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer, model, config, dtype):
    writer.add_name(model.name)
    writer.add_file_type(
        gguf.LlamaFileType.ALL_F32 if dtype == "f32" else gguf.LlamaFileType.MOSTLY_BF16
    )
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer, model, config):
    found = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in found["added_tokens"]}
    vocabulary = found["model"]["vocab"] | special
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(
        json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    )


def write_base(model, out, config, dtype):
    writer = gguf.GGUFWriter(out, "llama")
    describe(writer, model, config, dtype)
    add_tokenizer(writer, model, config)
    for key, weight in load_file(model / "model.safetensors").items():
        stem = key.removesuffix(".weight")
        add(writer, f"{gguf_name(stem)}.weight", permuted(weight, stem, config), dtype)
    finish(writer)


def write_adapter(folder, out, config, dtype):
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for key, weight in load_file(folder / "adapter_model.safetensors").items():
        stem, factor = (
            key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        )
        weight = permuted(weight, stem, config) if factor == "B" else weight
        add(writer, f"{gguf_name(stem)}.weight.lora_{factor.lower()}", weight, dtype)
    finish(writer)


def main(model, out, dtype, adapters):
    config = json.loads((model / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    write_base(model, out / f"base-{dtype}.gguf", config, dtype)
    for folder in adapters:
        write_adapter(folder, out / f"{folder.name}-{dtype}.gguf", config, dtype)
    print(f"{out}: the base and {len(adapters)} adapters in {dtype}")


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[3] not in ("f32", "bf16"):
        raise SystemExit(__doc__)
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], [Path(folder) for folder in sys.argv[4:]]
    )
