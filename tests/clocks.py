"""The clocks of a daemon that runs, moved by a test: without root, and nobody else's clock moves.

The law of this file: a jump moves what the process reads as wall clock and nothing else; a reboot gives the machine
another boot's name and starts its monotonic clock at 0.
"""

import os
import time
from pathlib import Path
from uuid import uuid4

from tests.daemons import altered

_BEFORE_ALL_ELSE = """
import os, time
wall, wall_ns, monotonic = time.time, time.time_ns, time.monotonic
booted_at = float(os.environ["BOOTED_AT"])
def ahead():
    with open({path!r}) as file:
        return int(file.read())
time.time = lambda: wall() + ahead()
time.time_ns = lambda: wall_ns() + ahead() * 10**9
time.monotonic = lambda: monotonic() - booted_at
"""


class Clocks:
    """The clocks of every process that is started with this `environment`. ahead: of the true time, in seconds."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "ahead"
        code = _BEFORE_ALL_ELSE.format(path=str(self._file))
        self.environment = {**altered(directory, code), "BOOTED_AT": "0"}
        self.ahead = 0
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Let the wall clock jump by so much, in what runs and in what is started later."""
        self.ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(str(self.ahead))
        os.replace(new, self._file)  # noqa: PTH105 - at once: a process may read it at any time

    def reboot(self) -> None:
        """Let what is started from now on be of another boot of the machine, which has just begun."""
        self.environment |= {"BOOTED_AT": str(time.monotonic()), "ENVOY2EMON_BOOT_ID": uuid4().hex}
