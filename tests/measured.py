"""A process under measurement: the stream daemon, or the reference, in an environment of its own.

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
from typing import Self

from tests.daemons import PROJECT
from tests.peers import Peers


class Measured:
    """A process under measurement, from its exec to the end of the `with` block."""

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        basic = {"PATH": os.environ["PATH"], "LOG_LEVEL": "ERROR"}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=PROJECT, env=basic | environment
        )

    def __enter__(self) -> Self:
        """Do nothing, because it is running already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def cpu_ms(self) -> float:
        """Return the CPU time of all threads so far, in ms."""
        return sum(int(text.split()[0]) for text in self._tasks("schedstat")) / 1e6

    def wakeups(self) -> float:
        """Return how often its threads have waited so far."""
        return sum(int(re.findall(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", text)[0]) for text in self._tasks("status"))

    def rss_mib(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def _tasks(self, name: str) -> list[str]:
        return [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob(f"*/{name}")]


@contextmanager
def daemon(peers: Peers, **environment: str) -> Iterator[Measured]:
    """Run the stream daemon between the peers."""
    with tempfile.TemporaryDirectory() as directory:
        env_file = Path(directory, ".env")
        env_file.touch(0o600)
        env_file.write_text("".join(f"{name}='{value}'\n" for name, value in peers.settings().items()))
        environment |= {"HOME": directory, "STATE_DIRECTORY": f"{directory}/state"}
        with Measured("envoy2emon", "stream", "--env-file", str(env_file), **environment) as process:
            yield process


@contextmanager
def reference(peers: Peers) -> Iterator[Measured]:
    """Run the reference between the peers."""
    with tempfile.TemporaryDirectory() as home, Measured("tests.reference", **peers.settings(), HOME=home) as process:
        yield process
