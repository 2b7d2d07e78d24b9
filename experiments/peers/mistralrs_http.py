"""A server with OpenAI's /v1/completions over mistral.rs' Python package, which has none.

usage: mistralrs_http.py MODEL_FOLDER {f32|bf16} PORT SEQUENCES [NAME=ADAPTER_FOLDER ...]
needs mistralrs, aiohttp

It always streams. `model` names an adapter; any other name selects the base. The engine computes on
its own threads (RAYON_NUM_THREADS). A request costs one waiting thread here, and one event per
token.
"""

import asyncio
import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from mistralrs import Architecture, ChatCompletionRequest, LoraAdapter, ModelDType, Runner, Which

# The engine always applies a chat template: this one adds nothing.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
RANK = 16


def load(model, dtype, sequences, adapters):
    common = {
        "model_id": model,
        "arch": Architecture.Llama,
        "dtype": {"f32": ModelDType.F32, "bf16": ModelDType.BF16}[dtype],
    }
    if adapters:
        loras = [LoraAdapter(name, folder) for name, folder in adapters.items()]
        which = Which.Lora(adapters=loras, max_rank=RANK, **common)
    else:
        which = Which.Plain(**common)
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(TEMPLATE)
        template.flush()
        return Runner(
            which=which,
            max_seqs=sequences,
            prefix_cache_n=0,
            jinja_explicit=template.name,
            token_source="none",
        )


class Server:
    def __init__(self, runner, adapters):
        self.runner, self.adapters = runner, adapters
        self.threads = ThreadPoolExecutor(64)
        self.sending = (
            threading.Lock()
        )  # two threads in `send_` at once fail with "Already borrowed"

    def events(self, body):
        """The events of a request, until it ends; blocks."""
        try:
            request = ChatCompletionRequest(
                messages=[{"role": "user", "content": body["prompt"]}],
                model="default",
                max_tokens=body["max_tokens"],
                temperature=body.get("temperature", 0),
                ignore_eos=body.get("ignore_eos", False),
                stream=True,
                adapter=body["model"] if body["model"] in self.adapters else None,
            )
            with self.sending:
                chunks = self.runner.send_chat_completion_request(request)
            for chunk in chunks:
                yield event_of(chunk)
        except Exception as error:
            yield {"error": str(error)}

    async def completions(self, request):
        body, queue, loop = await request.json(), asyncio.Queue(), asyncio.get_running_loop()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        def generate():
            for event in self.events(body):
                loop.call_soon_threadsafe(queue.put_nowait, event)
            loop.call_soon_threadsafe(queue.put_nowait, None)

        loop.run_in_executor(self.threads, generate)
        while (event := await queue.get()) is not None:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def event_of(chunk):
    choices = [
        {"index": 0, "text": choice.delta.content or "", "finish_reason": choice.finish_reason}
        for choice in chunk.choices
    ]
    if chunk.usage is None:
        return {"choices": choices}
    return {
        "choices": choices,
        "usage": {
            "prompt_tokens": chunk.usage.prompt_tokens,
            "completion_tokens": chunk.usage.completion_tokens,
        },
    }


async def health(_):
    return web.Response(text="ok")


def main(model, dtype, port, sequences, *named):
    adapters = dict(adapter.split("=", 1) for adapter in named)
    server = Server(load(model, dtype, int(sequences), adapters), adapters)
    app = web.Application()
    app.add_routes([web.post("/v1/completions", server.completions), web.get("/health", health)])
    web.run_app(app, host="127.0.0.1", port=int(port), print=None)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
