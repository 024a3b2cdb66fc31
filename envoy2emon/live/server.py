"""The live page: readings to every browser that watches.

The law of this file: a viewer costs the daemon nothing that others could miss. One thread serves all; what waits to be
sent to a viewer is bounded, and whoever falls behind, falls silent or asks slowly is dropped.
"""

import asyncio
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from envoy2emon.live import http as live_http
from envoy2emon.gateway.readings import MeterReading

# Watts: at night production meters tell up to about 2 W of nothing; the author's display takes 10 W for none.
NOISE_W = 10
HISTORY_S = 900
# Viewers and requests on their way; a process has 1024 descriptors by default, and the backlog needs some.
MAX_CONNECTIONS = 64
MAX_REQUEST = 8 * 1024
REQUEST_S = 10
HEARTBEAT_S = 15
RETRY_MS = 3000
# Seconds: readings come once a second, but D7.0.88 sends 21 to 23 at once, sometimes 45 (Matthew1471/Enphase-API).
STALE_S = 15
LONGEST_BURST_S = 45

log = logging.getLogger(__name__)


def figures(reading: MeterReading) -> dict[str, int | None]:
    """Watts over all phases as /events tells them: p produced, c consumed, n = c - p (negative: into the grid).

    A sum is None when its section is missing, or lacks the power of a phase that is there; n needs both sums.
    """
    p, c = _watts(reading, "production"), _watts(reading, "total-consumption")
    if p is not None and p <= NOISE_W:
        p = Decimal(0)
    n = None if p is None or c is None else c - p
    return {name: None if watts is None else int(watts) for name, watts in (("p", p), ("c", c), ("n", n))}


def _watts(reading: MeterReading, section: str) -> Decimal | None:
    phases = reading.sections.get(section, {})
    known = [power for values in phases.values() if (power := values.get("p")) is not None]
    return sum(known, Decimal(0)) if known and len(known) == len(phases) else None


class Live:
    """The page on `/` and server-sent events on `/events`, served from a thread of its own.

    listen: HOST:PORT, also [ADDRESS]:PORT; port 0 takes a free one, which `port` then tells. clock: monotonic seconds,
    the one that dates the readings. show is for any thread and never waits for a viewer.
    """

    def __init__(self, listen: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.port: int | None = None
        self._listen, self._clock = listen, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # All that follows is touched by the live thread only.
        self._stopping = asyncio.Event()
        self._page = Path(__file__).with_name("page.html").read_bytes()
        self._history: deque[tuple[int, int | None, int | None]] = deque(maxlen=HISTORY_S)
        self._latest = b""
        self._patience = STALE_S
        self._connections = 0
        self._viewers: set[asyncio.StreamWriter] = set()

    def start(self) -> None:
        """Listen and serve; what prevents it is told in the log, and the daemon goes on without the page."""
        try:
            listener = live_http.listener(self._listen)
        except OSError as error:
            cure = "HOST must be an address of this machine (0.0.0.0: all), PORT one above 1023 that no program holds"
            log.error("No live page on LIVE_LISTEN=%s: %s. %s; all else goes on.", self._listen, error.strerror, cure)
            return
        self.port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, listener), name="live", daemon=True)
        self._thread.start()
        log.info("Live page on http://%s/", self._listen)

    def show(self, reading: MeterReading) -> None:
        """Send a reading to all viewers; one with neither production nor consumption is nothing to show."""
        watts = figures(reading)
        if self._loop and (watts["p"] is not None or watts["c"] is not None):
            self._loop.call_soon_threadsafe(self._show, reading.at, watts)

    def close(self) -> None:
        """Drop all viewers and end the thread."""
        if self._loop and self._thread:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._loop = None

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listener, limit=MAX_REQUEST)
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), HEARTBEAT_S)
            except TimeoutError:
                self._send(b": no news\n\n" + _event("alive", self._state()))
        server.close()

    def _show(self, at: float, watts: dict[str, int | None]) -> None:
        second = int(at)
        while self._history and self._history[-1][0] >= second:
            self._history.pop()
        self._history.append((second, watts["p"], watts["c"]))
        burst = min(int(self._clock()) - second, LONGEST_BURST_S)
        self._patience = max(self._patience, STALE_S + 2 * burst)
        # The contract's event; its id is its second, by which the page draws a burst as it was measured.
        self._latest = b"id: %d\n" % second + _event("solar_data", watts)
        self._send(self._latest)

    def _state(self) -> dict[str, object]:
        # What the page needs to date readings by its own clock: seconds by ours, and how long a silence is no fault.
        last = self._history[-1][0] if self._history else None
        return {"now": round(self._clock(), 1), "last": last, "patience": self._patience}

    def _first_events(self) -> bytes:
        now = int(self._clock())
        points = [point for point in self._history if now - point[0] < HISTORY_S]
        events = b"retry: %d\n\n" % RETRY_MS + _event("history", {**self._state(), "points": points})
        return events + self._latest if points and now - points[-1][0] <= self._patience else events

    def _send(self, event: bytes) -> None:
        for viewer in tuple(self._viewers):
            viewer.write(event)
            if viewer.transport.get_write_buffer_size() > live_http.MAX_UNSENT:
                self._viewers.discard(viewer)
                viewer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_S) as limit:
                    request = await reader.readuntil(b"\r\n\r\n")
                    answer, events_follow = live_http.answer(request, self._page, len(self._viewers))
                    writer.write(answer)
                    if events_follow:
                        writer.write(self._first_events())
                        self._viewers.add(writer)
                        limit.reschedule(None)
                    else:
                        writer.write_eof()
                    # Nothing more is expected: reading on tells when the other side has gone.
                    while await reader.read(MAX_REQUEST):
                        pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # gone, or too slow (TimeoutError is an OSError), or no browser
        finally:
            self._connections -= 1
            self._viewers.discard(writer)
            writer.transport.abort()


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
