"""Backlog -> EmonCMS, one step at a time: what to post, what an answer means, when to try again.

The law of this file: rows go oldest first, each until EmonCMS acknowledged it; what may have arrived is asked for
before it is sent again.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.dates import Dating, Flight
from envoy2emon.emoncms.client import Dropped, EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.rows import Row
from envoy2emon.emoncms.inquiry import Inquiry
from envoy2emon.outage import Outage, duration

_log = logging.getLogger(__name__)

# 100 rows with 36 logged inputs keep EmonCMS on a Raspberry Pi busy for 13 s; it closes connections at 60.
MOST_ROWS = 100
# 1.2 kB each with 36 inputs, they go into the socket's empty buffer, 16 kB at least (tcp(7)): nobody waits for that.
MOST_IN_PASSING = 4
MOST_WAIT_S = 60.0
# So many rows rejected one after the other are no bad rows: EmonCMS takes none at all (node limit, access).
MOST_BAD_ROWS = 10
# Between two questions what became of a post.
ASK_AGAIN_S = 1.0
# A date may be late by so much for a flight that took longer to save than the ones before.
SAVED_SOON_S = 0.1

_NOTHING = threading.Event()  # what a worker waits for that only waits


class Delivery:
    """What is next for one daemon's rows, all of one node.

    It knows nothing of threads: one of them at a time calls it (courier.py).
    """

    def __init__(
        self,
        backlog: Backlog,
        emoncms: EmonCMS,
        dating: Dating,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        wait: Callable[[float], object] = _NOTHING.wait,
    ) -> None:
        self.outage = Outage("EmonCMS", MOST_WAIT_S, clock, jitter)
        self._backlog = backlog
        self._emoncms = emoncms
        self._dating = dating
        self._clock = clock
        self._wait = wait
        self._posted: tuple[list[Row], Flight] | None = None  # sent, its answer not taken yet
        self._inquiry = Inquiry(dating)
        self._stale = backlog.stale
        self._most = MOST_ROWS
        self._saving = 0.0  # seconds until a flight is saved, as a rule
        self._bad, self._dropped = 0, False

    @property
    def unheard(self) -> float:
        """How many seconds ago that was posted whose answer nobody has taken yet; 0 if there is none."""
        return self._clock() - posted[1].sent_at if (posted := self._posted) else 0.0

    def step(self) -> float | None:
        """Do what is next and return the seconds to wait before the next step; None: until there is a row."""
        try:
            return self._step()
        except Dropped as trouble:
            if self._dropped:  # twice without success between: it was not for idleness
                return self.outage.fails(str(trouble))
            self._dropped = True
            return 0.0
        except (Unavailable, Rejected) as trouble:  # Rejected: the question what arrived, not a post
            return self.outage.fails(str(trouble))
        except Unauthorized as trouble:
            return self.outage.fails(str(trouble), refused=True)

    def in_passing(self) -> bool:
        """Take an answer that has come, and post what waits; False if step() has to, for it would take waiting."""
        if not self.heard() or self._stale or self.outage.reason:
            return False
        most = min(self._most, MOST_IN_PASSING)
        first, rows, flight = self._backlog.oldest(most + 1)
        if flight or len(rows) > most or not self._emoncms.ready():
            return False
        return not rows or self._send(first, rows, in_passing=True) is not None

    def heard(self, seconds: float = 0.0) -> bool:
        """Tell whether what was posted is acknowledged, by an answer that comes within so many seconds."""
        if self._posted:
            if not self._emoncms.applied(seconds):
                return False
            self._applied(*self._posted)
        return True

    def _step(self) -> float | None:
        posted = self._posted
        if not posted:
            first, rows, flight = self._backlog.oldest(self._most)
            if not rows:
                return None
            if self._stale:
                return self._resume(first, rows, flight)
            if flight:
                return self._ask(first, rows, flight)
            self._emoncms.connect()  # before the rows' ages are taken
            if not (posted := self._send(first, rows)):
                return MOST_WAIT_S
        return self._finish(*posted)

    def _send(self, first: int, rows: list[Row], *, in_passing: bool = False) -> tuple[list[Row], Flight] | None:
        """Begin a post, and note that it is under way before it is; None if that cannot be noted."""
        self._inquiry.sent()
        began = self._clock()
        flight = Flight(first + len(rows), began if in_passing else began + self._saving)
        if not self._backlog.sent(flight, at_once=in_passing):
            return None
        if not in_passing:
            # EmonCMS is told in whole seconds how late it is: a disk that takes as long as before costs no wait.
            now = self._clock()
            self._saving = min(1.0, max(now - began, 0.9 * self._saving))
            if (early := (flight.sent_at - now) % 1.0) < 1.0 - SAVED_SOON_S:
                self._wait(early)
        self._emoncms.send(self._dating.form(rows, flight, self._clock()))
        self._posted = rows, flight
        return self._posted

    def _finish(self, rows: list[Row], flight: Flight) -> float:
        """Wait for the answer to what was posted."""
        self._posted = None
        try:
            self._emoncms.finish()
        except Rejected as trouble:
            return self._rejected(rows, flight, str(trouble))
        except (Unavailable, Unauthorized) as trouble:
            if not (isinstance(trouble, Unavailable) and trouble.unclear):
                self._backlog.sent(None)
            raise
        return self._applied(rows, flight)

    def _applied(self, rows: list[Row], flight: Flight) -> float:
        self._posted = None
        self._inquiry.acknowledged(rows)
        self._backlog.done(flight.end)
        self._most = min(MOST_ROWS, self._most * 2)
        self._bad, self._dropped = 0, False
        if self.outage.reason:
            self.outage.ends(f"; {len(rows) + len(self._backlog)} rows waited and are being delivered")
        self.outage.steady()
        return 0.0

    def _resume(self, first: int, rows: list[Row], flight: Flight | None) -> float:
        """Go on behind all that an earlier run had delivered when its disk took no note of it any more."""
        arrived = self._emoncms.inputs(rows[0].node)
        self._stale = False
        end = first + self._dating.resumed(self._backlog.left(first), arrived, bridged=self._backlog.bridged)
        if end > (flight.end if flight else first):
            _log.info("EmonCMS: has %d rows already of those that an earlier run saved", end - first)
            self._backlog.done(end)
        return 0.0

    def _ask(self, first: int, rows: list[Row], flight: Flight) -> float:
        """Go on after the last row of an unclear post that EmonCMS has applied."""
        count = self._inquiry.applied(rows, flight, self._emoncms.inputs(rows[0].node))
        if count is None:
            return ASK_AGAIN_S
        _log.debug("EmonCMS: %d of %d rows need not be sent again", count, len(rows))
        self._backlog.done(first + count)
        if not len(self._backlog):
            self.outage.ends("; all rows had arrived", proved=False)
        return 0.0

    def _rejected(self, rows: list[Row], flight: Flight, words: str) -> float:
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
        self._backlog.done(flight.end)
        _log.error("EmonCMS: rejects a row (%s), which is dropped: %s", words, rows[0].text()[:300])
        return 0.0

    def status(self) -> str:
        """Say how it stands, in words for STATUS=."""
        posted = self._posted
        text = f"backlog {len(self._backlog) - (len(posted[0]) if posted else 0)}"
        if self.outage.reason:
            text += f", for {duration(self.outage.seconds)}: {self.outage.reason}"
        return text
