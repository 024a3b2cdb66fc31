"""A process under measurement: the stream daemon, or what it is compared with, in an environment of its own.

Only this process is measured, with all its threads. CPU time is that of /proc/PID/task/*/schedstat, wake-ups are
voluntary context switches, memory is VmRSS.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemons import PROJECT, Daemon
from tests.peers import Peers


class Measured:
    """A running process; started: when, monotonic s."""

    def __init__(self, pid: int, started: float) -> None:
        self.started = started
        self._proc = Path(f"/proc/{pid}")

    def cpu_ms(self) -> float:
        """Return the CPU time of all threads so far, in ms."""
        return sum(int(path.read_text().split()[0]) for path in self._proc.glob("task/*/schedstat")) / 1e6

    def wakeups(self) -> float:
        """Return how often its threads have waited so far."""
        texts = [path.read_text() for path in self._proc.glob("task/*/status")]
        return sum(int(re.findall(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", text)[0]) for text in texts)

    def rss_mib(self) -> float:
        """Return the resident memory in MiB."""
        return int(re.findall(r"VmRSS:\s+(\d+) kB", (self._proc / "status").read_text())[0]) / 1024


@contextmanager
def daemon(peers: Peers, **environment: str) -> Iterator[tuple[Measured, Daemon]]:
    """Run the stream daemon between the peers."""
    with tempfile.TemporaryDirectory() as directory:
        one = Daemon("stream", Path(directory), peers.settings())
        one.environment |= {"LOG_LEVEL": "ERROR"} | environment
        started = time.monotonic()
        with one:
            yield Measured(one.process.pid, started), one


@contextmanager
def other(module: str, peers: Peers) -> Iterator[Measured]:
    """Run tests/reference.py or tests/bare.py between the peers."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(PROJECT)} | peers.settings()
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", module], env=environment)
    try:
        yield Measured(process.pid, started)
    finally:
        process.kill()
        process.wait()
