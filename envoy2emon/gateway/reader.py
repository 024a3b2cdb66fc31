"""Follows the gateway: its meter stream, or where owners are kept from it its meter reports.

The law of this file: what arrives is passed on at once, and a gateway that fails is asked again by the rules of Outage.
"""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.connection import Refused
from envoy2emon.gateway.client import Envoy, Missing, NotAllowed
from envoy2emon.outage import REFUSED_WAIT_S, STEADY_S, Outage
from envoy2emon.gateway.readings import BadReading, parse_event, parse_reports
from envoy2emon.gateway.sse import Decoder, LineTooLong

MOST_WAIT_S = 30.0
REPORTS_EVERY_S = 1.0
# Owners may read the stream on D7.0 and D8.3.6086, not on D7.6.175: an update may give it back.
STREAM_AGAIN_S = 86400.0

_NOTHING = threading.Event()  # what a worker waits for that only waits
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Reader:
    """The reader thread: follows the gateway for ever and passes Arrivals on."""

    def __init__(
        self,
        envoy: Envoy,
        take: Callable[[Arrival], None],
        source: str,
        silence: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        wait: Callable[[float], object] = _NOTHING.wait,
    ) -> None:
        self.outage = Outage("Envoy", MOST_WAIT_S, clock, jitter)
        self.bad = 0
        self._envoy = envoy
        self._take = take
        self._source = source
        self._silence = silence
        self._clock = clock
        self._wait = wait
        self._reports_until = float("inf") if source == "reports" else float("-inf")
        self._denied_at = float("-inf")  # when the stream was, last
        self._used = 0  # createdAt of the reports that were taken last

    def run(self, turned: Callable[[], None]) -> None:
        """Follow the stream or the reports, whichever this gateway allows."""
        while True:
            turned()
            reports = self._clock() < self._reports_until
            try:
                if reports:
                    self._follow_reports(turned)
                else:
                    self._follow_stream(turned)
                continue
            except (NotAllowed, Missing) as trouble:
                if self._source == "auto" and not reports:
                    self._take_reports(trouble)
                    if isinstance(trouble, NotAllowed) or not (trouble.knocks and self.outage.reason):
                        continue
                    wait = self.outage.fails(str(trouble), knocks=0)  # what it cost is noted
                else:
                    wait = self._kept_out(trouble)
            except Refused as trouble:
                wait = self._refused(str(trouble))
            except StreamLost as trouble:
                wait = self.outage.fails(str(trouble), knocks=trouble.knocks)
            self._wait(wait)

    def _take_reports(self, trouble: NotAllowed | Missing) -> None:
        level = logging.DEBUG if self.outage.reason else logging.INFO
        _log.log(level, "Envoy: %s; its meter reports are read in place of the stream", trouble)
        now = self._clock()
        self._reports_until = now + STREAM_AGAIN_S
        self._denied_at = now if isinstance(trouble, NotAllowed) else float("-inf")
        self.outage.spent(trouble.knocks)

    def _kept_out(self, trouble: NotAllowed | Missing) -> float:
        hint = "; STREAM_SOURCE=auto takes the meter reports in its place" if self._source == "stream" else ""
        if isinstance(trouble, NotAllowed):
            return self._refused(f"{trouble}{hint}")
        if self._source == "auto":  # the stream is asked again, but not soon if it was denied, for that costs a login
            self._reports_until = min(self._reports_until, self._denied_at + REFUSED_WAIT_S)
        return self.outage.fails(f"{trouble}{hint}", knocks=trouble.knocks)

    def _refused(self, reason: str) -> float:
        if self._source == "auto":
            self._reports_until = float("-inf")  # with another firmware the stream may be open
        return self.outage.fails(reason, refused=True)

    def _follow_stream(self, turned: Callable[[], None]) -> None:
        decoder = Decoder()
        with self._envoy.stream(self._silence) as read:
            opened = last = self._clock()
            self._take(Arrival(opened))
            while data := read():
                turned()
                now = self._clock()
                try:
                    events = decoder.feed(data)
                except LineTooLong as trouble:
                    raise StreamLost(f"the stream sends {trouble}") from None
                if readings := [reading for text in events if (reading := self._parsed(parse_event, text, now))]:
                    self._take(Arrival(now, tuple(readings)))
                    self._arrived(now - opened)
                    last = now
                elif now - last > self._silence:
                    raise StreamLost(f"the stream sends no event for {self._silence:.0f} s")
        raise StreamLost("the stream has ended")

    def _follow_reports(self, turned: Callable[[], None]) -> None:
        opened = last = due = self._clock()
        while self._clock() < self._reports_until:
            turned()
            started = self._clock()
            answer = self._parsed(parse_reports, self._envoy.reports(), started)
            now = self._clock()
            if answer and answer[0] != self._used:
                self._used = answer[0]
                self._take(Arrival(now, (answer[1],)))
                self._arrived(now - opened)
                last = now
            elif now - last > self._silence:
                raise StreamLost(f"the meter reports stand still for {self._silence:.0f} s")
            # A fixed rate; a gateway that is slow is left in peace for as long as it took.
            due = max(due + REPORTS_EVERY_S, now + (now - started))
            self._wait(due - now)

    def _parsed(self, parse: Callable[[str, float], T], text: str, at: float) -> T | None:
        try:
            return parse(text, at)
        except BadReading as trouble:
            self.bad += 1
            _log.log(
                logging.WARNING if self.bad == 1 else logging.DEBUG, "Envoy: skips what is no reading: %s", trouble
            )
            return None

    def _arrived(self, held: float) -> None:
        self.outage.ends()
        if held >= STEADY_S:
            self.outage.steady()
