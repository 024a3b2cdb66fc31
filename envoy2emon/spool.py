"""The backlog's copy on disk: one SQLite file a daemon, there only while rows wait.

The law of this file: it never takes the daemon down and never deletes what it cannot read. A file that is damaged or
not ours is set aside under a new name; a disk that is full, read-only or missing is said once and tried again.

Dates across a restart: within one boot of the machine the monotonic clock goes on, and rows keep their dates exactly,
however the wall clock jumps. Across a reboot, only the wall clock can bridge the gap: rows come back with the dates
that the wall clock had for them when they were last saved. If it was wrong then, or is wrong when they are loaded (a Pi
has no clock of its own and starts at an old date until the network tells it the time), they are off by as much; they
keep their distances and are never dated into the future. On a Pi that runs EmonCMS too, both share one wrong clock, and
the dates fit each other.
"""

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from envoy2emon.dates import Flight
from envoy2emon.inputs import Row

_log = logging.getLogger(__name__)

_OURS = 0x65326501  # SQLite's application_id: "e2e", layout 1
_LAYOUT = f"""
    PRAGMA application_id = {_OURS};
    CREATE TABLE rows (first INTEGER PRIMARY KEY, count INTEGER, boot TEXT, packed BLOB);
    CREATE TABLE boots (boot TEXT PRIMARY KEY, wall REAL);
    CREATE TABLE progress (one INTEGER PRIMARY KEY, delivered INTEGER, flight_end INTEGER, sent REAL, failed REAL);
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows in a bundle: `count` rows from sequence number `first`; `shift` s make their times this boot's."""

    first: int
    count: int
    packed: bytes
    shift: float = 0.0

    @classmethod
    def pack(cls, first: int, rows: Sequence[Row]) -> "Group":
        """Compress rows: names cost nothing in a bundle, digits little."""
        lines = [f"[{row.at!r},{json.dumps(row.node)},{row.text()}]" for row in rows]
        return cls(first, len(rows), zlib.compress(f"[{','.join(lines)}]".encode()))

    def rows(self) -> list[Row]:
        """Return the rows as they went in, digit by digit."""
        entries = json.loads(zlib.decompress(self.packed), parse_float=Decimal, parse_int=Decimal)
        return [Row(float(at) + self.shift, node, inputs) for at, node, inputs in entries]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far delivery has come: rows before number `delivered` are done; `flight` is under way or unclear."""

    delivered: int
    flight: Flight | None = None


class Spool:
    """One daemon's file. `boot` names this boot of the machine; `wall_minus_monotonic` gives the clocks' distance in s.

    With `boot` None the rows' times are epoch seconds, which need no bridge from boot to boot. `holds_rows` tells
    whether there is a file of ours, which is to say: rows wait in it.
    """

    def __init__(self, path: Path | None, boot: str | None, wall_minus_monotonic: Callable[[], float]) -> None:
        self._path = path
        self._boot = boot or ""
        self._wall = wall_minus_monotonic
        self._file: sqlite3.Connection | None = None
        self._said = False
        self.holds_rows = False

    def load(self, now: float) -> tuple[list[Group], Progress]:
        """Return the rows saved by an earlier run; `now` is the monotonic time that none of them may exceed."""
        groups: list[Group] = []
        progress = Progress(0)
        if self._path is None or not self._path.exists():
            return groups, progress
        try:
            self._open(self._path)
            progress = self._read(groups, now)
        except (sqlite3.DatabaseError, zlib.error, ValueError, TypeError) as error:
            self._set_aside(self._path, error)
        except OSError as error:
            self._say(error)
        return groups, progress

    def save(self, groups: Iterable[Group], progress: Progress) -> bool:
        """Write new groups and the progress in one transaction; tell whether the disk has them now."""
        if self._path is None:
            return False
        try:
            file = self._file or self._open(self._path)
            with file:
                file.execute("BEGIN IMMEDIATE")
                file.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                    [(group.first, group.count, self._boot, group.packed) for group in groups],
                )
                file.execute("DELETE FROM rows WHERE first + count <= ?", (progress.delivered,))
                file.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (self._boot, self._wall()))
                flight = progress.flight
                state = (flight.end, flight.sent_at, flight.failed_at) if flight else (None, None, None)
                file.execute("INSERT OR REPLACE INTO progress VALUES (1, ?, ?, ?, ?)", (progress.delivered, *state))
        except (OSError, sqlite3.Error) as error:
            self._say(error)
            return False
        if self._said:
            _log.info("the backlog is saved to %s again", self._path)
            self._said = False
        return True

    def clear(self) -> None:
        """Remove the file: all rows are delivered."""
        if self.holds_rows and self._path:
            self._close()
            try:
                self._path.unlink(missing_ok=True)
                self.holds_rows = False
            except OSError as error:
                self._say(error)

    def _close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One lock in Backlog guards every use, by whatever thread.
        file = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            if file.execute("PRAGMA application_id").fetchone() != (_OURS,):
                if file.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                    raise sqlite3.DatabaseError("it is another program's file")
                file.executescript(_LAYOUT)
        except sqlite3.Error:
            file.close()
            raise
        self._file = file
        self.holds_rows = True
        return file

    def _read(self, groups: list[Group], now: float) -> Progress:
        assert self._file  # noqa: S101 - load() opened it
        select = self._file.execute
        walls = dict(select("SELECT boot, wall FROM boots").fetchall())
        shifts = {boot: wall - self._wall() if boot != self._boot else 0.0 for boot, wall in walls.items()}
        for first, count, boot, packed in select("SELECT first, count, boot, packed FROM rows ORDER BY first"):
            group = Group(first, count, packed, shifts.get(boot, 0.0))
            # Reading all of it shows damage now; what an earlier boot dates after now moves back as a whole.
            ahead = max(row.at for row in group.rows()) - now
            if self._boot and ahead > 0:
                groups[:] = [replace(earlier, shift=earlier.shift - ahead) for earlier in groups]
                shifts = {boot: shift - ahead for boot, shift in shifts.items()}
                group = replace(group, shift=group.shift - ahead)
            groups.append(group)
        row = select("SELECT delivered, flight_end, sent, failed FROM progress").fetchone()
        delivered, end, sent, failed = row or (0, None, 0.0, 0.0)
        shift = groups[0].shift if groups else 0.0
        return Progress(delivered, None if end is None else Flight(end, sent + shift, failed + shift))

    def _set_aside(self, path: Path, error: Exception) -> None:
        self._close()
        self.holds_rows = False
        number = 1
        while (aside := path.with_suffix(f".damaged-{number}")).exists():
            number += 1
        try:
            path.rename(aside)
            _log.warning("the saved backlog %s cannot be read (%s): it is now %s", path, error, aside.name)
        except OSError as trouble:
            self._path = None
            self._say(trouble)

    def _say(self, error: Exception) -> None:
        if not self._said:
            _log.warning("the backlog cannot be saved to %s (%s): rows wait in memory only", self._path, error)
            self._said = True
        self._close()
