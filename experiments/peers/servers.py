"""The servers: their commands, and the names of their adapters."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import processes

HERE = Path(__file__).resolve().parent
SEQUENCES, CONTEXT = 16, 1024  # concurrent sequences; tokens per sequence
LORAS = [f"a{i}" for i in range(8)]


class Setup(NamedTuple):
    """Parameters that all servers share."""

    folder: Path  # filled by install.sh
    tombola: Path
    threads: int


def tombola_bare(setup, dtype, port):
    return [
        setup.tombola,
        "serve",
        "--model",
        setup.folder / "model",
        "--served-model-name",
        "base",
        "--dtype",
        dtype,
        "--port",
        port,
        "--threads",
        setup.threads,
        "--max-num-seqs",
        SEQUENCES,
        "--max-model-len",
        CONTEXT,
    ], {}


def tombola(setup, dtype, port):
    command, environment = tombola_bare(setup, dtype, port)
    return [*command, "--tickets", setup.folder / "tickets"], environment


def llamacpp(setup, dtype, port):
    gguf = setup.folder / "gguf"
    loras = [part for name in LORAS for part in ("--lora", gguf / f"{name}-{dtype}.gguf")]
    return [
        setup.folder / "llamacpp/bin/llama-server",
        "-m",
        gguf / f"base-{dtype}.gguf",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "-t",
        setup.threads,
        "-tb",
        setup.threads,
        "-np",
        SEQUENCES,
        "-c",
        SEQUENCES * CONTEXT,
        "--cache-ram",
        0,
        "--no-webui",
        *loras,
        "--lora-init-without-apply",
    ], {}


def vllm(setup, dtype, port):
    python = setup.folder / "vllm/bin/python"
    loras = [f"{name}={setup.folder / 'lora' / name}" for name in LORAS]
    # The cores are explicit: by default vLLM leaves one idle.
    environment = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{setup.threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": str(setup.threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    # Not `vllm serve`, which looks for a package called vllm: this one is vllm-cpu.
    return [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        setup.folder / "model",
        "--served-model-name",
        "base",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--dtype",
        {"f32": "float32", "bf16": "bfloat16"}[dtype],
        "--max-model-len",
        CONTEXT,
        "--max-num-seqs",
        SEQUENCES,
        "--no-enable-prefix-caching",
        "--enable-lora",
        "--max-loras",
        len(LORAS),
        "--max-lora-rank",
        16,
        "--lora-modules",
        *loras,
    ], environment


def mistralrs(setup, dtype, port):
    loras = [f"{name}={setup.folder / 'lora' / name}" for name in LORAS]
    return [
        setup.folder / "mistralrs/bin/python",
        HERE / "mistralrs_http.py",
        setup.folder / "model",
        dtype,
        port,
        SEQUENCES,
        *loras,
    ], {"RAYON_NUM_THREADS": str(setup.threads)}


class Peer(NamedTuple):
    """A kind of server."""

    label: str
    start: callable  # (Setup, dtype, port) -> command, environment
    ready: str = "/health"
    kind: str = "openai"  # value of `tombola bench serve --kind`
    # Adapter names, by the key that cells use.
    adapters: dict = {"": [], "one": LORAS[:1], "eight": LORAS}


TICKETS = {
    "": [],
    "one": ["one-0"],
    "eight": [f"one-{i}" for i in range(8)],
    "eight small": [f"tenth-{i}" for i in range(8)],
    "sixteen": [f"one-{i}" for i in range(16)],
}

PEERS = {
    "tombola": Peer("Tombola", tombola, ready="/ready", adapters=TICKETS),
    # Shows the cost of tickets without requests.
    "tombola-bare": Peer("Tombola, no tickets", tombola_bare, ready="/ready", adapters={"": []}),
    "llamacpp": Peer("llama.cpp", llamacpp, kind="llamacpp"),
    "vllm": Peer("vLLM", vllm),
    "mistralrs": Peer("mistral.rs", mistralrs),
}


def version(folder, name):
    """The version of an installed peer, or None."""
    if name.startswith("tombola"):
        return ""
    return next(
        (mark.name.removeprefix(f"{name}-") for mark in (folder / ".done").glob(f"{name}-*")), None
    )


class DidNotStart(Exception):
    """A server ended or was not ready in time; the message has the last lines of its log."""


class Server:
    """A running peer."""

    def __init__(self, name, setup, dtype, log, timeout=900):
        self.name, self.peer, self.setup = name, PEERS[name], setup
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command, environment = self.peer.start(setup, dtype, port)
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )
        try:
            self._wait(log, timeout)
        except BaseException:
            self.stop()
            raise

    def _wait(self, log, timeout):
        until = time.monotonic() + timeout
        while not self._ready():
            if self.process.poll() is not None:
                raise DidNotStart(
                    f"{self.peer.label} ended with {self.process.returncode}:\n{tail(log)}"
                )
            if time.monotonic() > until:
                raise DidNotStart(
                    f"{self.peer.label} is not ready after {timeout} s:\n{tail(log)}"
                )
            time.sleep(0.5)

    def _ready(self):
        try:
            with urllib.request.urlopen(self.url + self.peer.ready, timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def memory(self):
        return processes.memory(self.process.pid)

    def stop(self):
        """Ends the server's process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(60)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


def tail(log, lines=15):
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-lines:])
