"""Daemon 1: the gateway's meter stream, or where owners are kept from it its meter reports, to EmonCMS.

The law of this file: each event that the gateway sends becomes one row, dated when it was measured as nearly as can be
known.
"""

import threading
from collections.abc import Callable

from envoy2emon.gateway.bursts import Arrival, Bursts
from envoy2emon.emoncms.courier import Courier
from envoy2emon.rows import Selection, stream_row
from envoy2emon.outage import duration
from envoy2emon.gateway.reader import Reader
from envoy2emon.gateway.readings import MeterReading


class Stream:
    """What becomes of readings: dated, delivered as rows, shown; and how it stands.

    The reader thread takes arrivals; the main thread looks after what has to wait, when it is woken.
    """

    def __init__(
        self,
        node: str,
        selection: Selection,
        courier: Courier,
        show: Callable[[MeterReading], None] | None,
        wake: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._selection = selection
        self._courier = courier
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
        self._courier.look()
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
            self._courier.take([row for row in rows if row.inputs])
            if self._show:
                for reading in readings:
                    self._show(reading)

    def status(self, reader: Reader) -> str:
        """Say how it stands, in words for STATUS=."""
        if self._latest is None:
            text = "no reading yet"
        else:
            told = [
                f"{sum(powers):.0f} W {word}"
                for name, word in (("production", "generating"), ("total-consumption", "consuming"))
                if (powers := [phase["p"] for phase in self._latest.sections.get(name, {}).values() if "p" in phase])
            ]
            text = f"{', '.join(told) or 'reading'}; last reading {duration(self._clock() - self._latest.at)} ago"
        text += f"; {self._courier.status()}"
        if reader.outage.reason:
            text += f"; Envoy for {duration(reader.outage.seconds)}: {reader.outage.reason}"
        return text + (f"; {reader.bad} bad events skipped" if reader.bad else "")
