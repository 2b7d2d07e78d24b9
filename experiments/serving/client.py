"""Streamed completions, and when their first token arrives."""

import http.client
import json
import random
import time
from typing import NamedTuple

from server import authorization

# Lower-case words that are one token each in SmolLM2's vocabulary, with a space before them.
WORDS = "time year people way day man thing woman life child world school state family".split()
WORDS += "student group country problem hand part place case week company system program".split()
WORDS += "question work government number night point home water room mother area money".split()


class Refused(Exception):
    """A status other than 200."""


class Completion(NamedTuple):
    ttft_s: float  # seconds from sending to the first text
    total_s: float
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def prompt(seed, tokens):
    """A prompt of about this many tokens, different for each seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


def complete(server, model, text, tokens, key=None, messages=None):
    """Streams a greedy completion of exactly `tokens` tokens."""
    body = {
        "model": model,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    path = "/v1/completions"
    if messages is None:
        body["prompt"] = text
    else:
        body["messages"] = messages
        path = "/v1/chat/completions"
    headers = {"Content-Type": "application/json", **authorization(key)}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    sent = time.monotonic()
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise Refused(f"{response.status}: {response.read().decode()[:300]}")
        return read(response, sent)
    finally:
        connection.close()


def read(response, sent):
    first, pieces, usage = None, [], {}
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if not line.startswith(b"data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise Refused(event["error"])
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
            if piece and first is None:
                first = time.monotonic()
            pieces.append(piece)
    end = time.monotonic()
    details = usage.get("prompt_tokens_details") or {}
    return Completion(
        ttft_s=(first or end) - sent,
        total_s=end - sent,
        text="".join(pieces),
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens", 0),
        completion_tokens=usage["completion_tokens"],
    )


def percentile(values, share):
    """By nearest rank."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank), 1) - 1]
