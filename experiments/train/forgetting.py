"""The effect of a second task on the first: the table of experiments/results/train-forgetting.md.

usage: python3 experiments/train/forgetting.py --data FOLDER --work FOLDER

The data folder holds TASK.train.jsonl and TASK.valid.jsonl of sql and gsm8k, and
general.valid.jsonl. SQL is trained first, then GSM8K in three ways: a plain fine-tune of all
weights, on top of a plain fine-tune on SQL; a ticket on top of the SQL ticket, which may move the
same weights (LoTA); one that may not (LoTTO). Measurements are kept in WORK/STEPS and not repeated.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from common import processor, run

ap = argparse.ArgumentParser()
ap.add_argument("--tombola", default="target/release/tombola")
ap.add_argument("--data", type=Path, required=True)
ap.add_argument("--work", type=Path, required=True)
ap.add_argument(
    "--first", type=int, nargs=2, default=[30, 80], help="calibration and adaptation steps, SQL"
)
ap.add_argument("--second", type=int, nargs=2, default=[10, 20], help="the same, GSM8K")
ap.add_argument("--rows", type=int, default=60, help="validation rows")
a = ap.parse_args()
BASE = "smollm2-135m"
a.work /= "-".join(str(steps) for steps in a.first + a.second)


def train(task, name, steps, batch, *more):
    if not (a.work / f"{name}.safetensors").exists():
        run(
            [
                a.tombola,
                "train",
                "--data",
                a.data / f"{task}.train.jsonl",
                "--name",
                name,
                "--out",
                a.work,
                "--run-dir",
                a.work / "runs" / name,
                "--overwrite",
                "--max-length",
                256,
                "--batch",
                batch,
                "--calibrate-steps",
                steps[0],
                "--steps",
                steps[1],
                *more,
            ]
        )


def plain(task, name, steps, batch, base):
    """The folder of a fine-tune of all weights: the calibrated base of a ticket that is not
    used."""
    folder = a.work / name
    if not (a.work / f"{name}-unused.safetensors").exists():
        shutil.rmtree(folder, ignore_errors=True)
    train(task, f"{name}-unused", [steps, 1], batch, "--model", base, "--save-calibrated", folder)
    return folder


def losses(model, ticket=None):
    named = ["--ticket", a.work / f"{ticket}.safetensors"] if ticket else []
    found = []
    for data in ("sql", "gsm8k", "general"):
        command = [
            a.tombola,
            "eval",
            "--model",
            model,
            *named,
            "--data",
            a.data / f"{data}.valid.jsonl",
            "--limit",
            a.rows,
            "--max-length",
            256,
            "--no-answers",
            "--json",
        ]
        print("$", *command, flush=True)
        text = subprocess.run(
            [str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        found.append(json.loads(text)["results"][-1]["loss"])
    return found


def merged(name, *tickets):
    if not (a.work / f"{name}.safetensors").exists():
        run(
            [
                a.tombola,
                "ticket",
                "merge",
                *[a.work / f"{t}.safetensors" for t in tickets],
                "--name",
                name,
                "--out",
                a.work / f"{name}.safetensors",
            ]
        )
    return name


def measure():
    train("sql", "sql", a.first, 8)
    sql = plain("sql", "plain-sql", a.first[0], 8, BASE)
    both = plain("gsm8k", "plain-both", sum(a.second), 4, sql)
    on_top = ["--on-top-of", a.work / "sql.safetensors"]
    train("gsm8k", "lota-second", a.second, 4, *on_top)
    train("gsm8k", "lotto-second", a.second, 4, *on_top, "--avoid", a.work / "sql.safetensors")
    return {
        "base": losses(BASE),
        "SQL, plain fine-tune": losses(sql),
        "then GSM8K, plain fine-tune": losses(both),
        "SQL, ticket of 1 %": losses(BASE, "sql"),
        "then GSM8K, LoTA": losses(BASE, merged("lota-both", "sql", "lota-second")),
        "then GSM8K, LoTTO": losses(BASE, merged("lotto-both", "sql", "lotto-second")),
    }


a.work.mkdir(parents=True, exist_ok=True)
kept = a.work / "forgetting.json"
if not kept.exists():
    kept.write_text(
        json.dumps(
            {"first": a.first, "second": a.second, "valid_rows": a.rows, "losses": measure()}
        )
    )
found = json.loads(kept.read_text())
(first, second), rows = (found["first"], found["second"]), found["valid_rows"]
out = [
    "# The effect of a second task on the first\n",
    "Made by `experiments/train/forgetting.py` (see its usage) with the default base. SQL, then GSM8K, in",
    f"rows of at most 256 tokens. Tickets: {first[0]} calibration and {first[1]} adaptation steps of 8 SQL rows,",
    f"then {second[0]} and {second[1]} steps of 4 GSM8K rows. Plain fine-tunes: {first[0]} and {sum(second)} steps at "
    "the learning rate",
    f"of a calibration. The losses are those of the first {rows} validation rows. {processor()}.\n",
    "| | loss on SQL | loss on GSM8K | loss on general |",
    "|---|---:|---:|---:|",
]
out += [
    f"| {name} | {sql:.3f} | {gsm8k:.3f} | {general:.3f} |"
    for name, (sql, gsm8k, general) in found["losses"].items()
]
Path("experiments/results/train-forgetting.md").write_text("\n".join(out) + "\n")
print("\n".join(out))
