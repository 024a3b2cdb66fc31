"""The live page: sends readings to every browser that watches.

One thread serves all viewers, and no viewer can harm the rest of the daemon: what waits to be sent is bounded, and a
connection that falls behind, falls silent or sends its request slowly is dropped.
"""

import asyncio
import hashlib
import json
import logging
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from envoy2emon.gateway.readings import MeterReading
from envoy2emon.live import http as live_http
from envoy2emon.live.today import TodayFile, load_history, save_history

# Watts. At night production meters report up to about 2 W of noise; the author's display counts 10 W as none.
NOISE_W = 10
HISTORY_S = 900
# Connections that do not watch, in all and from one address. A process has 1024 descriptors; the backlog needs some.
MAX_REQUESTING, MAX_REQUESTING_EACH = 64, 16
# Seconds from one accepted connection to the next, so that a flood of them takes little of the daemon's processor time.
BETWEEN_S = 0.02
TRY_AGAIN_S = 60.0
# Bytes and reads of one connection; browsers send a request of 400 to 900 bytes in one piece, and then nothing.
MAX_REQUEST, MAX_PIECES = 8 * 1024, 16
REQUEST_S = 10
HEARTBEAT_S = 15
RETRY_MS = 3000
# Seconds. Readings come once a second, but D7.0.88 sends 21 to 23 at once, sometimes 45 (Matthew1471/Enphase-API).
STALE_S = 15
LONGEST_BURST_S = 45

log = logging.getLogger(__name__)


