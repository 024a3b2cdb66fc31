"""Backlog -> EmonCMS, one step at a time: what to post, what an answer means, when to try again.

The law of this file: rows go oldest first, each until EmonCMS acknowledged it; what may have arrived is asked for
before it is sent again.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

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
        self.idle.set()
        self._backlog = backlog
        self._emoncms = emoncms
        self._dating = dating
        self._clock = clock
        self._most = MOST_ROWS
        self._bad = 0
        self._dropped = False
        self._seen: int | None = None

    def run(self, turned: Callable[[], None]) -> None:
        """Deliver for ever."""
        while True:
            turned()
            self._backlog.wait(self.step())

    def step(self) -> float | None:
        """Do what is next and return the seconds to wait before the next step; None: until there is a row.

        self.idle is set but while a post is under way.
        """
        first, rows, flight = self._backlog.oldest(self._most)
        if not rows:
            return None
        self.idle.clear()
        try:
            return self._ask(first, rows, flight) if flight else self._post(first, rows)
        except Dropped as trouble:
            if self._dropped:  # twice without success between: it was not for idleness
                return self.outage.fails(str(trouble))
            self._dropped = True
            return 0.0
        except (Unavailable, Rejected) as trouble:  # Rejected: the question what arrived, not a post
            return self.outage.fails(str(trouble))
        except Unauthorized as trouble:
            return self.outage.fails(str(trouble), refused=True)
        finally:
            self.idle.set()

    def _post(self, first: int, rows: list[Row]) -> float:
        self._emoncms.connect()  # before the rows' ages are taken
        self._seen = None
        flight = Flight(first + len(rows), self._clock())
        if not self._backlog.sent(flight):
            return MOST_WAIT_S
        try:
            self._emoncms.post(self._dating.form(rows, flight, self._clock()))
        except Rejected as trouble:
            return self._rejected(first, rows, flight, str(trouble))
        except (Unavailable, Unauthorized) as trouble:
            if not (isinstance(trouble, Unavailable) and trouble.unclear):
                self._backlog.sent(None)
            raise
        self._backlog.done(flight.end)
        self._most = min(MOST_ROWS, self._most * 2)
        self._bad = 0
        self._dropped = False
        if self.outage.reason:
            waiting = len(rows) + len(self._backlog)
            self.outage.ends(f"; {waiting} rows waited and are being delivered")
        self.outage.steady()
        return 0.0

    def _ask(self, first: int, rows: list[Row], flight: Flight) -> float:
        """Go on after the last row of an unclear post that EmonCMS has applied."""
        end = first + self._dating.applied(rows, flight, self._emoncms.inputs(rows[0].node))
        # A single row is the newest, which may go again: after a connection that had been closed it goes at once.
        if end < flight.end and end != self._seen and len(rows) > 1 and not flight.answered:
            self._seen = end
            return ASK_AGAIN_S
        self._seen = None
        _log.debug("EmonCMS: %d of %d rows need not be sent again", end - first, len(rows))
        self._backlog.done(end)
        return 0.0

    def _rejected(self, first: int, rows: list[Row], flight: Flight, words: str) -> float:
        """Halve the batch until the bad row is alone, then drop that row."""
        if len(rows) > 1:
            self._backlog.sent(replace(flight, answered=True))  # rows before the bad one are applied
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
