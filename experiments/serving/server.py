"""A server under test: start, memory, series, stop."""

import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

START_TIMEOUT_S = 120


class Server:
    """`tombola serve` on a free port, until `stop`; a context manager."""

    def __init__(self, tombola, log, *flags):
        command = [str(part) for part in [tombola, "serve", "--port", 0, *flags]]
        self.log = Path(log)
        self.begin = time.monotonic()
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.port = self._port()
        self.ready_s = self._wait()

    def _port(self):
        """The port in the banner, whose first line names the address."""
        line = self.process.stdout.readline()
        if "http://" not in line:
            self.stop()
            raise SystemExit(f"the server did not start:\n{self.log.read_text()[-2000:]}")
        return int(line.rstrip().rsplit(":", 1)[1])

    def _wait(self):
        """Seconds from the start until the server is ready."""
        while time.monotonic() < self.begin + START_TIMEOUT_S:
            if self.get("/ready")[0] == 200:
                return time.monotonic() - self.begin
            time.sleep(0.01)
        raise SystemExit(f"the server is not ready after {START_TIMEOUT_S} s")

    def get(self, path, key=None):
        """Status and body of a GET request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers=authorization(key))
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    def memory_mib(self):
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise SystemExit("the server has ended")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def authorization(key):
    return {"Authorization": f"Bearer {key}"} if key else {}


def cores():
    return len(os.sched_getaffinity(0))
