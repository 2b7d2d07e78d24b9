"""Random tickets of the base: 16 of 1 % (one-0 to one-15) and 8 of 0.1 % (tenth-0 to tenth-7).

usage: tickets.py TOMBOLA MODEL_FOLDER OUT_FOLDER          needs numpy, safetensors

Positions are random over all projections, deltas uniform in ±0.03, a few times as large as trained
ones. Each ticket is written as a flat file of deltas for `tombola ticket import`. Existing tickets
are kept.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from names import shapes

KINDS = {"one": (16, 0.01), "tenth": (8, 0.001)}  # count, density


def deltas(config, density, seed):
    """The sorted row-major positions (int32) and the deltas (float32) of each parameter."""
    rng, found = np.random.default_rng(seed), {}
    for name, (rows, columns) in shapes(config).items():
        kept = np.sort(rng.choice(rows * columns, round(density * rows * columns), replace=False))
        found[f"{name}.weight.indices"] = kept.astype(np.int32)
        found[f"{name}.weight.deltas"] = rng.uniform(-0.03, 0.03, kept.size).astype(np.float32)
    return found


def write(tombola, model, out, tensors):
    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder) / "flat.safetensors"
        save_file(tensors, flat)
        command = [
            tombola,
            "ticket",
            "import",
            flat,
            "--model",
            model,
            "--name",
            out.stem,
            "--out",
            out,
            "--source",
            "random",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tombola ticket import failed:\n{done.stderr[-2000:]}")


def main(tombola, model, out):
    config = json.loads((model / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    for kind, (count, density) in KINDS.items():
        for i in range(count):
            path = out / f"{kind}-{i}.safetensors"
            if not path.exists():
                write(tombola, model, path, deltas(config, density, [i, count]))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
