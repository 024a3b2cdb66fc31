"""Backlog -> EmonCMS: the oldest block first, until EmonCMS says that it has it.

A post that fails may have been applied, in whole or in part, so the next attempt first asks what EmonCMS shows and
leaves out what is there. The same holds for what an earlier run left: EmonCMS is the record of what was delivered.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envoy2emon.emoncms.backlog import Backlog, Block
from envoy2emon.emoncms.client import EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.emoncms.disk import Disk
from envoy2emon.outage import Outage
from envoy2emon.rows import Row, Undated, not_applied
from envoy2emon.settings import Settings

MOST_WAIT_S = 60.0
# With nothing to do the thread shows that it is alive this often.
ALIVE_EVERY_S = 60.0
# A server that lost its client goes on applying rows: only two equal answers tell that it has ended.
ASK_AGAIN_S = 1.0
# A post that is under way at SIGTERM may end in peace for so long; then the stop stays below 2 s.
LAST_POST_S = 1.0
# So many rows rejected one after the other are no bad rows: EmonCMS takes none at all (node limit, access).
MOST_REJECTED = 10
# A row one of whose processes brings PHP down is shown although its post fails: it goes again so often, and no more.
MOST_REPEATED = 10

_log = logging.getLogger(__name__)


class TakesNone(Exception):
    """EmonCMS rejects every row; the text is its own."""


class Delivery:
    """The delivery thread: run() is its work. interval: seconds from one post to the next; 0 posts each row at once."""

    def __init__(
        self,
        backlog: Backlog,
        emoncms: EmonCMS,
        interval: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        outage: Outage | None = None,
    ) -> None:
        self.outage = outage or Outage("EmonCMS", MOST_WAIT_S, clock)
        self._backlog = backlog
        self._emoncms = emoncms
        self.interval = interval
        self._clock = clock
        self._stopping = threading.Event()
        self._heard = self._corrected = False  # since the start
        self._in_doubt = len(backlog) > 0
        self._under_way = 0  # rows that are being posted
        self._rejected: list[Row] = []  # since a row was accepted last
        self._takes_none = False
        self._shown_row: Row | None = None  # goes again, though EmonCMS shows it
        self._shown_times = 0

    @classmethod
    def to(cls, settings: Settings, node: str, state: Path | None, name: str) -> "Delivery":
        """Make the delivery to a node of the owner's EmonCMS, with what an earlier run of `name` left in `state`."""
        backlog = Backlog(Disk(state and state / f"{name}.sqlite"), float(settings.backlog_hours) * 3600)
        if len(backlog):
            _log.info("%s of an earlier run waiting to be delivered", rows_in_words(len(backlog)))
        emoncms = EmonCMS(settings.emoncms_url, settings.emoncms_apikey, node, settings.emoncms_cert_sha256)
        return cls(backlog, emoncms, float(settings.emoncms_interval_s))

    def run(self, turned: Callable[[], None]) -> None:
        """Deliver until finish(), and what waits then once more."""
        while True:
            turned()
            last = self._stopping.is_set()
            if last and self._in_doubt:
                return  # the next run asks what became of the last post
            wait = self.attempt()
            if last:
                return
            self._stopping.wait(wait)

    def finish(self, thread: threading.Thread) -> None:
        """End the delivery thread after a last post that may take LAST_POST_S, and save what waits all the same."""
        self._stopping.set()
        self._backlog.hurry()
        thread.join(LAST_POST_S)
        self.save(now=True)

    def append(self, rows: Sequence[Row | Undated]) -> None:
        """Add new rows."""
        self._backlog.append(rows)

    def save(self, *, now: bool = False) -> None:
        """Save what has waited for a while, or all of it."""
        self._backlog.save(self._emoncms.clock.ahead, now=now)

    def attempt(self) -> float:
        """Do what is next, and return the seconds to wait before the next attempt."""
        try:
            if not self._heard:
                self._hear()
            block = self._backlog.oldest(ALIVE_EVERY_S)
            if block is None:
                return 0.0
            began, self._under_way = self._clock(), len(block.times)
            self._deliver(block)
        except Unavailable as trouble:
            return max(self.outage.fails(str(trouble)), self.interval)
        except Unauthorized as trouble:
            return self.outage.refused(str(trouble))
        except TakesNone as trouble:
            return self.outage.refused(f"rejects every row ({trouble}): the rows are kept. Has it reached 32 nodes?")
        finally:
            self._under_way = 0
            self._correct_dates()
        self._in_doubt = False
        waited = len(self._backlog)
        self._backlog.done(block)
        self.outage.ends(f"; {rows_in_words(waited)} waited and are being delivered")
        self.outage.steady()
        return max(0.0, began + self.interval - self._clock())

    def status(self) -> str:
        """Say how it stands, in words for STATUS=."""
        waiting = len(self._backlog) - self._under_way
        return (f"{rows_in_words(waiting)} waiting" if waiting > 0 else "nothing is waiting") + self.outage.status()

    def _hear(self) -> None:
        """Ask for the first time: the answer teaches the clock that dates rows, and what an earlier run dated last."""
        shown = self._emoncms.shown()
        self._emoncms.clock.note(max(shown.values(), default=0))
        self._heard = True
        self.outage.ends()

    def _correct_dates(self) -> None:
        """Have the right dates on disk as soon as an answer, of whatever kind, has taught the clock."""
        if not self._corrected and self._emoncms.clock.ahead is not None:
            self._backlog.correct(self._emoncms.clock.ahead)
            self._corrected = True

    def _deliver(self, block: Block) -> None:
        """Post a block's rows, or those of them that EmonCMS may lack. Raises Unavailable, Unauthorized, TakesNone."""
        self._backlog.fix_dates(block, self._emoncms.clock.date)
        rows = block.rows()
        self._emoncms.clock.note(rows[-1].date)  # a block from disk was dated elsewhere
        lacking = self._lacking(rows) if self._in_doubt else rows
        self._in_doubt = True
        self._post(lacking, rows)

    def _post(self, rows: list[Row], all_rows: list[Row]) -> None:
        if not rows:
            return
        try:
            self._emoncms.post(rows)
        except Rejected as trouble:
            if len(rows) == 1:
                self._reject(rows[0], str(trouble), all_rows)
            else:
                for row in self._lacking(rows):  # those before the bad one are applied
                    self._post([row], all_rows)
        else:
            self._rejected, self._takes_none = [], False

    def _reject(self, row: Row, words: str, all_rows: list[Row]) -> None:
        """Drop a row that is rejected alone; keep it, and those dropped before it, if EmonCMS takes none."""
        if row not in self._rejected:  # it may be tried again because a later one failed
            self._rejected.append(row)
        if self._takes_none or len(self._rejected) >= MOST_REJECTED:
            self._takes_none = True
            before, self._rejected = [each for each in self._rejected if each not in all_rows], []
            if before:
                self._backlog.put_back(before)
            raise TakesNone(words)
        _log.error("EmonCMS: rejects a row (%s), which is dropped: %s", words, row.json()[:300])

    def _lacking(self, rows: list[Row]) -> list[Row]:
        """Ask which of the rows EmonCMS may lack, until two answers in a row are equal."""
        before, shown = None, self._emoncms.shown()
        while (lacking := not_applied(rows, shown)) != before:
            if self._stopping.wait(ASK_AGAIN_S):
                raise Unavailable("the daemon stops before it knows what EmonCMS has")
            before, shown = lacking, self._emoncms.shown()
        return self._without_one_that_crashes(lacking, shown)

    def _without_one_that_crashes(self, rows: list[Row], shown: Mapping[str, int]) -> list[Row]:
        """Leave out a first row that EmonCMS has shown at MOST_REPEATED questions: it is taken as applied."""
        first = rows[0] if rows else None
        if first is None or any(shown.get(name) != first.date for name in first.inputs):
            self._shown_row = None
        elif first != self._shown_row:
            self._shown_row, self._shown_times = first, 1
        elif self._shown_times < MOST_REPEATED:
            self._shown_times += 1
        else:
            _log.error(
                "EmonCMS: fails each time after this row, which it shows: going on with the next row: %s",
                first.json()[:300],
            )
            return rows[1:]
        return rows


def rows_in_words(count: int) -> str:
    """Write a number of rows."""
    return "1 row" if count == 1 else f"{count} rows"
