"""Backlog -> EmonCMS, one step at a time: what to post, what an answer means, when to try again.

The law of this file: rows go oldest first, each until EmonCMS acknowledged it; what may have arrived is asked for
before it is sent again.
"""

import logging
import threading
from collections.abc import Callable

from envoy2emon.backlog import Backlog
from envoy2emon.dates import Dating, Flight
from envoy2emon.emoncms import Dropped, EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.inputs import Row
from envoy2emon.outage import Outage, duration

_log = logging.getLogger(__name__)

# 100 rows with 36 logged inputs keep EmonCMS on a Raspberry Pi busy for 13 s; it closes connections at 60.
MOST_ROWS = 100
MOST_WAIT_S = 60.0
# So many rows rejected one after the other are no bad rows: EmonCMS takes none at all (node limit, access).
MOST_BAD_ROWS = 10
# A server that lost its client goes on applying the batch: only two equal answers so far apart tell that it has ended.
ASK_AGAIN_S = 1.0


class Delivery:
    """Carries one daemon's rows, all of one node, to EmonCMS."""

    def __init__(
        self,
        backlog: Backlog,
        emoncms: EmonCMS,
        dating: Dating,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.outage = Outage("EmonCMS", MOST_WAIT_S, clock, jitter)
        self.idle = threading.Event()
        self._backlog = backlog
        self._emoncms = emoncms
        self._dating = dating
        self._clock = clock
        self._most = MOST_ROWS
        self._bad = 0
        self._applied: int | None = None

    def run(self, turned: Callable[[], None]) -> None:
        """Deliver for ever."""
        while True:
            turned()
            self._backlog.wait(self.step())

    def step(self) -> float | None:
        """Do what is next and return the seconds to wait before the next step; None: until there is a row.

        self.idle is set but while a post is under way.
        """
        first, rows = self._backlog.oldest(self._most)
        if not rows:
            return None
        self.idle.clear()
        try:
            flight = self._backlog.flight
            return self._ask(first, flight) if flight else self._post(first, rows)
        except Dropped:
            return 0.0
        except Unavailable as trouble:
            return self.outage.fails(str(trouble))
        except Unauthorized as trouble:
            return self.outage.fails(str(trouble), refused=True)
        finally:
            self.idle.set()

    def _post(self, first: int, rows: list[Row]) -> float:
        end = first + len(rows)
        sent = self._clock()
        # Until there is an answer, any later moment may be the one in which EmonCMS applied the rows.
        self._backlog.sent(Flight(end, sent, sent + MOST_WAIT_S))
        try:
            self._emoncms.post(self._dating.form(rows, sent))
        except Unavailable as trouble:
            self._backlog.sent(Flight(end, sent, self._clock()) if trouble.unclear else None)
            raise
        except Unauthorized:
            self._backlog.sent(None)
            raise
        except Rejected as trouble:
            return self._rejected(first, rows, Flight(end, sent, self._clock()), str(trouble))
        self._backlog.done(end)
        self._most = min(MOST_ROWS, self._most * 2)
        self._bad = 0
        if self.outage.reason:
            waiting = len(rows) + len(self._backlog)
            self.outage.ends(f"; {waiting} rows waited and are being delivered")
        self.outage.steady()
        return 0.0

    def _ask(self, first: int, flight: Flight) -> float:
        """Go on after the last row of an unclear post that EmonCMS has applied."""
        sent = self._backlog.oldest(flight.end - first)[1]
        applied = 0
        # The newest applied row may go again: a single row need not be asked for.
        if len(sent) > 1:
            applied = self._dating.applied(sent, flight, self._emoncms.inputs(sent[0].node))
            if applied < len(sent) and applied != self._applied:
                self._applied = applied
                return ASK_AGAIN_S
        self._applied = None
        _log.debug("EmonCMS: %d of %d rows had arrived before the answer was lost", applied, len(sent))
        self._backlog.done(first + applied)
        return 0.0

    def _rejected(self, first: int, rows: list[Row], flight: Flight, words: str) -> float:
        """Halve the batch until the bad row is alone, then drop that row."""
        if len(rows) > 1:
            self._backlog.sent(flight)  # rows before the bad one are applied
            self._most = len(rows) // 2
            return 0.0
        if self._bad >= MOST_BAD_ROWS:
            self._backlog.sent(None)
            reason = f"rejects every row ({words}): the rows are kept; see EmonCMS under Setup, Admin"
            return self.outage.fails(reason, refused=True)
        self._bad += 1
        self._backlog.done(first + 1)
        _log.error("EmonCMS: rejects a row (%s), which is dropped: %s", words, rows[0].text()[:300])
        return 0.0

    def status(self) -> str:
        """Say how it stands, in words for STATUS=."""
        text = f"backlog {len(self._backlog)}"
        if self.outage.reason:
            text += f", for {duration(self.outage.seconds)}: {self.outage.reason}"
        return text
