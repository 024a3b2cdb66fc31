"""Lets a test move the wall clock of a running daemon, without root and without moving any other clock."""

import os
from pathlib import Path

from tests.daemons import altered

_BEFORE_ALL_ELSE = """
import time
wall, wall_ns = time.time, time.time_ns
def ahead():
    with open({path!r}) as file:
        return int(file.read())
time.time = lambda: wall() + ahead()
time.time_ns = lambda: wall_ns() + ahead() * 10**9
"""


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
