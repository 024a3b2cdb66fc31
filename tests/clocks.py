"""Lets a test move the clocks of a running daemon, without root and without moving any other clock.

A jump moves only the wall clock that the process reads. After a reboot its monotonic clock begins at 0. Faster time
applies to both clocks and to the process's own waits, but its sockets keep the true time.
"""

import calendar
import os
import time
from pathlib import Path

from tests.daemons import altered

_BEFORE_ALL_ELSE = """
import os, time
wall, wall_ns, monotonic = time.time, time.time_ns, time.monotonic
booted_at, faster = float(os.environ["BOOTED_AT"]), {faster}
def ahead():
    with open({path!r}) as file:
        return int(file.read())
def gained():
    return (monotonic() - {began!r}) * (faster - 1)
time.time = lambda: wall() + ahead() + gained()
time.time_ns = lambda: wall_ns() + int((ahead() + gained()) * 10**9)
time.monotonic = lambda: monotonic() + gained() - booted_at
"""
# coverage may have imported threading already, with its own reference to monotonic. Event.wait calls Condition.wait.
_WAITS = """
import queue, threading
threading._time = time.monotonic
def wait(self, timeout=None, wait=threading.Condition.wait):
    return wait(self, timeout and timeout / faster)
threading.Condition.wait = wait
class SimpleQueue(queue.SimpleQueue):
    def get(self, block=True, timeout=None):
        return super().get(block, timeout and timeout / faster)
queue.SimpleQueue = SimpleQueue
"""


class Clocks:
    """The clocks of every process that is started with this `environment`.

    ahead: the seconds by which their wall clock has jumped. faster: how many seconds pass for them in a true one.
    """

    def __init__(self, directory: Path, faster: int = 1) -> None:
        self._file = directory / "ahead"
        self._faster = faster
        self._began = time.monotonic()
        code = _BEFORE_ALL_ELSE + (_WAITS if faster > 1 else "")
        code = code.format(path=str(self._file), faster=faster, began=self._began)
        self.environment = {**altered(directory, code), "BOOTED_AT": "0"}
        self.ahead = 0
        self.jump(0)

    def now(self) -> float:
        """Return the wall clock of these processes, epoch s."""
        return time.time() + self.ahead + self._gained()

    def jump(self, seconds: int) -> None:
        """Let the wall clock jump by `seconds`, in running processes and in later ones."""
        self.ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(str(self.ahead))
        os.replace(new, self._file)  # noqa: PTH105 - atomic, because a process may read it at any time

    def reboot(self) -> None:
        """Let processes started from now on see a computer that has just booted."""
        self.environment["BOOTED_AT"] = str(time.monotonic() + self._gained())

    def _gained(self) -> float:
        return (time.monotonic() - self._began) * (self._faster - 1)


def said_at(line: str) -> int:
    """Return the date of a line of the log, epoch s by the clock of the process that wrote it."""
    return calendar.timegm(time.strptime(line.split(maxsplit=1)[0], "%Y-%m-%dT%H:%M:%SZ"))
