"""Follows the gateway's meter stream; where the firmware denies it to owners, polls the meter reports instead.

It only reads: what arrives goes into the inbox at once. After a failure it tries again when Outage says.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.client import ANSWER_S, METERS, REPORTS, Gateway, Lost, NotFound, Refused
from envoy2emon.gateway.meters import STREAM_OFF, advice, parse_meters
from envoy2emon.gateway.readings import BadReading, MeterReading, parse_event, parse_reports
from envoy2emon.gateway.sse import Decoder, LineTooLong
from envoy2emon.outage import REFUSED_WAIT_S, STEADY_S, Outage
from envoy2emon.settings import Settings

MOST_WAIT_S = 30.0
REPORTS_EVERY_S = 1.0
# Owners may read the stream on D7.0 and D8.3.6086 but not on D7.6.175, so an update may open it again.
STREAM_AGAIN_S = 86400.0
# Short, because the meters are listed while the stream is open, and its events are dated only when they are read.
_METERS_ANSWER_S = 5.0
NO_METERS = f"this gateway has no meters, and the inverters need none. To switch this daemon off: {STREAM_OFF}"

_NEVER = threading.Event()  # never set, so that waiting for it is only a pause
_log = logging.getLogger(__name__)
T = TypeVar("T")


class _NoMeters(Exception):
    """The gateway has no meters; the text says so, with the cure."""


class Reader:
    """The reader thread: follows the gateway for ever and puts Arrivals into the inbox.

    outage: whether and why the gateway fails. bad: how many events and report answers were not readings.
    """

    def __init__(
        self,
        gateway: Gateway,
        inbox: SimpleQueue[Arrival | None],
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[float], object] = _NEVER.wait,
    ) -> None:
        self.outage = Outage("gateway", MOST_WAIT_S, clock, jitter)
        self.bad = 0
        self._gateway = gateway
        self._inbox = inbox
        self._settings = settings
        self._silence = float(settings.stream_timeout_s)
        self._clock = clock
        self._wait = wait
        self._source = settings.stream_source
        self._reports_until = float("inf") if self._source == "reports" else float("-inf")
        self._created = 0  # createdAt of the reports that were taken last
        self._meters_logged = False

    def run(self, alive: Callable[[], None]) -> None:
        """Follow the stream or the reports for ever, whichever the gateway and STREAM_SOURCE allow."""
        while True:
            alive()
            try:
                if self._clock() < self._reports_until:
                    self._follow_reports(alive)
                else:
                    self._follow_stream(alive)
            except _NoMeters as trouble:
                self.outage.fails(str(trouble))  # not as ERROR: the owner may have chosen such a gateway
                self._back_to_stream()
                self._wait(REFUSED_WAIT_S)
            except Refused as trouble:
                self._back_to_stream()
                self._wait(self.outage.refused(str(trouble)))
            except Lost as trouble:
                self._wait(self.outage.fails(str(trouble)))

    def _back_to_stream(self) -> None:
        if self._source == "auto":  # another firmware may open the stream
            self._reports_until = float("-inf")

    def _follow_stream(self, alive: Callable[[], None]) -> None:
        decoder = Decoder()
        try:
            with self._gateway.stream(self._silence) as stream:
                opened = last = self._clock()
                self._inbox.put(Arrival(opened))
                for data in stream:
                    alive()
                    now = self._clock()
                    events = decoder.feed(data)
                    if readings := [reading for text in events if (reading := self._parsed(parse_event, text, now))]:
                        self._arrived(Arrival(now, tuple(readings)), now - opened)
                        last = now
                    elif now - last > self._silence:
                        raise Lost(f"the stream has sent no event for {self._silence:.0f} s")
        except LineTooLong as trouble:
            raise Lost(f"the stream sends {trouble}") from None
        except NotFound as trouble:
            self._without_stream(trouble)

    def _without_stream(self, trouble: NotFound) -> None:
        """Go on with the reports. Raises Lost, Refused or _NoMeters if STREAM_SOURCE=stream forbids them."""
        if self._source == "stream":
            self._check_meters()
            raise Lost(f"{trouble}; set STREAM_SOURCE=auto to read the meter reports instead")
        level = logging.DEBUG if self.outage.reason else logging.INFO  # not news during an outage
        _log.log(level, "gateway: %s; the meter reports are read instead", trouble)
        self._reports_until = self._clock() + STREAM_AGAIN_S

    def _follow_reports(self, alive: Callable[[], None]) -> None:
        opened = last = due = self._clock()
        first = True
        while self._clock() < self._reports_until:
            alive()
            started = self._clock()
            try:
                text = self._gateway.text(REPORTS, ANSWER_S)
            except NotFound as trouble:
                self._check_meters()
                self._back_to_stream()
                raise Lost(str(trouble)) from None
            answer = self._parsed(parse_reports, text, started)
            now = self._clock()
            if answer and answer[0] != self._created:
                self._created = answer[0]
                self._arrived(Arrival(now, (answer[1],)), now - opened)
                last = now
            elif answer is None and first:
                self._check_meters()
            first = False
            if now - last > self._silence:
                raise Lost(f"the meter reports have not changed for {self._silence:.0f} s")
            # A fixed rate, but the pause after a slow answer is as long as the answer took.
            due = max(due + REPORTS_EVERY_S, now + (now - started))
            self._wait(due - now)

    def _parsed(self, parse: Callable[[str, float], T], text: str, at: float) -> T | None:
        try:
            return parse(text, at)
        except BadReading as trouble:
            self.bad += 1
            level = logging.WARNING if self.bad == 1 else logging.DEBUG
            _log.log(level, "gateway: skipped something that is not a reading: %s", trouble)
            return None

    def _arrived(self, arrival: Arrival, connected_for: float) -> None:
        self._inbox.put(arrival)
        self.outage.ends()
        if connected_for >= STEADY_S:
            self.outage.steady()
        if not self._meters_logged:
            self._meters_logged = True
            self._log_meters(arrival.readings[-1])

    def _log_meters(self, reading: MeterReading) -> None:
        """Log which meters there are, and what is wrong with the sections that are posted."""
        try:
            meters = parse_meters(self._gateway.text(METERS, _METERS_ANSWER_S))
        except (Lost, Refused, NotFound, BadReading) as trouble:
            _log.debug("gateway: does not list its meters: %s", trouble)
            meters = []
        if meters:
            _log.info("gateway: its meters: %s", "; ".join(meter.words() for meter in meters))
        calculated = self._settings.stream_net == "calculated"
        for news in advice(meters, self._settings.stream_sections, reading, net_calculated=calculated):
            _log.warning("gateway: %s", news)

    def _check_meters(self) -> None:
        """Raise _NoMeters if <imeter> in /info is not true or the list of meters is empty. Raises Lost, Refused too."""
        info = self._gateway.info
        none = info is not None and not info.metered
        if not none:
            try:
                none = not parse_meters(self._gateway.text(METERS, ANSWER_S))
            except (NotFound, BadReading):
                return
        if none:
            raise _NoMeters(NO_METERS)
