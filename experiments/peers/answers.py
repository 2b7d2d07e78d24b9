"""Comparable answers of servers: greedy texts of the base and of its adapters."""

import json
import urllib.request

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at a temperature of",
]
# No next word is likely, so that a small change of the weights changes the text early.
SENSITIVE_PROMPT = "river candle seven marble"
TOKENS = 24


def complete(server, prompt, adapter=None):
    """The greedy continuation of a prompt, by the base or by a named adapter."""
    body = {
        "model": adapter or "base",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    if server.peer.kind == "llamacpp":
        # Without a list, llama.cpp applies all adapters.
        number = server.peer.adapters["eight"].index(adapter) if adapter else 0
        body |= {"lora": [{"id": number, "scale": 1.0 if adapter else 0.0}], "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    text = ""
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data:").strip()
            if data and data != "[DONE]":
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(f"{server.peer.label} answers {event['error']}")
                text += "".join(choice.get("text") or "" for choice in event.get("choices", ()))
    return text.strip()  # mistral.rs drops the first space


def answers(server):
    """The base's texts of PROMPTS, and texts of SENSITIVE_PROMPT by the base and each adapter."""
    adapters = sorted({name for names in server.peer.adapters.values() for name in names})
    return {
        "texts": [complete(server, prompt) for prompt in PROMPTS],
        "loose": complete(server, SENSITIVE_PROMPT),
        "adapters": {name: complete(server, SENSITIVE_PROMPT, name) for name in adapters},
    }
