"""Counts that the load test and the kill test print."""

import json
import os
import re
import subprocess
import sys


LOAD = "--test load -- --nocapture two_thousand_connections"
KILL = "--test integration -- --nocapture a_hundred_kills"


def command(test):
    return f"cargo test --release {test}"


def printed(a, test, pattern):
    """What a passing test prints that matches a pattern with groups."""
    done = subprocess.run(
        command(test).split(), cwd=a.root, env=os.environ | a.sizes, capture_output=True, text=True
    )
    found = re.search(pattern, done.stdout)
    if done.returncode or not found:
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
        raise SystemExit(f"`{command(test)}` failed")
    return found.groups()


def load(a):
    f = json.loads(printed(a, LOAD, r"figures (\{.*\})")[0])
    refused = ", ".join(f"{count:,} × {code}" for code, count in f["refused"].items()) or "none"
    mib = [f"{f['rss_kib'][when] / 1024:.0f}" for when in ("start", "middle", "end")]
    rows = [
        ("connections", f"{f['connections']:,} of {f['tenants']} tenants"),
        ("seconds", f"{f['seconds']:.0f}"),
        ("answers checked, whole", f"{f['whole']:,} ({f['streamed']:,} of them streamed)"),
        ("streams left by the client, checked as far as read", f"{f['left']:,}"),
        ("requests broken off by the client", f"{f['half_sent']:,}"),
        ("tokens checked", f"{f['tokens']:,} ({f['tokens_per_second']:,.0f} per second)"),
        ("uploads and replacements", f"{f['uploads']:,} ({f['broken_uploads']} more broken off)"),
        ("deletions", f"{f['deletions']:,}"),
        ("documented refusals", refused),
        ("resident memory at the start, in the middle, at the end", f"{'/'.join(mib)} MiB"),
        ("lost or crossed tokens and other violations", f"{f['violations']:,}"),
    ]
    return [
        "## Load\n",
        f"`{command(LOAD)}`: a tiny base, and clients that stream, read whole or slowly, leave,",
        "or send half a request, while tickets are uploaded, replaced and deleted. Each answer is",
        f"compared with one of {f['goldens']} golden ones, taken while nothing else ran.\n",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]


def kill(a):
    pattern = r"(\d+) kills, (\d+) acknowledged changes, (\d+) left-over files"
    kills, changes, left_over = (int(count) for count in printed(a, KILL, pattern))
    return [
        "## Kill\n",
        f"`{command(KILL)}`: four clients upload, replace and delete tickets, SIGKILL comes at a",
        "random moment, and after each start every ticket is compared by digest with what was",
        "acknowledged, in the list and on disk.\n",
        "| | |",
        "|---|---:|",
        f"| kills | {kills:,} |",
        f"| acknowledged changes | {changes:,} |",
        f"| temporary files that a kill left, all gone after the next start | {left_over:,} |",
        "| tickets lost, mixed or half written | 0 |",
        "",
    ]
