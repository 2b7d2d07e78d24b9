"""The report of deploy/gpu-check: benches/results/gpu.json and gpu.md from its logs.

usage: gpu_report.py FOLDER    (called by deploy/gpu-check run)
"""

import json
import pathlib
import sys

RESULTS = pathlib.Path("benches/results")


def main() -> None:
    [folder] = map(pathlib.Path, sys.argv[1:])
    steps = [line.split("\t") for line in (folder / "steps").read_text().splitlines()]
    steps = [dict(zip(("step", "status", "seconds", "summary"), step)) for step in steps]
    benches = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    # A bench that did not finish has no JSON.
    tables = [(folder / f"bench-{shape}.log").read_text() for shape in benches]
    gpu = (folder / "gpu").read_text().strip()
    report = {"gpu": gpu, "steps": steps, "benches": benches}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        "# On a GPU",
        "",
        f"{gpu}. Made by `deploy/gpu-check pack` and `deploy/gpu-check run`.",
        "",
    ]
    lines += ["| check | status | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {s['step']} | {s['status']} | {s['seconds']} | {s['summary']} |" for s in steps]
    # The tables come with their own first-level headings.
    text = (
        "\n".join(lines)
        + "\n\n"
        + "\n".join(table.replace("# A base", "## A base") for table in tables)
    )
    (RESULTS / "gpu.md").write_text(text)
    print(text)


main()