def figures(reading: MeterReading) -> dict[str, int | None]:
    """Return the watts of all phases as /events sends them: p produced, c consumed, n = c - p (negative: to the grid).

    A sum is None if its section is missing or has a phase without power; n needs both sums. p up to NOISE_W becomes 0.
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
    """Serves the page on `/` and server-sent events on `/events` from a thread of its own.

    listen: HOST:PORT or [ADDRESS]:PORT; port 0 takes a free one. port: the one in use. clock: the monotonic clock that
    dates the readings, in seconds. trouble: why there is no page, "" if there is one. Any thread may call show(), which
    never waits for a viewer.
    """

    def __init__(self, listen: str, state: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.port: int | None = None
        self.trouble = ""
        self._listen, self._clock = listen, clock
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: log.debug("live page: %s", context["message"]))
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        # While the live thread runs, only that thread uses what follows.
        self._stopping = asyncio.Event()
        self._listener: socket.socket | None = None
        self._page = Path(__file__).with_name("page.html").read_bytes()
        self._page_name = hashlib.sha256(self._page).hexdigest()[:8]
        ahead = time.time() - clock()
        self._run_name = round(time.time(), 3)
        self._history = deque[tuple[int, int | None, int | None]](maxlen=HISTORY_S)
        self._history.extend((round(at - ahead), p, c) for at, p, c in load_history(state, HISTORY_S))
        self._state_directory = state
        self._file = TodayFile(state)
        self._today = self._file.load()
        self._read_at = float("-inf")
        self._latest = b""
        self._patience = STALE_S
        self._requesting: Counter[str] = Counter()
        self._viewers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # because the loop keeps only weak references

    def start(self) -> None:
        """Listen and serve; on failure, log the reason, set `trouble` and try again every minute."""
        self._open()
        self._thread.start()

    def show(self, reading: MeterReading) -> None:
        """Send a reading to all viewers, unless it has neither production nor consumption."""
        watts = figures(reading)
        if watts["p"] is not None or watts["c"] is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(self._show, reading.at, watts)

    def close(self) -> None:
        """Drop all viewers, end the thread, and save today's energy and the graph."""
        with suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(1.0)
        self._file.save(self._today, float("inf"))
        if self._state_directory and self._history:
            ahead = time.time() - self._clock()
            save_history(self._state_directory, [(round(at + ahead, 2), p, c) for at, p, c in tuple(self._history)])

    def _open(self) -> None:
        try:
            self._listener = live_http.listener(self._listen)
        except OSError as error:
            reason = (error.strerror or "").partition(" (")[0].lower() or "it is not an address"
            cure = "HOST must be an address of this computer (0.0.0.0: all), PORT a free one above 1023"
            if not self.trouble:
                log.error(
                    "no live page on LIVE_LISTEN=%s: %s. %s; envoy2emon tries again every minute",
                    self._listen,
                    reason,
                    cure,
                )
            self.trouble = f"no live page on {self._listen}: {reason}"
            return
        self.trouble = ""
        self.port = self._listener.getsockname()[1]
        log.info("live page on http://%s/", self._listen)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        while self._listener is None:
            if await self._stopped_within(TRY_AGAIN_S):
                return
            self._open()
        with self._listener:
            self._listener.setblocking(False)  # noqa: FBT003 - it takes no keyword arguments
            self._spawn(self._accept(self._listener))
            while not await self._stopped_within(HEARTBEAT_S):
                self._send(b": no news\n\n" + self._alive())

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            with suppress(OSError):  # the client has gone, or the process has no descriptors left
                client, _ = await self._loop.sock_accept(listener)
                reader, writer = await asyncio.open_connection(sock=client, limit=MAX_REQUEST)
                self._spawn(self._connected(reader, writer))
            await asyncio.sleep(BETWEEN_S)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _show(self, at: float, watts: dict[str, int | None]) -> None:
        epoch = time.time() - (self._clock() - at)
        before, self._today = self._today, self._today.add(epoch, at - self._read_at, watts["p"], watts["c"])
        self._read_at = at
        self._file.save(self._today, self._clock())
        second = int(at)
        while self._history and self._history[-1][0] >= second:
            self._history.pop()
        self._history.append((second, watts["p"], watts["c"]))
        burst = min(int(self._clock()) - second, LONGEST_BURST_S)
        self._patience = max(self._patience, STALE_S + 2 * burst)
        # Other people's pages read this event, so its name and data never change. Its id is the reading's second, so
        # that the page draws a burst as it was measured.
        self._latest = b"id: %d\n" % second + _event("solar_data", watts)
        self._send(self._latest if self._today is before else self._alive() + self._latest)

    def _alive(self) -> bytes:
        return _event("alive", self._state())

    def _state(self) -> dict[str, object]:
        # What the page needs to date readings by its own clock: seconds by ours, and how long a silence is normal.
        last = self._history[-1][0] if self._history else None
        return {
            "now": round(self._clock(), 1),
            "last": last,
            "patience": self._patience,
            "run": self._run_name,  # another run may have another clock
            "page": self._page_name,  # a page with another name is outdated
            "today": self._today.shown(time.time()),
        }

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
        address = str((writer.get_extra_info("peername") or ("",))[0])
        self._requesting[address] += 1
        try:
            if self._requesting[address] <= MAX_REQUESTING_EACH and self._requesting.total() <= MAX_REQUESTING:
                await self._answer(reader, writer, address)
        except OSError:
            pass  # gone, too slow (TimeoutError is an OSError), or not a browser
        finally:
            if writer in self._viewers:
                self._viewers.discard(writer)
            else:
                self._stops_requesting(address)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        async with asyncio.timeout(REQUEST_S) as limit:
            request = await _request(reader)
            answer, events_follow = live_http.answer(request, self._page, len(self._viewers))
            writer.write(answer)
            if events_follow:
                writer.write(self._first_events())
                self._viewers.add(writer)
                self._stops_requesting(address)
                limit.reschedule(None)
            else:
                writer.write_eof()
            # Nothing more is expected, but reading on shows when the client has gone.
            for _ in range(MAX_PIECES):
                if not await reader.read(MAX_REQUEST):
                    break

    def _stops_requesting(self, address: str) -> None:
        self._requesting[address] -= 1
        if not self._requesting[address]:
            del self._requesting[address]


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Return a request's head, and what came with it. Raises ConnectionError if it is incomplete or too long."""
    request = b""
    for _ in range(MAX_PIECES):
        piece = await reader.read(MAX_REQUEST)
        request += piece
        if not piece or len(request) > MAX_REQUEST:
            break
        if b"\r\n\r\n" in request:
            return request
    raise ConnectionError


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
