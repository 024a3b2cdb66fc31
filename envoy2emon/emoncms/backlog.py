"""Rows that EmonCMS has not acknowledged, oldest first: in memory, during an outage in the spool too; bounded.

The law of this file: a row leaves only when it was acknowledged, was rejected, or is the oldest of too many. While
EmonCMS answers, rows leave before they are old enough to be saved, and nothing is written to disk.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from envoy2emon.emoncms.dates import Flight, Progress
from envoy2emon.emoncms.group import Group
from envoy2emon.rows import Row
from envoy2emon.emoncms.spool import Spool

# A kill or a power cut may cost 60 s of readings: half of it, and 5 s between two looks, leave room for a slow disk.
SAVE_AFTER_S = 30.0
# Loose rows take 5 kB each, packed ones 0.15 kB.
MOST_LOOSE = 300
LOSSES_SAID_EVERY_S = 3600.0

_log = logging.getLogger(__name__)


class Backlog:
    """The rows of one daemon: its reader appends, its delivery thread takes, its main thread saves.

    Rows are known by sequence numbers; `limit` rows are kept. lost: how many went beyond it. Of rows of an earlier run,
    bridged: their times came over a reboot; stale: their disk takes no note of what is delivered. append() and oldest()
    never wait for the disk: the spool has a lock of its own, which is taken before that of the rows.
    """

    def __init__(self, limit: int, spool: Spool, clock: Callable[[], float]) -> None:
        self.lost = 0
        self._lost_said = (0, float("-inf"))  # how many, when
        self._limit = limit
        self._spool = spool
        self._clock = clock
        self._closed = False
        self._disk = threading.RLock()
        self._lock = threading.Lock()
        groups, progress = spool.load(clock())
        self.bridged = spool.bridged
        self.stale = bool(groups) and not (spool.holds_rows and spool.save((), progress))
        self._left = groups if self.stale else []
        self._groups = deque(groups)
        end = groups[-1].first + groups[-1].count if groups else progress.delivered
        self._delivered = max(progress.delivered, groups[0].first) if groups else end
        self._flight = progress.flight
        self._loose: deque[tuple[float, Row]] = deque()  # (when it was appended, the row)
        self._loose_first = end
        self._saved = end
        self._forget(self._delivered)

    def __len__(self) -> int:
        """Count the rows that wait."""
        return max(0, self._end - self._delivered)  # read without the lock too, by status()

    @property
    def _end(self) -> int:
        return self._loose_first + len(self._loose)

    def __iter__(self) -> Iterator[Row]:
        """Go through the rows that wait, oldest first, with few of them unpacked at a time."""
        for group in self._groups:
            yield from group.rows()[max(0, self._delivered - group.first) :]
        yield from [row for _, row in self._loose]

    def append(self, rows: Sequence[Row]) -> None:
        """Add new rows, in order; beyond the limit the oldest go."""
        now = self._clock()
        with self._lock:
            self._loose.extend([(now, row) for row in rows])
            if (excess := len(self) - self._limit) > 0:
                self.lost += excess
                self._forget(self._delivered + excess)
            if len(self._loose) > MOST_LOOSE:
                self._pack()

    def oldest(self, most: int) -> tuple[int, list[Row], Flight | None]:
        """Return the number of the oldest row, `most` rows from it on, and the post whose fate is unclear.

        If there is one, the rows are those of that post.
        """
        with self._lock:
            if self._flight:
                most = self._flight.end - self._delivered
            return self._delivered, list(islice(self, most)), self._flight

    def left(self, first: int) -> Iterator[Row]:
        """Go, once, through the rows that an earlier run left, from number `first` on."""
        left, self._left = self._left, []
        for group in left:
            yield from group.rows()[max(0, first - group.first) :]

    def sent(self, flight: Flight | None, *, at_once: bool = False) -> bool:
        """Note that rows are under way, before they are; None: they did not arrive for certain.

        False after close(): what is saved as waiting must not be sent any more. `at_once`: False as well if that would
        take the disk.
        """
        if not self._disk.acquire(blocking=not at_once):
            return False
        try:
            if self._closed or (at_once and self._spool.holds_rows):
                return False
            with self._lock:
                self._flight = flight
            if self._spool.holds_rows and not self._write():
                # After a kill a file that cannot be brought up to date would send again what is delivered.
                self._spool.clear()
                with self._lock:
                    self._saved = self._delivered
            return True
        finally:
            self._disk.release()

    def close(self) -> None:
        """Save all that waits, for the next run."""
        with self._disk:
            self._closed = True
            self.save(now=True)

    def done(self, end: int) -> None:
        """Forget the rows before number `end`: EmonCMS has them, or will not have them."""
        with self._lock:
            self._flight = None
            self._forget(end)
        with self._disk:
            if self._delivered >= self._saved:
                self._spool.clear()

    def say_losses(self) -> None:
        """Log the rows that went beyond the limit: the first at once, then once an hour."""
        (said, at), lost = self._lost_said, self.lost  # the reader thread may append meanwhile
        if lost > said and self._clock() - at >= LOSSES_SAID_EVERY_S:
            _log.warning("the backlog is full: the oldest %d rows are lost (BACKLOG_HOURS)", lost - said)
            self._lost_said = (lost, self._clock())

    def save(self, *, now: bool = False) -> None:
        """Write to disk what has waited for SAVE_AFTER_S, or all that waits if `now`."""
        with self._disk:
            with self._lock:
                if self._loose and (now or self._clock() - self._loose[0][0] >= SAVE_AFTER_S):
                    self._pack()
                due = len(self) and (now or self._loose_first > self._saved)
            if due:
                self._write()

    def _write(self) -> bool:
        with self._lock:
            if self._flight and self._flight.end > self._loose_first:
                self._pack()  # or after a kill nobody knew what was sent
            since = self._saved if self._spool.holds_rows else self._delivered
            new = [group for group in self._groups if group.first + group.count > since]
            end, progress = self._loose_first, Progress(self._delivered, self._flight)
        saved = self._spool.save(new, progress)
        with self._lock:
            if saved:
                self._saved = max(self._saved, end)
            elif not self._spool.holds_rows:
                self._saved = self._delivered  # the file was damaged: all of it is written anew by the next look
        return saved

    def _pack(self) -> None:
        if self._loose:
            self._groups.append(Group.pack(self._loose_first, [row for _, row in self._loose]))
            self._loose_first += len(self._loose)
            self._loose.clear()

    def _forget(self, end: int) -> None:
        self._delivered = max(self._delivered, end)
        self._saved = max(self._saved, self._delivered)
        if self._flight and self._flight.end <= self._delivered:
            self._flight = None
        while self._groups and self._groups[0].first + self._groups[0].count <= self._delivered:
            self._groups.popleft()
        while self._loose and self._loose_first < self._delivered:
            self._loose.popleft()
            self._loose_first += 1
