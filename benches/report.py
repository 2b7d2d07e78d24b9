"""Turns what criterion measured into the tables of benches/results/cpu.md.

usage: cargo bench && python3 benches/report.py > benches/results/cpu.md

Medians, with the 95 % confidence interval of the median. Each group has a `floor` beside it that was
measured in the same run: the bytes that nothing can avoid to move.
"""
import json
import os
import platform
from pathlib import Path

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "criterion"


def measurements():
    """(group, function, elements, median ns, lower, upper), as criterion's files say it."""
    for path in sorted(TARGET.glob("*/*/new/benchmark.json")):
        about = json.loads(path.read_text())
        estimates = json.loads((path.parent / "estimates.json").read_text())["median"]
        interval = estimates["confidence_interval"]
        elements = (about["throughput"] or {}).get("Elements", 1)
        yield (about["group_id"], about["function_id"], elements, estimates["point_estimate"],
               interval["lower_bound"], interval["upper_bound"])


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def table(title, unit, rows):
    print(f"\n## {title}\n")
    print(f"| | median | interval | {unit} | of the floor |")
    print("|---|---:|---:|---:|---:|")
    floor = next((row[3] for row in rows if row[1].startswith("floor")), None)
    for _, name, elements, median, lower, upper in rows:
        per = f"{elements * 1e9 / median:,.0f}" if unit == "tokens/s" else f"{median / elements:.2f}"
        if name.startswith("floor") and unit == "tokens/s":
            per = ""
        times = f"{floor / median:.2f}" if floor and not name.startswith("prefill") else ""
        interval = f"{lower / 1e6:.2f}–{upper / 1e6:.2f}"
        print(f"| {name} | {median / 1e6:.2f} ms | {interval} | {per} | {times} |")


groups = {}
for row in measurements():
    groups.setdefault(row[0], []).append(row)
print("# Measured on the CPU\n")
print("Made by `cargo bench && python3 benches/report.py > benches/results/cpu.md`; see the files in `benches/`")
print(f"for what each row is. {os.cpu_count()} cores of {processor()}; the machine is shared, so compare within a run.")
for group, rows in sorted(groups.items()):
    swap = group.startswith("swap")
    order = {"floor": 0, "apply": 1, "revert": 2, "decode": 1, "prefill": 3}
    rows.sort(key=lambda row: (order.get(row[1].split()[0].rstrip(":"), 9), row[2]))
    table(group if swap else f"steps in {group}", "ns a nonzero" if swap else "tokens/s", rows)
