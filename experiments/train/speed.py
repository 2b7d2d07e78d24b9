"""Training speed and memory of Tombola and of a plain PyTorch implementation, measured in turn.

usage: python3 experiments/train/speed.py --python PYTHON --reference train_reference.py \
           --folder BASE_FOLDER --data sql.train.jsonl --valid sql.valid.jsonl

Writes experiments/results/train-speed.md; the committed one was made with --steps 4 --rounds 2.
PYTHON has torch and transformers; BASE_FOLDER is the default base as a Hugging Face folder.
train_reference.py, a LoTA trainer in plain PyTorch, is not part of this repository. It takes the
arguments that `pytorch` passes below, and prints a JSON object per phase with `phase` and `tok_s`.
The data files are described in adapters/README.md. Both train the same rows in the same order, 8
rows of at most 128 tokens per step, in float32 on all cores. Both count the tokens without padding.
Medians over the rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from common import phases, processor, run

ap = argparse.ArgumentParser()
ap.add_argument("--tombola", default="target/release/tombola")
ap.add_argument("--python", required=True)
ap.add_argument("--reference", required=True)
ap.add_argument("--folder", required=True)
ap.add_argument("--data", required=True)
ap.add_argument("--valid", required=True)
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--steps", type=int, default=6)
a = ap.parse_args()


def pytorch(work):
    text, peak = run(
        [
            a.python,
            a.reference,
            a.folder,
            a.data,
            a.valid,
            work / "x.safetensors",
            "--calibrate",
            a.steps,
            "--steps",
            a.steps,
            "--batch",
            8,
            "--len",
            128,
            "--lr-cal",
            "3e-5",
            "--lr",
            "3e-4",
            "--valid-rows",
            8,
        ]
    )
    speed = {}
    for line in text.splitlines():
        if line.startswith("{") and "phase" in (event := json.loads(line)):
            speed[event["phase"]] = event["tok_s"]
    return {
        "calibrate": speed["calibrate"],
        "adapt": speed["adapt"],
        "peak": peak,
        "adapt_peak": peak,
    }


def tombola(work):
    def train(name, *more):
        command = [
            a.tombola,
            "train",
            "--data",
            a.data,
            "--name",
            name,
            "--out",
            work,
            "--run-dir",
            work / name,
            "--calibrate-steps",
            a.steps,
            "--steps",
            a.steps,
            "--lr",
            "3e-4",
            "--batch",
            8,
            "--max-length",
            128,
            "--no-shuffle",
            *more,
        ]
        _, peak = run(command)
        found = phases(work / name)
        return {k: v["tokens"] / v["seconds"] for k, v in found.items()}, peak, found

    speed, peak, found = train("whole")
    _, adapt_peak, _ = train("adapt", "--mask-from", work / "whole.safetensors")
    return {
        "calibrate": speed["calibrate"],
        "adapt": speed["adapt"],
        "peak": peak,
        "adapt_peak": adapt_peak,
        "calibrate_bytes": found["calibrate"]["bytes"],
        "adapt_bytes": found["adapt"]["bytes"],
    }


# The dense products of a step in PyTorch: on the default base's projections ([out, in] of the fused
# weights), with as many rows as a step has.
LIMIT = """
import json, statistics, time, torch
torch.set_num_threads(%d)
rows, layers, shapes = 800, 30, [(960, 576), (576, 576), (3072, 576), (576, 1536)]
seconds = {"forward": 0.0, "dx": 0.0, "dw": 0.0}
for out, inner in shapes:
    x, w, dy = torch.randn(rows, inner), torch.randn(out, inner), torch.randn(rows, out)
    for name, product in [("forward", lambda: x @ w.T), ("dx", lambda: dy @ w), ("dw", lambda: dy.T @ x)]:
        times = []
        for _ in range(12):
            start = time.perf_counter()
            product()
            times.append(time.perf_counter() - start)
        seconds[name] += layers * statistics.median(times)
flops = 2 * rows * layers * sum(out * inner for out, inner in shapes)
both = seconds["forward"] + seconds["dx"]
print(json.dumps({"adapt": rows / both, "calibrate": rows / (both + seconds["dw"]),
                  "gflops": 3 * flops / (both + seconds["dw"]) / 1e9}))
"""


def limit():
    text, _ = run([a.python, "-c", LIMIT % os.cpu_count()])
    return json.loads(text.splitlines()[-1])


rounds = {"PyTorch": [], "Tombola": [], "limit": []}
for _ in range(a.rounds):
    with tempfile.TemporaryDirectory() as work:
        rounds["PyTorch"].append(pytorch(Path(work)))
        rounds["Tombola"].append(tombola(Path(work)))
        rounds["limit"].append(limit())
median = {
    trainer: {key: statistics.median(r[key] for r in runs) for key in runs[0]}
    for trainer, runs in rounds.items()
}
p, t, ceiling = median["PyTorch"], median["Tombola"], median["limit"]


def log(line=""):
    out.append(line)


out = []
log("# Training beside PyTorch\n")
log(
    f"Made by `experiments/train/speed.py --steps {a.steps} --rounds {a.rounds} …` (see its usage). SmolLM2-135M,"
)
log(
    f"float32, steps of 8 SQL rows of at most 128 tokens, {a.steps} to calibrate and {a.steps} to adapt,"
)
log(f"medians of {a.rounds} rounds in turn. {processor()}.\n")
log("| | PyTorch | Tombola | ratio | products of the projections alone |")
log("|---|---:|---:|---:|---:|")
for phase in ("calibrate", "adapt"):
    log(
        f"| {phase}, tokens/s | {p[phase]:.0f} | {t[phase]:.0f} | {t[phase] / p[phase]:.2f} | {ceiling[phase]:.0f} |"
    )
log(
    f"| peak memory of a whole run, MiB | {p['peak']:.0f} | {t['peak']:.0f} | {t['peak'] / p['peak']:.2f} | |"
)
log(
    f"| peak memory of adapting alone (`--mask-from`), MiB | {p['adapt_peak']:.0f} | {t['adapt_peak']:.0f} | {t['adapt_peak'] / p['adapt_peak']:.2f} | |"
)
log(
    "\nThe last column is the speed of a step that consists of the dense products of the projections alone"
)
log("(forward and the gradient of the input; in calibration also that of the weight), at the")
log(f"{ceiling['gflops']:.0f} GFLOP/s that PyTorch reaches on these shapes here.")
log(
    f"\nGradients, optimizer state and masters: {t['calibrate_bytes']:,.0f} bytes to calibrate, {t['adapt_bytes']:,.0f} to adapt"
)
log("at 1 %. (PyTorch's peak is that of its one process, which runs both phases.)")
Path("experiments/results/train-speed.md").write_text("\n".join(out) + "\n")
print("\n".join(out))
