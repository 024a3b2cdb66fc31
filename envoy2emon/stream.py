"""Daemon 1: carries the gateway's meter readings to EmonCMS.

It follows the meter stream, or polls the meter reports where the firmware closes the stream to owners. A reading with
selected values becomes one row, dated as closely as possible to the time of measurement.
"""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from envoy2emon import __version__
from envoy2emon.emoncms.delivery import Delivery
from envoy2emon.gateway.bursts import Arrival, Bursts
from envoy2emon.gateway.client import Gateway
from envoy2emon.gateway.reader import Reader
from envoy2emon.gateway.readings import MeterReading
from envoy2emon.gateway.tokens import Tokens
from envoy2emon.outage import REFUSED_WAIT_S, duration
from envoy2emon.rows import SECTION_NAMES, Selection, Undated, stream_inputs
from envoy2emon.settings import Settings
from envoy2emon.systemd import Daemon, state_directory

if TYPE_CHECKING:
    from envoy2emon.live.server import Live

_log = logging.getLogger(__name__)


def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Run the daemon until it is stopped and return its exit status."""
    daemon: Daemon[Arrival] = Daemon(environ)
    state = state_directory(environ)
    _log.info(
        "envoy2emon %s: reads the meters of the gateway at %s, posts to %s as node %s",
        __version__,
        settings.envoy_host,
        settings.emoncms_url,
        settings.emoncms_node,
    )
    tokens = Tokens(settings, state)
    silence = float(settings.stream_timeout_s)
    reader = Reader(Gateway(settings, tokens), daemon.inbox, settings)
    delivery = Delivery.to(settings, settings.emoncms_node, state, "stream")
    live = None
    if settings.live_listen:
        from envoy2emon.live.server import Live  # noqa: PLC0415 - asyncio takes 30 ms and 5 MB, and few owners need it

        live = Live(settings.live_listen, state)
        live.start()
    stream = Stream(daemon, selection(settings), delivery, live)
    daemon.start("reader", reader.run, patience=silence + REFUSED_WAIT_S)
    thread = daemon.start("delivery", delivery.run, patience=REFUSED_WAIT_S + delivery.interval)

    def tick() -> str:
        delivery.save()
        return stream.status(reader) + tokens.status()

    status = daemon.run(stream.take, stream.idle, tick)
    stream.close()
    delivery.finish(thread)
    return status


def selection(settings: Settings) -> Selection:
    """Return the owner's choice of values that become inputs."""
    return Selection(
        settings.stream_sections,
        settings.stream_phases,
        settings.stream_keys,
        settings.stream_min_production_w,
        settings.stream_net == "calculated",
    )


class Stream:
    """The main thread's handling of arrivals: dates bursts, appends rows, shows readings, writes the status text."""

    def __init__(self, daemon: Daemon[Arrival], chosen: Selection, delivery: Delivery, live: "Live | None") -> None:
        self._daemon = daemon
        self._selection = chosen
        self._delivery = delivery
        self._live = live
        self._bursts = Bursts()
        self._latest: MeterReading | None = None
        self._known = {SECTION_NAMES[name] for name in chosen.sections}  # posted, or logged as not posted

    def take(self, arrival: Arrival) -> None:
        """Handle an arrival; a reading that may be the first of a burst waits for the rest of the burst."""
        self._append(self._bursts.take(arrival))

    def idle(self) -> float | None:
        """Append the readings that have waited long enough; return the seconds until the next call, if any."""
        now = time.monotonic()
        self._append(self._bursts.release(now))
        return self._bursts.wait(now)

    def close(self) -> None:
        """Append the readings that still wait, and close the live page, because the process ends."""
        self._append(self._bursts.release(float("inf")))
        if self._live:
            self._live.close()

    def status(self, reader: Reader) -> str:
        """Return the daemon's state in words for STATUS=."""
        if self._latest is None:
            text = "no reading yet"
        else:
            parts = [
                f"{sum(powers):.0f} W {word}"
                for name, word in (("production", "generating"), ("total-consumption", "consuming"))
                if (powers := [phase["p"] for phase in self._latest.sections.get(name, {}).values() if "p" in phase])
            ]
            text = f"{', '.join(parts) or 'reading'}; last reading {duration(time.monotonic() - self._latest.at)} ago"
        text += f"; {self._delivery.status()}"
        text += reader.outage.status()
        if reader.bad:
            text += f"; {reader.bad} bad events skipped"
        if self._live and self._live.trouble:
            text += f"; {self._live.trouble}"
        return text

    def _append(self, readings: list[MeterReading]) -> None:
        if not readings:
            return
        if self._latest is None:
            self._daemon.tick_now()
        self._latest = readings[-1]
        named = [Undated(reading.at, stream_inputs(reading, self._selection)) for reading in readings]
        self._delivery.append([row for row in named if row.inputs])
        for reading in readings:
            if not reading.sections.keys() <= self._known:
                self._say_unposted(reading)
            if self._live:
                self._live.show(reading)

    def _say_unposted(self, reading: MeterReading) -> None:
        """Log once each section that the gateway sends but that is not posted."""
        for section in sorted(reading.sections.keys() - self._known):
            name = next(name for name, section_name in SECTION_NAMES.items() if section_name == section)
            _log.info("the gateway also sends %s, which is not posted: STREAM_SECTIONS can name %s", section, name)
        self._known |= reading.sections.keys()
