"""Tickets of several tasks beside their controls: the table of benches/results/train-tasks.md.

usage: python3 benches/train/tasks.py --data FOLDER --work FOLDER [--tasks sql,boolq] [--calibrate N] [--steps N]

FOLDER holds TASK.train.jsonl, TASK.valid.jsonl and general.valid.jsonl. A task gives the calibrated full model,
a ticket of 1 % and one of 0.1 % from the same calibration, and a random mask of 1 % that is trained for as many
steps as both phases together. What is measured stays in WORK, and is not measured again; the table holds
all tasks that are there.
"""
import argparse
import json
import shutil
import subprocess
from pathlib import Path

from common import phases, processor, run

MATCH = {"sql": "sql", "gsm8k": "number", "boolq": "choice", "arc": "choice", "samsum": "rouge-l"}
ANSWER = {"sql": 96, "gsm8k": 256, "boolq": 16, "arc": 16, "samsum": 96}

ap = argparse.ArgumentParser()
ap.add_argument("--tombola", default="target/release/tombola")
ap.add_argument("--data", type=Path, required=True)
ap.add_argument("--work", type=Path, required=True)
ap.add_argument("--tasks", default="sql,gsm8k,boolq,arc,samsum")
ap.add_argument("--calibrate", type=int, default=30)
ap.add_argument("--steps", type=int, default=80)
ap.add_argument("--rows", type=int, default=100)
ap.add_argument("--max-length", type=int, default=256)
a = ap.parse_args()


def train(task, name, *more):
    if (a.work / f"{name}.safetensors").exists():
        return
    run([a.tombola, "train", "--data", a.data / f"{task}.train.jsonl", "--name", name, "--out", a.work,
         "--run-dir", a.work / "runs" / name, "--overwrite", "--max-length", a.max_length, "--steps", a.steps, *more])


def evaluate(task, data, model, tickets):
    rule = ["--match", MATCH[task], "--max-tokens", ANSWER[task]] if data == task else ["--no-answers"]
    named = [part for ticket in tickets for part in ("--ticket", a.work / f"{ticket}.safetensors")]
    command = [a.tombola, "eval", "--model", model, *named, "--data", a.data / f"{data}.valid.jsonl",
               "--limit", a.rows, "--json", *rule]
    print("$", *command, flush=True)
    text = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text)["results"]


def measure(task):
    calibrated = a.work / f"{task}-calibrated"
    if not (a.work / f"{task}.safetensors").exists():
        shutil.rmtree(calibrated, ignore_errors=True)
    train(task, task, "--calibrate-steps", a.calibrate, "--save-calibrated", calibrated)
    train(task, f"{task}-tenth", "--density", "0.001", "--calibrate-from", calibrated)
    train(task, f"{task}-random", "--score", "random", "--steps", a.calibrate + a.steps)
    tickets = [task, f"{task}-tenth", f"{task}-random"]
    rows = {name: {} for name in ["base", "calibrated", "ticket 1 %", "ticket 0.1 %", "random 1 %"]}
    for data in (task, "general"):
        results = evaluate(task, data, "smollm2-135m", tickets)
        results[1:1] = evaluate(task, data, calibrated, [])
        for row, result in zip(rows.values(), results):
            row[f"{data} loss" if data == "general" else "loss"] = result["loss"]
            if data == task:
                row["score"] = result.get("exact_match", result.get("rouge_l"))
    found = phases(a.work / "runs" / task)
    (a.work / f"{task}.json").write_text(json.dumps({
        "rows": rows, "calibrate": a.calibrate, "steps": a.steps, "valid_rows": a.rows, "max_length": a.max_length,
        "tokens_per_second": {k: v["tokens"] / v["seconds"] for k, v in found.items()}}, indent=1))
    shutil.rmtree(calibrated)


a.work.mkdir(parents=True, exist_ok=True)
for task in a.tasks.split(","):
    if not (a.work / f"{task}.json").exists():
        measure(task)

out = ["# Tickets of several tasks\n",
       "Made by `benches/train/tasks.py` (its usage says how) with the default base; learning rates and all else are the",
       f"defaults of `tombola train`. {processor()}.\n"]
for task in MATCH:
    path = a.work / f"{task}.json"
    if not path.exists():
        continue
    found = json.loads(path.read_text())
    score = "ROUGE-L" if MATCH[task] == "rouge-l" else "exact match"
    out += [f"## {task}\n",
            f"{found['calibrate']} steps to calibrate, {found['steps']} to adapt (the random mask: "
            f"{found['calibrate'] + found['steps']}), 8 rows of at most {found['max_length']} tokens a step; the first "
            f"{found['valid_rows']} validation rows.\n",
            f"| | valid loss | {score} | loss on general |", "|---|---:|---:|---:|"]
    out += [f"| {name} | {row['loss']:.3f} | {row['score']:.3f} | {row['general loss']:.3f} |"
            for name, row in found["rows"].items()] + [""]
Path("benches/results/train-tasks.md").write_text("\n".join(out))
print("\n".join(out))
