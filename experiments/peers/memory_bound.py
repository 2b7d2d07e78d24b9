"""Upper bound on Tombola's memory."""

import json
import math
import subprocess

BYTES = {"f32": 4, "bf16": 2}  # per weight


def memory_bound(setup, dtype):
    """The bound in MiB without the KV cache: the weights, 50 MB, and for each ticket 16 bytes per
    nonzero and 4 per row."""
    total = parameters(setup.folder / "model/model.safetensors") * BYTES[dtype] + 50e6
    for ticket in sorted((setup.folder / "tickets").iterdir()):
        about = json.loads(
            subprocess.check_output([setup.tombola, "ticket", "inspect", "--json", ticket])
        )
        total += 16 * about["nonzeros"] + 4 * sum(
            projection["rows"] for projection in about["projections"]
        )
    return total / 2**20


def parameters(safetensors):
    """The number of weights in a file."""
    with safetensors.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )
