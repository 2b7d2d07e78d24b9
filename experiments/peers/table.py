"""The measurements as a Markdown document."""

import statistics

from cells import CELLS, rounded
from machine import processor
from servers import PEERS

COMMON = [name for name, cell in CELLS.items() if cell.adapters in PEERS["llamacpp"].adapters]
OWN = [name for name in CELLS if name not in COMMON]


class Table:
    """The measurements of one dtype, for tables with a row per peer."""

    def __init__(self, rows, dtype, clean):
        self.rows = [row for row in rows if row["dtype"] == dtype]
        self.dtype, self.clean = dtype, clean

    def peers(self):
        tried = {row["peer"] for row in self.rows}
        return [name for name in PEERS if name in tried]

    def rows_of(self, peer, what):
        return [row for row in self.rows if row["peer"] == peer and row["what"] == what]

    def started(self, peer):
        return bool(self.rows_of(peer, "start"))

    def reports(self, peer, cell):
        """A cell's reports, of undisturbed rounds if there are any, and the number of such
        rounds."""
        found = [
            row for row in self.rows_of(peer, "cell") if row["cell"] == cell and "report" in row
        ]
        clean = [row for row in found if row["others"] <= self.clean]
        return [row["report"] for row in clean or found], len(clean)

    def rate(self, peer, cell):
        reports, clean = self.reports(peer, cell)
        rates = [rate for report in reports if (rate := CELLS[cell].figure(report)) is not None]
        return f"{rounded(statistics.median(rates))} ({clean})" if rates else ""

    def latency(self, peer, cell):
        """p50/p95 of the time to the first token and of the time between tokens, in ms."""
        reports, _ = self.reports(peer, cell)
        if not reports:
            return ""

        def median(time, percentile):
            found = [report[time][percentile] for report in reports if report[time]]
            return f"{statistics.median(found):.0f}" if found else "–"

        return ", ".join(
            f"{median(time, 'p50')}/{median(time, 'p95')}" for time in ("ttft_ms", "inter_token_ms")
        )

    def memory(self, peer):
        """Memory at rest, after load, its bound for Tombola, and its peak, in MiB: maxima over
        runs."""
        rest = [row["rest"] for row in self.rows_of(peer, "start")]
        load = self.rows_of(peer, "memory")
        if not load:
            return [""] * 4
        now, allowed, peak = (
            [row[what] for row in load if what in row] for what in ("now", "allowed", "peak")
        )
        return [f"{max(some):.0f}" if some else "" for some in (rest, now, allowed, peak)]

    def likeness(self, peer):
        """The number of base texts equal to Tombola's, and of adapters that change a text."""
        found, own = self.rows_of(peer, "start")[-1], self.rows_of("tombola", "start")
        same = sum(a == b for a, b in zip(found["texts"], own[-1]["texts"])) if own else 0
        changed = sum(text != found["loose"] for text in found["adapters"].values())
        return [
            f"{same} of {len(found['texts'])}" if own else "",
            f"{changed} of {len(found['adapters'])}",
        ]

    def label(self, peer):
        versions = [row["version"] for row in self.rows_of(peer, "start")]
        return " ".join([PEERS[peer].label, *versions[-1:]]).strip()

    def faults(self, peer):
        """Failures that were not measured again, one line each."""
        label = f"{self.label(peer)}, {self.dtype}"
        if not self.started(peer):
            yield f"- {label}, did not start: {brief(self.rows_of(peer, 'did not start')[-1]['failure'])}"
        last = {(row["cell"], row["round"]): row for row in self.rows_of(peer, "cell")}
        for (cell, round_), row in last.items():
            where = f"- {label}, {CELLS[cell].title}, round {round_}"
            if "failure" in row:
                yield f"{where}: {brief(row['failure'])}"
            elif row["report"]["failed"] or row["report"]["wrong_counts"]:
                report = row["report"]
                yield (
                    f"{where}: of {report['requests']} requests {report['failed']} failed "
                    f"({report['first_failure']}), {report['wrong_counts']} had other token counts"
                )


def brief(failure):
    """The last line of a message or a log."""
    return failure.strip().splitlines()[-1][:200]


def markdown(header, rows):
    return [
        "| | " + " | ".join(header) + " |",
        "|---|" + "---:|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def section(table):
    peers = table.peers()

    def rows(cells):
        """`cells` of each peer that started."""
        for peer in peers:
            yield [table.label(peer), *(cells(peer) if table.started(peer) else ["did not start"])]

    lines = [
        f"## {table.dtype}\n",
        "Tokens per second, and in brackets the number of undisturbed rounds:\n",
    ]
    titles = [CELLS[name].title for name in COMMON]
    lines += markdown(titles, rows(lambda peer: [table.rate(peer, cell) for cell in COMMON]))
    if "tombola" in peers and table.started("tombola"):
        own = ["Tombola", *(table.rate("tombola", cell) for cell in OWN)]
        lines += markdown([CELLS[name].title for name in OWN], [own])
    lines += ["Milliseconds to the first token and between tokens, each p50/p95:\n"]
    lines += markdown(titles, rows(lambda peer: [table.latency(peer, cell) for cell in COMMON]))
    lines += [
        "Memory in MiB, and greedy answers: texts of the base equal to Tombola's (in bf16, near-ties",
        "go either way), and adapters that change an answer. The bound, without the KV cache: the",
        "weights, 50 MB, and for each ticket 16 bytes per nonzero and 4 per row.\n",
    ]
    lines += markdown(
        ["at rest", "after load", "bound", "peak", "equal texts", "effective adapters"],
        rows(lambda peer: table.memory(peer) + table.likeness(peer)),
    )
    return lines


def document(rows, threads, clean):
    """All measurements as Markdown."""
    tables = [
        Table(rows, dtype, clean)
        for dtype in ("f32", "bf16")
        if any(row["dtype"] == dtype for row in rows)
    ]
    rounds = max((row["round"] for row in rows if row["what"] == "cell"), default=0)
    lines = [
        "# Beside other servers\n",
        "Made by `python3 experiments/peers/run.py --servers DIR --work DIR`, which",
        "`experiments/peers/README.md` explains. SmolLM2-135M-Instruct,",
        f"{threads} threads, 16 sequences, medians of {rounds} rounds in turn. {processor()}.\n",
        "An adapter is a LoRA of rank 16 (3.6 % of the base's parameters), for Tombola a ticket of",
        f"1 %. A round is disturbed if other processes keep more than {clean} cores busy. The medians",
        "are of the undisturbed rounds, if there are any.\n",
    ]
    for table in tables:
        lines += section(table)
    faults = [fault for table in tables for peer in table.peers() for fault in table.faults(peer)]
    lines += [
        "## What went wrong\n",
        *(faults or ["Nothing: all requests got answers of the requested length."]),
    ]
    return "\n".join(lines) + "\n"
