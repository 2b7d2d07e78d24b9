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
KEYS = {"light": "light-key-of-the-experiment", "heavy": "heavy-key-of-the-experiment"}


def key_file(folder):
    """A file of one key per tenant."""
    path = folder / "keys.json"
    entries = [
        {
            "name": name,
            "sha256": hashlib.sha256(key.encode()).hexdigest(),
            "tenant": name,
            "scopes": ["infer"],
        }
        for name, key in KEYS.items()
    ]
    path.write_text(json.dumps({"keys": entries}))
    return path


class Flood:
    """Requests of the heavy tenant: as many at once as FLOOD, each after another."""

    def __init__(self, server, model, tokens):
        self.server, self.model, self.tokens = server, model, tokens
        self.ends = threading.Event()
        self.lock = threading.Lock()
        self.done = self.refused = 0
        self.begin = time.monotonic()
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
            else:
                with self.lock:
                    self.done += 1

    def stop(self):
        """Stops the server, which cuts off what still runs."""
        self.ends.set()
        self.server.stop()
        for thread in self.threads:
            thread.join()


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
            flooded = light(server, a.light_requests, "flood")
            seconds, done, refused = time.monotonic() - flood.begin, flood.done, flood.refused
        finally:
            flood.stop()
    p95 = [1000 * percentile(times, 0.95) for times in (quiet, flooded)]
    p50 = [1000 * statistics.median(times) for times in (quiet, flooded)]
    return {
        "mode": mode,
        "quiet": (p50[0], p95[0]),
        "flood": (p50[1], p95[1]),
        "ratio": p95[1] / p95[0],
        "flood_requests": done,
        "flood_refused": refused,
        "seconds": seconds,
    }


def section(a):
    rows = [measure(a, mode) for mode in a.modes]
    lines = [
        "## Fairness\n",
        f"A light tenant sends one request at a time (16 tokens under `arc`, {a.light_requests} of",
        f"them), alone, and while another tenant keeps {FLOOD} requests in flight (64 tokens of",
        f"prompt and {a.flood_tokens} of answer under `sql`). Milliseconds to the light tenant's",
        "first token, p50/p95; the target is a p95 of at most 3 times the quiet one.\n",
        "| `--ticket-mode` | quiet | under the flood | p95 ratio | answers to the other |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        quiet, flood = ("/".join(f"{ms:.0f}" for ms in row[key]) for key in ("quiet", "flood"))
        other = f"{row['flood_requests']} in {row['seconds']:.0f} s"
        if row["flood_refused"]:
            other += f", {row['flood_refused']} refused"
        lines.append(f"| {row['mode']} | {quiet} | {flood} | {row['ratio']:.1f} | {other} |")
    return lines + [""]
