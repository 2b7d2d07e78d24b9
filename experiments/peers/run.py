"""A comparison of Tombola with other servers: the tables of experiments/results/peers.md.

    python3 experiments/peers/run.py --servers DIR --work DIR

--servers is the folder that install.sh filled. Each installed server runs with the same dtype,
threads and sequences and without prefix cache, and gets the same work from `tombola bench serve`,
in turn within each round. Measurements are kept in WORK/results.jsonl and not repeated, so that a
run can be split; the tables hold all of them.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benches"))
import table
from memory_bound import memory_bound
from answers import answers
from cells import CELLS, rounded
from processes import Others
from servers import PEERS, DidNotStart, Server, Setup, version

MAX_NOISE_CORES = 0.1  # cores that other processes may keep busy
CELL_TIMEOUT_S = 1800  # seconds that a cell may take


def arguments():
    def some(known):
        def parse(text):
            if unknown := set(text.split(",")) - set(known):
                unknown = ", ".join(unknown)
                raise argparse.ArgumentTypeError(f"{unknown}: expected some of {','.join(known)}")
            return text.split(",")

        return parse

    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--servers", type=Path, required=True)
    ap.add_argument("--work", type=Path, required=True)
    ap.add_argument("--tombola", type=Path, default="target/release/tombola")
    ap.add_argument("--peers", type=some(PEERS), help="some of " + ",".join(PEERS))
    ap.add_argument("--dtypes", type=some(["f32", "bf16"]), default=["f32", "bf16"])
    ap.add_argument(
        "--cells", type=some(CELLS), default=list(CELLS), help="some of " + ",".join(CELLS)
    )
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument(
        "--tries",
        type=int,
        default=2,
        help="maximum number of measurements of a cell while other processes disturb it",
    )
    ap.add_argument("--quick", action="store_true", help="a smoke test; its figures are not meaningful")
    ap.add_argument("--out", type=Path, default="experiments/results/peers.md")
    a = ap.parse_args()
    a.servers, a.tombola = a.servers.resolve(), a.tombola.resolve()
    installed = [name for name in PEERS if version(a.servers, name) is not None]
    a.peers = a.peers or installed
    if missing := [name for name in a.peers if name not in installed]:
        ap.error(f"{', '.join(missing)} is not installed in {a.servers}; run install.sh")
    if not a.tombola.exists():
        ap.error(f"{a.tombola} is missing; run `cargo build --release`")
    return a


class Results:
    """The measurements so far, as lines of JSON in a file."""

    def __init__(self, path):
        self.path = path
        self.rows = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def add(self, **row):
        self.rows.append(row)
        with self.path.open("a") as out:
            out.write(json.dumps(row) + "\n")

    def measured(self, peer, dtype, round_, cell):
        wanted = ("cell", peer, dtype, round_, cell)
        return any(
            "report" in row
            and tuple(map(row.get, ("what", "peer", "dtype", "round", "cell"))) == wanted
            for row in self.rows
        )


def load(a, server, cell, seed):
    """Runs a cell once: the client's report, and the cores that other processes kept busy."""
    command = [
        a.tombola,
        "bench",
        "serve",
        "--url",
        server.url,
        "--kind",
        server.peer.kind,
        "--model",
        "base",
        "--tokenizer",
        a.servers / "model/tokenizer.json",
        "--concurrency",
        cell.concurrency,
        "--requests",
        cell.requests,
        "--prompt-tokens",
        cell.prompt,
        "--max-tokens",
        cell.answer,
        "--seed",
        seed,
        "--json",
    ]
    if names := server.peer.adapters[cell.adapters]:
        command += ["--adapters", ",".join(names)]
    others = Others(server.process.pid)
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=CELL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"timed out after {CELL_TIMEOUT_S} s", "others": others.cores()}
    cores = others.cores()
    if not done.stdout:
        return {"failure": done.stderr.strip()[-500:], "others": cores}
    return {"report": json.loads(done.stdout)["report"], "others": cores}


def measure(a, results, server, dtype, round_, name):
    """Measures a cell until it is undisturbed, at most --tries times. The least disturbed
    counts."""
    cell = CELLS[name].quick() if a.quick else CELLS[name]
    seed = 100 * round_ + list(CELLS).index(name)  # no prompt is repeated
    tried = []
    while not tried or (len(tried) < a.tries and tried[-1]["others"] > MAX_NOISE_CORES):
        tried.append(load(a, server, cell, seed))
    best = min(tried, key=lambda one: ("failure" in one, one["others"]))
    results.add(what="cell", peer=server.name, dtype=dtype, round=round_, cell=name, **best)
    figure = (
        f"{rounded(cell.figure(best['report']))} tokens/s" if "report" in best else best["failure"]
    )
    print(
        f"{dtype} round {round_} {name:<11} {server.peer.label:<10} {figure}, others {best['others']:.2f}",
        flush=True,
    )


def start(a, results, name, dtype, stack):
    """A warm server that runs until the stack ends; None if it does not start."""
    setup = Setup(a.servers, a.tombola, a.threads)
    print(f"{dtype} starts {PEERS[name].label}", flush=True)
    try:
        server = Server(name, setup, dtype, a.work / "logs" / f"{name}-{dtype}.log")
        stack.callback(server.stop)
        rest, _ = server.memory()
        found = answers(server)
    except (DidNotStart, OSError, RuntimeError) as error:
        print(f"{PEERS[name].label}: {error}", file=sys.stderr, flush=True)
        results.add(what="did not start", peer=name, dtype=dtype, failure=str(error))
        return None
    results.add(
        what="start", peer=name, dtype=dtype, version=version(a.servers, name), rest=rest, **found
    )
    load(a, server, CELLS["c16"].quick(), seed=0)
    return server


def measure_dtype(a, results, dtype):
    todo = [
        (round_, cell, name)
        for round_ in range(1, a.rounds + 1)
        for cell in a.cells
        for name in a.peers
        if CELLS[cell].adapters in PEERS[name].adapters
        and not results.measured(name, dtype, round_, cell)
    ]
    with contextlib.ExitStack() as stack:
        names = dict.fromkeys(name for _, _, name in todo)
        servers = {
            name: server for name in names if (server := start(a, results, name, dtype, stack))
        }
        for round_, cell, name in todo:
            if name in servers:
                measure(a, results, servers[name], dtype, round_, cell)
        for name, server in servers.items():
            now, peak = server.memory()
            bound = {"allowed": memory_bound(server.setup, dtype)} if name == "tombola" else {}
            results.add(what="memory", peer=name, dtype=dtype, now=now, peak=peak, **bound)


def main():
    a = arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("terminated")
    )  # otherwise the servers would keep running
    (a.work / "logs").mkdir(parents=True, exist_ok=True)
    results = Results(a.work / ("quick.jsonl" if a.quick else "results.jsonl"))
    tickets = Path(__file__).with_name("tickets.py")
    subprocess.run(
        [
            a.servers / "tools/bin/python",
            tickets,
            a.tombola,
            a.servers / "model",
            a.servers / "tickets",
        ],
        check=True,
    )
    for dtype in a.dtypes:
        measure_dtype(a, results, dtype)
    text = table.document(results.rows, a.threads, MAX_NOISE_CORES)
    print(text)
    if not a.quick:
        a.out.write_text(text)


if __name__ == "__main__":
    main()
