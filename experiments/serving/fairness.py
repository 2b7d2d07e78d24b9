"""A light tenant's time to its first token, quiet and while another tenant floods the server."""

import hashlib
import json
import statistics
import threading
import time
from http.client import HTTPException

from client import Refused, complete, percentile, prompt
from server import Server

MODES = ["auto", "overlay", "apply"]
FLOOD = 64  # requests that the other tenant keeps in flight
KEYS = {
    name: f"{name}-key-of-the-experiment" for name in ("light", "heavy", "operator")
}


def key_file(folder):
    """A file of one key per tenant."""
    path = folder / "keys.json"
    entries = []
    for name, key in KEYS.items():
        entry = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        if name == "operator":
            entry |= {"scopes": ["metrics"]}
        else:
            entry |= {"scopes": ["infer"], "tenant": name}
        entries.append(entry)
    path.write_text(json.dumps({"keys": entries}))
    return path


class Flood:
    """Requests of the heavy tenant: as many at once as FLOOD, each after another."""

    def __init__(self, server, model, tokens):
        self.server, self.model, self.tokens = server, model, tokens
        self.ends = threading.Event()
        self.lock = threading.Lock()
        self.refused = 0
        self.threads = [threading.Thread(target=self._client, args=[i]) for i in range(FLOOD)]
        for thread in self.threads:
            thread.start()

    def _client(self, number):
        count = 0
        while not self.ends.is_set():
            count += 1
            text = prompt(f"{number} {count}", 64)
            try:
                complete(self.server, self.model, text, self.tokens, KEYS["heavy"])
            except Refused:
                with self.lock:
                    self.refused += 1
                self.ends.wait(1)
            except (OSError, HTTPException, KeyError):
                if not self.ends.is_set():
                    raise

    def stop(self):
        """Stops the server, which cuts off what still runs, and counts that as refused."""
        self.ends.set()
        self.server.stop()
        for thread in self.threads:
            thread.join()


class Rate:
    """Tokens per second that the server generates from the beginning of a `with` block to its
    end."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        self.begin, self.before = time.monotonic(), self.tokens()
        return self

    def __exit__(self, *_):
        self.per_s = (self.tokens() - self.before) / (time.monotonic() - self.begin)

    def tokens(self):
        _, text = self.server.get("/metrics", KEYS["operator"])
        name = "tombola_generation_tokens_total "
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def light(server, requests, seed):
    """Times to the first token of requests in turn, with a pause between them."""
    times = []
    for number in range(requests):
        text = prompt(f"light {seed} {number}", 16)
        times.append(complete(server, "arc", text, 1, KEYS["light"]).ttft_s)
        time.sleep(0.05)
    return times


def measure(a, mode):
    """Milliseconds of one mode."""
    flags = ["--tickets", a.adapters, "--ticket-mode", mode, "--api-keys", key_file(a.work)]
    log = a.work / f"fairness-{mode}.log"
    with Server(a.tombola, log, *flags, "--drain-seconds", 1) as server:
        light(server, 2, "warm")
        quiet = light(server, a.light_requests, "quiet")
        flood = Flood(server, "sql", a.flood_tokens)
        try:
            time.sleep(a.flood_lead_s)
            with Rate(server) as alone:
                time.sleep(a.flood_lead_s / 2)
            with Rate(server) as beside:
                flooded = light(server, a.light_requests, "flood")
            refused = flood.refused
        finally:
            flood.stop()
    p95 = [1000 * percentile(times, 0.95) for times in (quiet, flooded)]
    p50 = [1000 * statistics.median(times) for times in (quiet, flooded)]
    return {
        "mode": mode,
        "quiet": (p50[0], p95[0]),
        "flooded": (p50[1], p95[1]),
        "ratio": p95[1] / p95[0],
        "flood": (alone.per_s, beside.per_s),
        "refused": refused,
    }


def section(a):
    rows = [measure(a, mode) for mode in a.modes]
    lines = [
        "## Fairness\n",
        f"A light tenant sends one request at a time (16 tokens under `arc`, {a.light_requests} of",
        f"them), alone, and while another tenant keeps {FLOOD} requests in flight (64 tokens of",
        f"prompt and {a.flood_tokens} of answer under `sql`). Milliseconds to the light tenant's",
        "first token, p50/p95; the target is a p95 of at most 3 times the quiet one. And the other",
        "tenant's generated tokens per second before the light one begins, and while it goes on.\n",
        "| `--ticket-mode` | quiet | under the flood | p95 ratio | the other's tokens/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        quiet, flooded = ("/".join(f"{ms:.0f}" for ms in row[key]) for key in ("quiet", "flooded"))
        other = " → ".join(f"{rate:.0f}" for rate in row["flood"])
        if row["refused"]:
            other += f", {row['refused']} refused"
        lines.append(f"| {row['mode']} | {quiet} | {flooded} | {row['ratio']:.1f} | {other} |")
    return lines + [""]
