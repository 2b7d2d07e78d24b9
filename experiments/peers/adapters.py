"""Eight random LoRA adapters (PEFT) of the base, a0 to a7.

usage: adapters.py MODEL_FOLDER OUT_FOLDER          needs numpy, safetensors

Rank 16, alpha 32, on all projections, float32. Both factors are random, since a server could ignore
a fresh adapter, in which B = 0. They are small enough that the answers remain text. The seed is i.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from names import PROJECTIONS, shapes

COUNT, RANK, ALPHA = 8, 16, 32


def factors(config, seed):
    rng, found = np.random.default_rng(seed), {}
    for name, (rows, columns) in shapes(config).items():
        a = rng.standard_normal((RANK, columns), dtype=np.float32) / np.float32(np.sqrt(columns))
        b = rng.standard_normal((rows, RANK), dtype=np.float32) * np.float32(0.02)
        found |= {
            f"base_model.model.{name}.lora_A.weight": a,
            f"base_model.model.{name}.lora_B.weight": b,
        }
    return found


def main(model, out):
    config = json.loads((model / "config.json").read_text())
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(name.split(".")[1] for name in PROJECTIONS.values()),
    }
    for i in range(COUNT):
        folder = out / f"a{i}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = factors(config, i)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"{out}: {COUNT} adapters of {sum(t.size for t in tensors.values())} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
