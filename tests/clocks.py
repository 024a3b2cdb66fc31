"""Clocks that a test sets: of an object under test, or the wall clock of a running daemon, without root."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.daemons import altered

EPOCH = 1_700_000_000.0
_BEFORE_ALL_ELSE = """
import time
wall, wall_ns = time.time, time.time_ns
def ahead():
    with open({path!r}) as file:
        return int(file.read())
time.time = lambda: wall() + ahead()
time.time_ns = lambda: wall_ns() + ahead() * 10**9
"""


@dataclass
class Time:
    """A monotonic clock that moves only when a test sets it, and the computer's wall clock, `wrong` seconds ahead."""

    now: float = 1000.0
    wrong: float = 0.0

    def __call__(self) -> float:
        """Return the monotonic seconds."""
        return self.now

    def wall(self) -> float:
        """Return the epoch seconds by the computer's clock."""
        return EPOCH + self.now + self.wrong


class Clocks:
    """The wall clock of every process that is started with this `environment`; `ahead` is what it has jumped, in s."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "ahead"
        self.environment = altered(directory, _BEFORE_ALL_ELSE.format(path=str(self._file)))
        self.ahead = 0
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Let the wall clock jump by `seconds`, in running processes and in later ones."""
        self.ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(str(self.ahead))
        os.replace(new, self._file)  # noqa: PTH105 - atomic, because a process may read it at any time
