"""The backlog's copy on disk: one SQLite file a daemon, there only while rows wait.

The law of this file: it never takes the daemon down and never deletes what it cannot read. A file that is damaged or
not ours is set aside under a new name; a disk that is full, read-only or missing is said once and tried again.

Dates across a restart: within one boot of the machine the monotonic clock goes on, and rows keep their dates exactly,
however the wall clock jumps. Across a reboot, only the wall clock can bridge the gap: rows come back with the dates
that the wall clock had for them when they were last saved. If it was wrong then, or is wrong when they are loaded (a Pi
has no clock of its own and starts at an old date until the network tells it the time), they are off by as much; they
keep their distances and are never dated into the future. On a Pi that runs EmonCMS too, both share one wrong clock, and
the dates fit each other.

What was delivered while the disk took no note of it is asked for if the disk still takes none at the next start
(delivery.py). If it takes notes again by then, the file looks as after any kill, and these rows go once more, with the
dates that they had.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envoy2emon.emoncms.dates import Flight, Progress
from envoy2emon.emoncms.group import Group

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)

_OURS = 0x65326501  # SQLite's application_id: "e2e", layout 1
_BRIDGED = " after a reboot"  # behind the boot's name: from then on times are only as right as a wall clock
_DAMAGED = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
_IN_TROUBLE = {3, 5, 6, 7, 8, 10, 13, 14}  # PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN
_LAYOUT = f"""
    BEGIN;
    PRAGMA application_id = {_OURS};
    CREATE TABLE rows (first INTEGER PRIMARY KEY, count INTEGER, shift REAL, packed BLOB);
    CREATE TABLE state (one INTEGER PRIMARY KEY, boot TEXT, wall REAL, delivered INTEGER, flying INTEGER, sent REAL);
    COMMIT;
"""


class Spool:
    """One daemon's file. `boot` names this boot of the machine; `wall_minus_monotonic` gives the clocks' distance in s.

    With `boot` None the rows' times are epoch seconds, which need no bridge from boot to boot. `holds_rows` tells
    whether there is a file of ours, which is to say: rows wait in it; `bridged`, that some came over a reboot.
    """

    def __init__(self, path: Path | None, boot: str | None, wall_minus_monotonic: Callable[[], float]) -> None:
        self._path = path
        self._boot = boot or ""
        self._wall = wall_minus_monotonic
        self._file: sqlite3.Connection | None = None
        self._said = False
        self._unread: Exception | None = None  # why the file has to be set aside first
        self.holds_rows = False
        self.bridged = False

    def load(self, now: float) -> tuple[list[Group], Progress]:
        """Return the rows saved by an earlier run; `now` is the monotonic time that none of them may exceed."""
        try:
            if self._path and self._path.exists():
                return self._read(self._open(self._path), now)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file that anyone may have written
            if isinstance(error, OSError) or _code(error) in _IN_TROUBLE:
                self._leave(error)  # the file may be good
                self._say(error)
            else:
                self._set_aside(error)
        return [], Progress(0)

    def save(self, groups: Iterable[Group], progress: Progress) -> bool:
        """Write new groups and the progress in one transaction; tell whether the disk has them now."""
        if self._unread:
            self._set_aside(self._unread)
        if self._path is None or self._unread:
            self._say("there is no state directory")
            return False
        import sqlite3  # noqa: PLC0415 - 0.9 MB, needed only when EmonCMS is or was away

        try:
            with self._file or self._open(self._path) as file:
                file.execute("BEGIN IMMEDIATE")
                file.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                    [(group.first, group.count, group.shift, group.packed) for group in groups],
                )
                file.execute("DELETE FROM rows WHERE first + count <= ?", (progress.delivered,))
                flight = (progress.flight.end, progress.flight.sent_at) if progress.flight else (None, None)
                boot = self._boot + _BRIDGED if self.bridged else self._boot
                state = (boot, self._wall(), progress.delivered, *flight)
                file.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?, ?)", state)
        except (OSError, sqlite3.Error) as error:
            if _code(error) in _DAMAGED:
                self._set_aside(error)
            else:
                self._say(error)
            return False
        if self._said:
            _log.info("the backlog is saved to %s again", self._path)
            self._said = False
        return True

    def clear(self) -> None:
        """Remove the file: all rows are delivered."""
        if self.holds_rows and self._path:
            self.close()
            try:
                self._path.unlink(missing_ok=True)
                self.holds_rows = self.bridged = False
            except OSError as error:
                self._say(error)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> "sqlite3.Connection":
        import sqlite3  # noqa: PLC0415 - 0.9 MB, needed only when EmonCMS is or was away

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

    def _read(self, file: "sqlite3.Connection", now: float) -> tuple[list[Group], Progress]:
        groups: list[Group] = []
        state = file.execute("SELECT boot, wall, delivered, flying, sent FROM state").fetchone()
        boot, wall, delivered, end, sent = state or (self._boot, 0.0, 0, None, 0.0)
        newest = float("-inf")
        for entry in file.execute("SELECT first, count, packed, shift FROM rows ORDER BY first"):
            group = Group(*entry)
            rows = group.rows()  # reading all of it shows damage now
            if len(rows) != group.count or (groups and group.first != groups[-1].first + groups[-1].count):
                raise ValueError("rows are missing")
            newest = max(newest, rows[-1].at)
            groups.append(group)
        same = boot.removesuffix(_BRIDGED) == self._boot
        self.bridged = bool(self._boot) and boot != self._boot
        shift = 0.0 if same else min(wall - self._wall(), now - newest)
        groups = [replace(group, shift=group.shift + shift) for group in groups]
        flight = None if end is None else Flight(end, sent + shift, bridged=self.bridged)
        progress = Progress(delivered, flight)
        # All times in the file are of one boot.
        if not same and not self.save(groups, progress):
            self._leave(OSError("it is of an earlier boot"))
        return groups, progress

    def _leave(self, error: Exception) -> None:
        """Do not touch the file until there is something to save: then it gets a new name, and all is saved anew."""
        self.close()
        self._unread = error
        self.holds_rows = False

    def _set_aside(self, error: Exception) -> None:
        """Give the file a new name."""
        self.close()
        self.holds_rows = False
        path, number = Path(self._path or ""), 1
        try:
            while (aside := path.with_suffix(f".damaged-{number}")).exists():
                number += 1
            if path.exists():
                path.rename(aside)
                _log.warning("the saved backlog %s cannot be read (%s): it is now %s", path, error, aside.name)
            self._unread = None
        except OSError as trouble:
            self._unread = error
            self._say(trouble)

    def _say(self, trouble: Exception | str) -> None:
        if not self._said:
            where = f" to {self._path}" if self._path else ""
            _log.warning("the backlog cannot be saved%s (%s): rows wait in memory only", where, trouble)
            self._said = True
        self.close()


def _code(error: Exception) -> int | None:
    """Return SQLite's primary result code, None if the error is not SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
