"""Daemon 1: the gateway's meter stream, or where owners are kept from it its meter reports, to EmonCMS.

The law of this file: each event that the gateway sends becomes one row, dated when it was measured as nearly as can be
known, and a gateway that fails is asked again by the rules of Outage.
"""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from envoy2emon.backlog import Backlog
from envoy2emon.bursts import Arrival, Bursts
from envoy2emon.connection import Refused, StreamLost
from envoy2emon.delivery import Delivery
from envoy2emon.envoy import Envoy, NotAllowed
from envoy2emon.inputs import Selection, stream_row
from envoy2emon.outage import STEADY_S, Outage, duration
from envoy2emon.readings import BadReading, MeterReading, parse_event, parse_reports
from envoy2emon.sse import Decoder, LineTooLong

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
            except NotAllowed as trouble:
                if self._source == "auto" and not reports:
                    _log.info("Envoy: %s; its meter reports are read in place of the stream", trouble)
                    self._reports_until = self._clock() + STREAM_AGAIN_S
                    continue
                hint = "; STREAM_SOURCE=auto takes the meter reports in its place" if self._source == "stream" else ""
                wait = self.outage.fails(f"{trouble}{hint}", refused=True)
            except Refused as trouble:
                wait = self.outage.fails(str(trouble), refused=True)
            except StreamLost as trouble:
                wait = self.outage.fails(str(trouble))
            self._wait(wait)

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


class Stream:
    """What becomes of readings: dated, appended to the backlog as rows, shown; and how it stands.

    The reader thread takes arrivals; the main thread looks after what has to wait, when it is woken.
    """

    def __init__(
        self,
        node: str,
        selection: Selection,
        backlog: Backlog,
        show: Callable[[MeterReading], None] | None,
        wake: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._selection = selection
        self._backlog = backlog
        self._show = show
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._bursts = Bursts()
        self._latest: MeterReading | None = None

    def take(self, arrival: Arrival) -> None:
        """Take what has arrived; readings that may have been held back wait for what follows on their heels."""
        with self._lock:
            self._append(self._bursts.take(arrival))
            wait = self._release()
        if wait is not None:
            self._wake(wait)

    def look(self) -> float | None:
        """Look after what waits, and return the seconds until it is to be looked after again."""
        with self._lock:
            wait = self._release()
        self._backlog.save()
        self._backlog.say_losses()
        return wait

    def close(self) -> None:
        """Take what is held, for the process ends."""
        with self._lock:
            self._append(self._bursts.release(float("inf")))

    def _release(self) -> float | None:
        now = self._clock()
        self._append(self._bursts.release(now))
        return self._bursts.wait(now)

    def _append(self, readings: list[MeterReading]) -> None:
        if readings:
            self._latest = readings[-1]
            rows = [stream_row(reading, self._node, self._selection) for reading in readings]
            self._backlog.append([row for row in rows if row.inputs])
            if self._show:
                for reading in readings:
                    self._show(reading)

    def status(self, reader: Reader, delivery: Delivery) -> str:
        """Say how it stands, in words for STATUS=."""
        if self._latest is None:
            text = "no reading yet"
        else:
            watts = {
                name: sum(phase["p"] for phase in phases.values() if "p" in phase)
                for name, phases in self._latest.sections.items()
            }
            shown = [("production", "generating"), ("total-consumption", "consuming")]
            text = ", ".join(f"{watts[name]:.0f} W {word}" for name, word in shown if name in watts)
            text += f"; last reading {duration(self._clock() - self._latest.at)} ago"
        text += f"; {delivery.status()}"
        if reader.outage.reason:
            text += f"; Envoy for {duration(reader.outage.seconds)}: {reader.outage.reason}"
        return text + (f"; {reader.bad} bad events skipped" if reader.bad else "")
