"""Start time and memory with many tickets."""

import json
import random
import struct
from collections import Counter
from itertools import accumulate

from client import complete
from server import Server

PARAMETER = "model.layers.0.self_attn.k_proj.weight"
ROWS, COLUMNS = 192, 576
NONZEROS = 64
WEIGHTS = 106_168_320  # adaptable weights of SmolLM2-135M


def write_tickets(folder, count, fingerprint):
    """Writes `count` small tickets of the default base, each with content of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"t{number:04}.safetensors"
        if not path.exists():
            path.write_bytes(ticket(number, fingerprint))


def ticket(seed, fingerprint):
    """A ticket in canonical form; docs/tickets.md explains it."""
    rng = random.Random(seed)
    kept = sorted(rng.sample(range(ROWS * COLUMNS), NONZEROS))
    per_row = Counter(position // COLUMNS for position in kept)
    offsets = [0, *accumulate(per_row[row] for row in range(ROWS))]
    # The upper half of an f32 is a bf16.
    deltas = b"".join(struct.pack("<f", rng.uniform(-0.05, 0.05))[2:] for _ in kept)
    parts = {
        "row_offsets": ("U32", ROWS + 1, struct.pack(f"<{ROWS + 1}I", *offsets)),
        "columns": ("U16", NONZEROS, struct.pack(f"<{NONZEROS}H", *(k % COLUMNS for k in kept))),
        "deltas": ("BF16", NONZEROS, deltas),
    }
    header, data = {}, b""
    for part, (dtype, length, content) in parts.items():
        header[f"{PARAMETER}.{part}"] = {
            "data_offsets": [len(data), len(data) + len(content)],
            "dtype": dtype,
            "shape": [length],
        }
        data += content
    header["__metadata__"] = {
        "base.fingerprint": fingerprint,
        "base.name": "smollm2-135m",
        "density": f"{NONZEROS / WEIGHTS:.20f}".rstrip("0"),
        "format": "lota-ticket",
        "name": "small",
        "version": "1",
    }
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def start(a, name, folder):
    """Seconds until ready, memory in MiB at rest and after requests, and the served tickets."""
    flags = ["--tickets", folder, "--ticket-mode", "overlay"]
    with Server(a.tombola, a.work / f"start-{name}.log", *flags) as server:
        rest = server.memory_mib()
        metrics = server.get("/metrics")[1].splitlines()
        count = next(line.split()[1] for line in metrics if line.startswith("tombola_tickets "))
        used = [f"t{number:04}" for number in range(0, int(float(count)), 100)]
        for model in used or ["smollm2-135m"]:
            complete(server, model, "a", 1)
        return server.ready_s, rest, server.memory_mib(), int(float(count)), len(used)


def section(a):
    empty, folder = a.work / "no-tickets", a.work / f"{a.tickets}-tickets"
    empty.mkdir(exist_ok=True)
    with Server(a.tombola, a.work / "base.log", "--tickets", empty) as server:
        fingerprint = json.loads(server.get("/v1/base")[1])["fingerprint"]
    write_tickets(folder, a.tickets, fingerprint)
    # The index of a run before would make the first start fast.
    for left in folder.glob("*"):
        if left.suffix != ".safetensors" and left.is_file():
            left.unlink()
    runs = [
        ("no tickets", start(a, "empty", empty)),
        (f"{a.tickets:,} tickets, first start", start(a, "first", folder)),
        (f"{a.tickets:,} tickets, next start", start(a, "second", folder)),
    ]
    base_s = runs[0][1][0]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    lines = [
        "## Start\n",
        f"{a.tickets:,} tickets of {NONZEROS} nonzeros ({size:.0f} MiB together) beside the default",
        "base: seconds from the start of the process until `GET /ready` answers 200, and resident",
        "memory. The target is 3 s beyond the base's own start.\n",
        "| | tickets served | seconds | beyond the base | MiB at rest | after requests under some |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (seconds, rest, used, count, some) in runs:
        lines.append(
            f"| {name} | {count:,} | {seconds:.2f} | {seconds - base_s:+.2f} | {rest:.0f} "
            f"| {used:.0f} ({some}) |"
        )
    return lines + [""]
