"""Helpers of the training experiments: run a command, and read the metrics of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benches"))
from machine import processor  # noqa: E402, F401 (for the experiments)


def run(command, quiet=True):
    """Runs a command; returns its standard output and its peak memory in MiB."""
    command = [str(part) for part in command]
    print("$", " ".join(command), flush=True)
    out = subprocess.PIPE
    child = subprocess.Popen(
        command, stdout=out, stderr=subprocess.STDOUT if quiet else None, text=True
    )
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{command[0]} failed:\n{text[-3000:]}")
    return text, usage.ru_maxrss / 1024


def phases(folder):
    """Tokens, seconds and bytes of trainer state of each phase of a run."""
    found = {}
    for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "phase":
            found[event["phase"]] = {
                "bytes": event["bytes"],
                "trained": event["trained"],
                "tokens": 0,
                "seconds": 0.0,
            }
        elif event["event"] == "step":
            phase = found[event["phase"]]
            phase["tokens"] += event["tokens"]
            phase["seconds"] += event["seconds"]
    return found
