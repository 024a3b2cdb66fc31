"""Backlog -> EmonCMS: posts the oldest block until EmonCMS has it, then the next.

A post that fails may have been applied, in whole or in part, so the next attempt first asks what EmonCMS shows and
leaves out what is there. The same is done for rows of an earlier run, because only EmonCMS records what was delivered.
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
from envoy2emon.rows import Row, Undated, inputs_json, not_applied
from envoy2emon.settings import Settings

MOST_WAIT_S = 60.0
# How often the thread shows that it is alive while there is nothing to post.
ALIVE_EVERY_S = 60.0
# A server whose client is gone goes on applying rows. Two equal answers, this long apart, show that it has finished.
ASK_AGAIN_S = 1.0
# A post that is under way at SIGTERM has this long to finish, so that the stop takes less than 2 s.
LAST_POST_S = 1.0
# If this many rows are rejected one after another, EmonCMS accepts no row at all (node limit, access).
MOST_REJECTED = 10
# If one of a row's processes crashes PHP, the post fails but EmonCMS shows the row. It is reposted this many times.
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
        self._clock_known = False  # whether EmonCMS has answered since the start
        self._in_doubt = len(backlog) > 0  # the oldest block may have been posted already
        self._under_way = 0  # rows that are being posted
        self._rejected: list[Row] = []  # since a row was last accepted
        self._takes_none = False
        self._crashing_row: Row | None = None  # posted again although EmonCMS shows it
        self._crashes = 0

    @classmethod
    def to(cls, settings: Settings, node: str, state: Path | None, name: str) -> "Delivery":
        """Return the delivery to a node of the owner's EmonCMS, with what an earlier run of `name` left in `state`."""
        backlog = Backlog(Disk(state and state / f"{name}.sqlite"), float(settings.backlog_hours) * 3600)
        if len(backlog):
            _log.info("%s of an earlier run waiting to be delivered", rows_in_words(len(backlog)))
        emoncms = EmonCMS(settings.emoncms_url, settings.emoncms_apikey, node, settings.emoncms_cert_sha256)
        return cls(backlog, emoncms, float(settings.emoncms_interval_s))

    def run(self, alive: Callable[[], None]) -> None:
        """Deliver until finish(), then attempt once more unless the last post is in doubt."""
        while True:
            alive()
            last = self._stopping.is_set()
            if last and self._in_doubt:
                return  # the next run asks what became of the last post
            wait = self.attempt()
            if last:
                return
            self._stopping.wait(wait)

    def finish(self, thread: threading.Thread) -> None:
        """Stop the delivery thread, allowing LAST_POST_S for a last post, and save the rows that still wait."""
        self._stopping.set()
        self._backlog.stop_waiting()
        thread.join(LAST_POST_S)
        self.save(now=True)

    def append(self, rows: Sequence[Row | Undated]) -> None:
        """Add new rows."""
        self._backlog.append(rows)

    def save(self, *, now: bool = False) -> None:
        """Save rows that have waited for a while, or all rows if `now`."""
        self._backlog.save(self._emoncms.clock.ahead, now=now)

    def attempt(self) -> float:
        """Try to deliver the oldest block, and return the seconds to wait before the next attempt."""
        try:
            if not self._clock_known:
                self._learn_clock()
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
            return self.outage.refused(
                f"rejects every row ({trouble}); the rows are kept. If it has 32 nodes, delete the inputs of one"
            )
        finally:
            self._under_way = 0
        self._in_doubt = False
        self._end_outage()
        self._backlog.done(block)
        self.outage.steady()
        return max(0.0, began + self.interval - self._clock())

    def status(self) -> str:
        """Return how many rows wait, and any outage, in words for STATUS=."""
        waiting = len(self._backlog) - self._under_way
        return (f"{rows_in_words(waiting)} waiting" if waiting > 0 else "nothing is waiting") + self.outage.status()

    def _learn_clock(self) -> None:
        """Make the first request, to learn EmonCMS's clock and the latest date that it shows from an earlier run."""
        try:
            shown = self._emoncms.shown()
        finally:
            self.save()  # because dates on disk may be by this computer's clock; any answer tells EmonCMS's
        self._emoncms.clock.note(max(shown.values(), default=0))
        self._clock_known = True
        self._end_outage()

    def _end_outage(self) -> None:
        waiting = len(self._backlog)
        self.outage.ends(f"; {rows_in_words(waiting)} waited and are being delivered" if waiting else "")

    def _deliver(self, block: Block) -> None:
        """Post a block's rows, or only those that EmonCMS may lack. Raises Unavailable, Unauthorized, TakesNone."""
        self._backlog.fix_dates(block, self._emoncms.clock.date)
        rows = block.rows()
        self._emoncms.clock.note(rows[-1].date)  # a block from disk was dated by an earlier run
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
                for row in self._lacking(rows):  # those before the rejected one are applied
                    self._post([row], all_rows)
        else:
            self._rejected, self._takes_none = [], False

    def _reject(self, row: Row, words: str, all_rows: list[Row]) -> None:
        """Drop a row rejected alone; if EmonCMS accepts none, keep it and the earlier ones, and raise TakesNone."""
        if row not in self._rejected:  # it may be tried again because a later one failed
            self._rejected.append(row)
        if self._takes_none or len(self._rejected) >= MOST_REJECTED:
            self._takes_none = True
            before, self._rejected = [each for each in self._rejected if each not in all_rows], []
            if before:
                self._backlog.put_back(before)
            raise TakesNone(words)
        _log.error("EmonCMS: rejects a row (%s), which is dropped: %s", words, inputs_json(row.inputs)[:300])

    def _lacking(self, rows: list[Row]) -> list[Row]:
        """Return the rows that EmonCMS may lack, asking until two successive answers are equal."""
        before, shown = None, self._emoncms.shown()
        while (lacking := not_applied(rows, shown)) != before:
            if self._stopping.wait(ASK_AGAIN_S):
                raise Unavailable("the daemon stops before it knows what EmonCMS has")
            before, shown = lacking, self._emoncms.shown()
        return self._without_one_that_crashes(lacking, shown)

    def _without_one_that_crashes(self, rows: list[Row], shown: Mapping[str, int]) -> list[Row]:
        """Leave out the first row, as applied, if it was posted again MOST_REPEATED times although EmonCMS shows it."""
        first = rows[0] if rows else None
        if first is None or any(shown.get(name) != first.date for name in first.inputs):
            self._crashing_row = None
        elif first != self._crashing_row:
            self._crashing_row, self._crashes = first, 1
        elif self._crashes < MOST_REPEATED:
            self._crashes += 1
        else:
            _log.error(
                "EmonCMS: fails each time it processes this row, which is skipped (look at its inputs' processes): %s",
                inputs_json(first.inputs)[:300],
            )
            return rows[1:]
        return rows


def rows_in_words(count: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if count == 1 else f"{count} rows"
