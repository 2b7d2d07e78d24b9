"""Criterion's measurements as the tables of benches/results/cpu.md.

usage: cargo bench && python3 benches/report.py > benches/results/cpu.md

Medians, with the 95 % confidence interval of the median. The same run measures floors: the bytes
that a case has to move and the multiply-adds that it has to do. A row is compared with the larger
of the floors of its case and of its group.
"""

import json
import os
import re
from pathlib import Path

from machine import processor

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "criterion"


def measurements():
    """(group, function, elements, median ns, lower, upper), from criterion's files."""
    for path in sorted(TARGET.glob("*/*/new/benchmark.json")):
        about = json.loads(path.read_text())
        estimates = json.loads((path.parent / "estimates.json").read_text())["median"]
        interval = estimates["confidence_interval"]
        elements = (about["throughput"] or {}).get("Elements", 1)
        yield (
            about["group_id"],
            about["function_id"],
            elements,
            estimates["point_estimate"],
            interval["lower_bound"],
            interval["upper_bound"],
        )


def order(row):
    """Floors first, then cases by the numbers in their names."""
    name = row[1]
    return (
        not name.startswith("floor"),
        name.startswith("prefill"),
        [float(n) for n in re.findall(r"[\d.]+", name)],
    )


def floor_of(name, floors):
    """The larger of a case's floors in ns, or None."""
    own = [ns for floor, ns in floors if floor.endswith(f" of {name}") or " of " not in floor]
    return max(own, default=None)


def table(title, unit, rows):
    print(f"\n## {title}\n")
    print(f"| | median | interval | {unit} | share of the floor |")
    print("|---|---:|---:|---:|---:|")
    floors = [(row[1], row[3]) for row in rows if row[1].startswith("floor")]
    for _, name, elements, median, lower, upper in sorted(rows, key=order):
        is_floor = name.startswith("floor")
        per = (
            f"{median / elements:.2f}"
            if unit == "ns per nonzero"
            else f"{elements * 1e9 / median:,.0f}"
        )
        floor = None if is_floor or name.startswith("prefill") else floor_of(name, floors)
        share = f"{floor / median:.2f}" if floor else ""
        interval = f"{lower / 1e6:.2f}–{upper / 1e6:.2f}"
        print(
            f"| {name} | {median / 1e6:.2f} ms | {interval} | {'' if is_floor else per} | {share} |"
        )


groups = {}
for row in measurements():
    groups.setdefault(row[0], []).append(row)
print("# Measured on the CPU\n")
print(
    "Made by `cargo bench && python3 benches/report.py > benches/results/cpu.md`; the files in `benches/`"
)
print(f"explain the rows. {processor()}; the machine is shared, so compare rows within a run.")
print("A row's floor is the larger of the floors above it for its case and for its group.")
for group, rows in sorted(groups.items()):
    title = f"steps in {group}" if group in ("f32", "bf16") else group
    table(title, "ns per nonzero" if group.startswith("swap") else "rows/s", rows)
