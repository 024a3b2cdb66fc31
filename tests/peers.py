"""The gateway and EmonCMS of a measured process, simulated in this one, so that their work is not measured.

Each event carries its number, so that its arrival can be recognised. Times are monotonic seconds, which all processes
of a computer share.
"""

import socket
import threading
import time
from bisect import bisect
from contextlib import suppress
from typing import Literal

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT

NUMBERED = THREE_PHASE_EVENT.replace('"p":54.745', '"p":%d', 1)
INPUT = "prod_ph-a_wNow"
KEPT_ROWS = 5000
LONGEST_S = 120.0


class _EmonCMS(StandInEmonCMS):
    """Notes when each request has come in, so that what the stand-in does with it then is not counted as latency."""

    def __init__(self) -> None:
        super().__init__(keep=KEPT_ROWS)
        self.read_at: list[float] = []

    def note(self, connection: socket.socket, event: Literal["opened", "request", "closed"]) -> None:
        if event == "request":
            self.read_at.append(time.monotonic())
        super().note(connection, event)


class Peers:
    """A simulated gateway and a stand-in for EmonCMS, whose stream and rows are counted."""

    def __init__(self) -> None:
        self._envoy, self.emoncms = SimulatedEnvoy(), _EmonCMS()
        self._envoy.start()
        self.emoncms.__enter__()
        self._number = 0

    def settings(self) -> dict[str, str]:
        """Return settings for the two, as soon as no earlier process reads the stream."""
        self._envoy.wait_for(lambda: self._envoy.open_streams == 0)
        return self._envoy.settings() | self.emoncms.settings()

    def first_post(self) -> float:
        """Send an event as soon as the stream is open, and return when its post came in."""
        self._envoy.wait_for_stream(LONGEST_S)
        return self._arrivals(self.send(1))[0]

    def pace(self, rate: float, count: int) -> list[float]:
        """Send `count` events, `rate` a second, and return for each the seconds from one socket to the other."""
        sent, pause = [], threading.Event()
        start = time.monotonic() + 1 / rate
        for number in range(count):
            pause.wait(start + number / rate - time.monotonic())
            sent.append(time.monotonic())
            self.send(1)
        arrivals = self._arrivals(count)
        pause.wait(1 / rate)  # for the work that follows a post
        return [there - here for here, there in zip(sent, arrivals, strict=True)]

    def burst(self, count: int, at_once: int = 1000) -> float:
        """Send `count` events in batches of `at_once`, each after the previous one is applied; return the seconds."""
        start = time.monotonic()
        for left in range(count, 0, -at_once):
            applied = self.emoncms.account.applied + self.send(min(left, at_once))
            self.emoncms.wait_for(lambda due=applied: self.emoncms.account.applied >= due, LONGEST_S)  # type: ignore[misc]
        return time.monotonic() - start

    def send(self, count: int) -> int:
        """Send `count` events at once and return how many."""
        for _ in range(count):
            self._number += 1
            self._envoy.emit(NUMBERED % self._number)
        return count

    def flow(self, count: int, at_once: int, pause: float) -> None:
        """Send `count` events in batches of `at_once`, each followed by a pause in s, without waiting for arrivals."""
        for left in range(count, 0, -at_once):
            self.send(min(left, at_once))
            threading.Event().wait(pause)

    def drain(self, count: int) -> float:
        """Let EmonCMS answer again; return the seconds between the first and the last of `count` rows."""
        applied = self.emoncms.account.applied
        self.emoncms.fault = None
        self.emoncms.wait_for(lambda: self.emoncms.account.applied > applied, LONGEST_S)
        start = self.emoncms.read_at[-1]
        self.emoncms.wait_for(lambda: self.emoncms.account.applied >= applied + count, LONGEST_S)
        return time.monotonic() - start

    def watch(self, port: int, count: int) -> None:
        """Open the live page's events `count` times, and read them for ever."""

        def read(viewer: socket.socket) -> None:
            with viewer, suppress(OSError):
                while viewer.recv(65536):
                    pass

        for _ in range(count):
            viewer = socket.create_connection(("127.0.0.1", port))
            viewer.sendall(b"GET /events HTTP/1.1\r\nHost: benchmark\r\n\r\n")
            viewer.recv(65536)
            threading.Thread(target=read, args=(viewer,), daemon=True).start()

    def _arrivals(self, count: int) -> list[float]:
        """Wait for the last `count` events sent, and return when the posts that held them came in."""
        numbers = range(self._number - count + 1, self._number + 1)
        self.emoncms.wait_for(lambda: any(row.inputs.get(INPUT) == self._number for row in self.emoncms.rows[-1:]))
        by_number = {int(row.inputs[INPUT]): row.arrived for row in self.emoncms.rows}
        read_at = self.emoncms.read_at
        return [read_at[bisect(read_at, by_number[number]) - 1] for number in numbers]
