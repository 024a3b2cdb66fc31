"""The backlog on disk, to survive restarts and power cuts: one SQLite file per daemon, kept only while blocks wait.

A disk that fails never stops the daemon: the failure is logged once, saving is tried again, and the blocks wait in
memory. A file that is damaged or not ours is set aside under a new name, never deleted.
"""

import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import sqlite3

_OURS = 0x65326502  # SQLite's application_id: "e2e", layout 2; version 1.0 had another layout
_LAYOUT = f"""
    PRAGMA application_id = {_OURS};
    CREATE TABLE blocks (
        number INTEGER PRIMARY KEY, dates TEXT NOT NULL, packed BLOB NOT NULL, checksum INTEGER NOT NULL
    );
"""
# SQLite's PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN: the file itself may be good.
_DISK_TROUBLE = {3, 5, 6, 7, 8, 10, 13, 14}

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Saved:
    """A block on disk; packed: its rows' inputs, compressed."""

    number: int
    dates: list[int]
    packed: bytes


class Disk:
    """The file at `path`, for one thread at a time; `path` is None if there is no directory for it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._in_trouble = False
        self.renewed = False  # the file was set aside, and with it what was saved

    def load(self) -> list[Saved]:
        """Return the blocks that an earlier run left, oldest first."""
        if self._path is None:
            return []
        try:
            if not self._path.exists():
                return []
        except OSError as error:
            self._say(error)
            return []
        return self._try(_blocks, self._path) or []

    def save(self, blocks: Sequence[Saved]) -> bool:
        """Write blocks in one transaction, replacing those with the same numbers; return whether that succeeded."""
        entries = [(block.number, json.dumps(block.dates), block.packed) for block in blocks]
        summed = [(*entry, _checksum(entry)) for entry in entries]
        return self._do(lambda file: file.executemany("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", summed))

    def delete(self, numbers: Iterable[int], *, last: bool) -> bool:
        """Delete blocks, and the file if they are the `last`; return whether that succeeded.

        The blocks are deleted before the file, because a power cut may bring a file back. The file is deleted in any
        case, because blocks cannot be deleted on a full disk.
        """
        entries = [(number,) for number in numbers]
        done = self._do(lambda file: file.executemany("DELETE FROM blocks WHERE number = ?", entries))
        if last and self._path:
            try:
                self._path.unlink(missing_ok=True)
                done = True
            except OSError as error:
                self._say(error)
        return done

    def _do(self, work: "Callable[[sqlite3.Connection], object]") -> bool:
        if self._path is None:
            self._say("there is no state directory")
            return False
        if self._try(work, self._path) is None:
            return False
        if self._in_trouble:
            self._in_trouble = False
            _log.info("the backlog is saved to %s again", self._path)
        return True

    def _try(self, work: "Callable[[sqlite3.Connection], T]", path: Path) -> T | None:
        """Return the result of `work` on the file, done in one transaction; None if that fails."""
        try:
            import sqlite3  # noqa: PLC0415 - takes 6 ms and 1 MiB, not needed while EmonCMS answers
        except (ImportError, OSError) as error:  # Python was upgraded meanwhile, or the disk fails
            self._say(error)
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(sqlite3.connect(path, timeout=1)) as file, file:
                file.execute("PRAGMA synchronous = EXTRA")  # a power cut brings back nothing that was deleted
                _lay_out(file)
                return work(file)
        except (OSError, sqlite3.Error, ValueError) as error:
            self._trouble(path, error)
            return None

    def _trouble(self, path: Path, error: Exception) -> None:
        """Log what is wrong with the disk, or set the file aside if the file itself is bad."""
        if isinstance(error, OSError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_TROUBLE:
            self._say(error)
            return
        aside = path.with_name(f"{path.name}.set-aside-{time.time():.0f}")
        try:
            path.rename(aside)
        except OSError as trouble:
            self._say(trouble)
        else:
            self.renewed = True
            _log.warning(
                "the saved backlog %s cannot be read (%s): it was renamed %s, and its rows will not be delivered",
                path,
                error,
                aside.name,
            )

    def _say(self, trouble: object) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            words = getattr(trouble, "strerror", None) or trouble
            _log.warning("the backlog cannot be saved (%s): rows wait in memory only", words)


def _lay_out(file: "sqlite3.Connection") -> None:
    """Create our layout in an empty file. Raises ValueError if the file has another layout."""
    if file.execute("PRAGMA application_id").fetchone() != (_OURS,):
        if file.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise ValueError("it is another program's, or another version's")
        file.executescript(_LAYOUT)


def _blocks(file: "sqlite3.Connection") -> list[Saved]:
    """Return all blocks of a file, oldest first. Raises ValueError for a damaged one."""
    blocks = []
    for *entry, checksum in file.execute("SELECT * FROM blocks ORDER BY number"):
        if checksum != _checksum(entry):
            raise ValueError("a block is damaged")
        number, dates, packed = entry
        blocks.append(Saved(number, json.loads(dates), packed))
    return blocks


def _checksum(entry: Sequence[object]) -> int:
    """Return a checksum of an entry, whatever its types, because SQLite has none and SD cards fail."""
    return zlib.crc32(repr(tuple(entry)).encode())
