"""Rows that EmonCMS has not acknowledged, oldest first: in memory, during an outage in the spool too; bounded.

The law of this file: a row leaves only when it was acknowledged, was rejected, or is the oldest of too many. While
EmonCMS answers, rows leave before they are old enough to be saved, and nothing is written to disk.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from envoy2emon.dates import Flight, Progress
from envoy2emon.group import Group
from envoy2emon.inputs import Row
from envoy2emon.spool import Spool

# A kill or a power cut may cost 60 s of readings: half of it, and 5 s between two looks, leave room for a slow disk.
SAVE_AFTER_S = 30.0
# Loose rows take 5 kB each, packed ones 0.15 kB.
MOST_LOOSE = 300

# A delivery thread with nothing to do shows that it is alive.
IDLE_S = 60.0
LOSSES_SAID_EVERY_S = 3600.0

_log = logging.getLogger(__name__)


class Backlog:
    """The rows of one daemon: its reader thread appends, its delivery thread takes, its main thread saves.

    Rows are known by sequence numbers; `limit` rows are kept. `lost` counts the rows that went beyond it.
    """

    def __init__(self, limit: int, spool: Spool, clock: Callable[[], float]) -> None:
        self.lost = 0
        self._lost_said = (0, float("-inf"))  # how many, when
        self._limit = limit
        self._spool = spool
        self._clock = clock
        self._closed = False
        self._changed = threading.Condition()
        groups, progress = spool.load(clock())
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
        with self._changed:
            self._loose.extend([(now, row) for row in rows])
            if (excess := len(self) - self._limit) > 0:
                self.lost += excess
                self._forget(self._delivered + excess)
            if len(self._loose) > MOST_LOOSE:
                self._pack()
            self._changed.notify()

    def wait(self, seconds: float | None) -> None:
        """Wait so long; None: until there is a row, or for IDLE_S."""
        with self._changed:
            if seconds is None:
                self._changed.wait_for(lambda: len(self), IDLE_S)
            elif seconds > 0:
                self._changed.wait_for(lambda: False, seconds)

    def oldest(self, most: int) -> tuple[int, list[Row], Flight | None]:
        """Return the number of the oldest row, `most` rows from it on, and the post whose fate is unclear.

        If there is one, the rows are those of that post.
        """
        with self._changed:
            if self._flight:
                most = self._flight.end - self._delivered
            return self._delivered, list(islice(self, most)), self._flight

    def sent(self, flight: Flight | None) -> bool:
        """Note that rows are under way, before they are; None: they did not arrive for certain.

        False after close(): what is saved as waiting must not be sent any more.
        """
        with self._changed:
            if self._closed:
                return False
            self._flight = flight
            if self._spool.holds_rows and not self._write():
                # After a kill a file that cannot be brought up to date would send again what is delivered.
                self._spool.clear()
                self._saved = self._delivered
            return True

    def close(self) -> None:
        """Save all that waits, for the next run."""
        with self._changed:
            self._closed = True
            self.save(now=True)

    def done(self, end: int) -> None:
        """Forget the rows before number `end`: EmonCMS has them, or will not have them."""
        with self._changed:
            self._flight = None
            self._forget(end)
            if self._delivered >= self._saved:
                self._spool.clear()

    def say_losses(self) -> None:
        """Log the rows that went beyond the limit: the first at once, then once an hour."""
        said, at = self._lost_said
        if self.lost > said and self._clock() - at >= LOSSES_SAID_EVERY_S:
            _log.warning("the backlog is full: the oldest %d rows are lost (BACKLOG_HOURS)", self.lost - said)
            self._lost_said = (self.lost, self._clock())

    def save(self, *, now: bool = False) -> None:
        """Write to disk what has waited for SAVE_AFTER_S, or all that waits if `now`."""
        with self._changed:
            if self._loose and (now or self._clock() - self._loose[0][0] >= SAVE_AFTER_S):
                self._pack()
            if len(self) and (now or self._loose_first > self._saved):
                self._write()

    def _write(self) -> bool:
        if self._flight and self._flight.end > self._loose_first:
            self._pack()  # or after a kill nobody knew what was sent
        since = self._saved if self._spool.holds_rows else self._delivered
        new = [group for group in self._groups if group.first + group.count > since]
        saved = self._spool.save(new, Progress(self._delivered, self._flight))
        if saved:
            self._saved = self._loose_first
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
