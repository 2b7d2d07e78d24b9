"""Time to the first token with a shared prefix, cold and warm, and over the turns of a chat."""

import statistics

from client import complete, prompt
from server import Server

PREFIX = 1500  # tokens
TURNS = 64


def shared_prefix(server, a):
    """Seconds to the first token: of requests with a new prefix, and with one that was seen."""
    cold, warm, tokens, cached = [], [], 0, 0
    complete(server, "sql", prompt("warm up", 64), 1)
    for round_ in range(a.prefix_rounds):
        prefix = prompt(f"prefix {round_}", PREFIX)
        first = complete(server, "sql", f"{prefix} first", 2)
        cold.append(first.ttft_s)
        for number in range(3):
            again = complete(server, "sql", f"{prefix} question {number}", 2)
            warm.append(again.ttft_s)
            tokens, cached = again.prompt_tokens, again.cached_tokens
    return statistics.median(cold), statistics.median(warm), tokens, cached


def chat(server, turns, measured):
    """Seconds to the first token of the measured turns of one conversation, with their prompts'
    tokens. The questions and the answers are the same in each call."""
    messages, times = [], {}
    for turn in range(1, turns + 1):
        messages.append({"role": "user", "content": prompt(f"turn {turn}", 12)})
        if turn in measured:
            answer = complete(server, "sql", None, 4, messages=messages)
            times[turn] = (answer.ttft_s, answer.prompt_tokens, answer.cached_tokens)
        messages.append({"role": "assistant", "content": prompt(f"answer {turn}", 12)})
    return times


def section(a):
    folder = ["--tickets", a.adapters]
    with Server(a.tombola, a.work / "prefix-on.log", *folder) as server:
        cold, warm, tokens, cached = shared_prefix(server, a)
        with_cache = chat(server, a.turns, range(1, a.turns + 1))
    # Without the cache a turn does not depend on the turns before, so that some suffice.
    some = [turn for turn in range(1, a.turns + 1) if turn == 1 or turn % 8 == 0]
    off = ["--no-enable-prefix-caching"]
    with Server(a.tombola, a.work / "prefix-off.log", *folder, *off) as server:
        without = chat(server, a.turns, some)
    shares = f"{100 * warm / cold:.1f} %"
    lines = [
        "## Prefix cache\n",
        f"Requests under `sql` with a prefix of {PREFIX:,} words of one token each, medians of",
        f"{a.prefix_rounds} prefixes. The target is a warm time of at most 5 % of the cold one.\n",
        "| | milliseconds to the first token | of the cold time |",
        "|---|---:|---:|",
        f"| cold | {1000 * cold:.0f} | |",
        f"| warm: {cached:,} of {tokens:,} prompt tokens cached | {1000 * warm:.0f} | {shares} |",
        "",
        f"One conversation of {a.turns} turns under `sql`, 12 words per question and answer.",
        "Milliseconds to the first token of a turn:\n",
        "| turn | prompt tokens | cached | with the cache | `--no-enable-prefix-caching` |",
        "|---:|---:|---:|---:|---:|",
    ]
    for turn in some:
        seconds, tokens, cached = with_cache[turn]
        lines.append(
            f"| {turn} | {tokens:,} | {cached:,} | {1000 * seconds:.0f} "
            f"| {1000 * without[turn][0]:.0f} |"
        )
    return lines + [""]
