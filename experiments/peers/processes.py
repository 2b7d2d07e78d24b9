"""Memory and processor time of a server's processes and of others, from /proc."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # per second


def tree(pid):
    """A process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        try:
            children = [
                task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")
            ]
        except OSError:
            continue  # the process has ended
        found.append(pid)
        waiting += [int(child) for some in children for child in some]
    return found


def read_all(pid, file):
    """A /proc file of each process of a tree, without processes that have ended."""
    for process in tree(pid):
        try:
            yield Path(f"/proc/{process}/{file}").read_text()
        except OSError:
            continue


def memory(pid):
    """Resident memory of a tree in MiB, now and at its peak. Shared pages count for each
    process."""
    now = peak = 0
    for status in read_all(pid, "status"):
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                now += int(line.split()[1])
            elif line.startswith("VmHWM:"):
                peak += int(line.split()[1])
    return now / 1024, peak / 1024


def busy_seconds():
    """Processor time of the whole machine so far, with the time that its host takes (steal)."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS


def own_seconds(pid):
    """Processor time of a tree so far."""
    stats = (stat.rsplit(")", 1)[1].split() for stat in read_all(pid, "stat"))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS


class Others:
    """The cores kept busy by processes other than the server, this process and its children."""

    def __init__(self, pid):
        self.pid = pid
        self.begin = time.monotonic()
        self.spent = self._others()

    def _others(self):
        times = os.times()
        return busy_seconds() - own_seconds(self.pid) - sum(times[:4])

    def cores(self):
        return (self._others() - self.spent) / (time.monotonic() - self.begin)
