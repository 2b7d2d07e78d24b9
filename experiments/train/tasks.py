"""Tickets of several tasks and their controls: the tables of experiments/results/train-tasks.md.

usage: python3 experiments/train/tasks.py --data FOLDER --work FOLDER [--tasks sql,boolq]

The data folder holds TASK.train.jsonl, TASK.valid.jsonl and general.valid.jsonl. Each task gives
the calibrated model, tickets of 1 % and of 0.1 % from the same calibration, and a random mask of 1
% trained for as many steps as both phases. Measurements are kept in WORK/TASK-STEPS-STEPS and not
repeated; the report holds all of them. Rows are cut for training and measured whole.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from common import phases, processor, run


class Task(NamedTuple):
    """Settings of a task. Tasks with long rows get fewer steps."""

    match: str
    answer: int  # tokens
    license: str
    calibrate: int  # steps
    adapt: int  # steps
    rows: int  # of the validation file


TASKS = {
    "sql": Task("sql", 96, "CC-BY-4.0", 30, 80, 100),
    "gsm8k": Task("number", 192, "MIT", 10, 20, 30),
    "boolq": Task("choice", 16, "CC-BY-SA-3.0", 30, 80, 100),
    "arc": Task("choice", 16, "CC-BY-SA-4.0", 20, 40, 100),
    "samsum": Task("rouge-l", 64, "CC-BY-NC-ND-4.0", 6, 12, 40),
}

ap = argparse.ArgumentParser()
ap.add_argument("--tombola", default="target/release/tombola")
ap.add_argument("--data", type=Path, required=True)
ap.add_argument("--work", type=Path, required=True)
ap.add_argument("--tasks", default=",".join(TASKS))
ap.add_argument("--max-length", type=int, default=256)
a = ap.parse_args()


def folder(task):
    """The folder of a task's results, by its numbers of steps."""
    plan = TASKS[task]
    return a.work / f"{task}-{plan.calibrate}-{plan.adapt}"


def train(task, name, *more):
    if (folder(task) / f"{name}.safetensors").exists():
        return
    run(
        [
            a.tombola,
            "train",
            "--data",
            a.data / f"{task}.train.jsonl",
            "--name",
            name,
            "--out",
            folder(task),
            "--run-dir",
            folder(task) / "runs" / name,
            "--overwrite",
            "--max-length",
            a.max_length,
            "--license",
            TASKS[task].license,
            *more,
        ]
    )


def evaluate(task, data, model, tickets):
    plan = TASKS[task]
    rule = (
        ["--match", plan.match, "--max-tokens", plan.answer] if data == task else ["--no-answers"]
    )
    named = [
        part for ticket in tickets for part in ("--ticket", folder(task) / f"{ticket}.safetensors")
    ]
    command = [
        a.tombola,
        "eval",
        "--model",
        model,
        *named,
        "--data",
        a.data / f"{data}.valid.jsonl",
        "--limit",
        plan.rows,
        "--json",
        *rule,
    ]
    print("$", *command, flush=True)
    text = subprocess.run(
        [str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(text)["results"]


def measure(task):
    plan = TASKS[task]
    calibrated = folder(task) / "calibrated"
    if not (folder(task) / f"{task}.safetensors").exists():
        shutil.rmtree(calibrated, ignore_errors=True)
    train(
        task,
        task,
        "--calibrate-steps",
        plan.calibrate,
        "--steps",
        plan.adapt,
        "--save-calibrated",
        calibrated,
    )
    train(
        task,
        f"{task}-tenth",
        "--density",
        "0.001",
        "--calibrate-from",
        calibrated,
        "--steps",
        plan.adapt,
    )
    train(task, f"{task}-random", "--score", "random", "--steps", plan.calibrate + plan.adapt)
    tickets = [task, f"{task}-tenth", f"{task}-random"]
    rows = {name: {} for name in ["base", "calibrated", "ticket 1 %", "ticket 0.1 %", "random 1 %"]}
    for data in (task, "general"):
        results = evaluate(task, data, "smollm2-135m", tickets)
        results[1:1] = evaluate(task, data, calibrated, [])
        for row, result in zip(rows.values(), results, strict=True):
            row[f"{data} loss" if data == "general" else "loss"] = result["loss"]
            if data == task:
                row["score"] = result.get("exact_match", result.get("rouge_l"))
    found = phases(folder(task) / "runs" / task)
    (folder(task) / "results.json").write_text(
        json.dumps(
            {
                "rows": rows,
                "plan": plan._asdict(),
                "max_length": a.max_length,
                "tokens_per_second": {k: v["tokens"] / v["seconds"] for k, v in found.items()},
            },
            indent=1,
        )
    )


for task in a.tasks.split(","):
    folder(task).mkdir(parents=True, exist_ok=True)
    if not (folder(task) / "results.json").exists():
        measure(task)

out = [
    "# Tickets of several tasks\n",
    "Made by `experiments/train/tasks.py` (see its usage) with the default base. Other settings are the",
    f"defaults of `tombola train`. {processor()}.\n",
]
for task in TASKS:
    path = folder(task) / "results.json"
    if not path.exists():
        continue
    found = json.loads(path.read_text())
    plan = Task(**found["plan"])
    score = "ROUGE-L" if plan.match == "rouge-l" else "exact match"
    out += [
        f"## {task}\n",
        f"{plan.calibrate} calibration and {plan.adapt} adaptation steps (the random mask: "
        f"{plan.calibrate + plan.adapt}) of 8 rows of at most {found['max_length']} tokens.\n"
        f"Measured on the first {plan.rows} rows of each validation file (`general` has 40).\n",
        f"| | valid loss | {score} | loss on general |",
        "|---|---:|---:|---:|",
    ]
    out += [
        f"| {name} | {row['loss']:.3f} | {row['score']:.3f} | {row['general loss']:.3f} |"
        for name, row in found["rows"].items()
    ] + [""]
Path("experiments/results/train-tasks.md").write_text("\n".join(out))
print("\n".join(out))
