"""What both daemons know of tokens, in one file of the state directory that belongs to its owner alone.

The law of this file: one daemon at a time reads, decides and writes; where no file can be had, memory does.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)
_NAME = "token.json"
# A token is 0.5 to 1 kB.
_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Kept:
    """The latest token from Enphase, when Enphase was last asked (epoch seconds), and why it gave none."""

    token: str = field(default="", repr=False)
    login_at: float = 0.0
    trouble: str = ""


class TokenFile:
    """Holds a Kept, in the directory `state` or, if that is None or cannot be written, in memory."""

    def __init__(self, state: Path | None) -> None:
        self._state = state
        self._kept = Kept()
        self._number: int | None = None
        self._unwritten = False  # the file is older than what is in memory

    @contextmanager
    def held(self) -> Iterator[Kept]:
        """Keep the other daemon waiting, and give what is kept."""
        with ExitStack() as stack:
            try:
                number = self._open(stack)
                fcntl.flock(number, fcntl.LOCK_EX)
                if not self._unwritten:
                    self._kept = _parse(os.pread(number, _MAX_BYTES, 0)) or self._kept
                self._number = number
            except OSError as error:
                _log.debug("the token is kept in memory only: %s", error)
            try:
                yield self._kept
            finally:
                self._number = None

    def keep(self, kept: Kept) -> None:
        """Replace what is kept, while it is held."""
        self._kept = kept
        if self._number is not None:
            try:
                os.ftruncate(self._number, 0)
                os.pwrite(self._number, json.dumps(asdict(kept)).encode(), 0)
                self._unwritten = False
            except OSError as error:
                self._unwritten = True
                _log.debug("the token is kept in memory only: %s", error)

    def _open(self, stack: ExitStack) -> int:
        if self._state is None:
            raise FileNotFoundError("no state directory")
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(self._state / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, number)  # and with it the lock goes
        if os.geteuid() == 0:  # `sudo envoy2emon check`: the file belongs to the daemons all the same
            owner = self._state.stat()
            os.fchown(number, owner.st_uid, owner.st_gid)
        return number


def _parse(content: bytes) -> Kept | None:
    """Return what a file holds; None if it is empty, as a new one is, or was cut off by a power cut."""
    try:
        fields = json.loads(content)
        return Kept(str(fields["token"]), float(fields["login_at"]), str(fields["trouble"]))
    except (ValueError, TypeError, LookupError):
        return None
