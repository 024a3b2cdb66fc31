"""Who delivers: the thread that brings rows, in passing, or the delivery thread, which may wait.

The law of this file: one thread at a time has the turn, and whoever brings rows waits neither for the turn nor for
EmonCMS.
"""

import threading
from collections.abc import Callable, Sequence

from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.delivery import Delivery
from envoy2emon.rows import Row

# If no row follows for so long, nobody comes along who would take the answer to the last one.
ANSWER_WAITS_S = 2.0
# A worker with nothing to do shows that it is alive.
IDLE_S = 60.0

_NOTHING = threading.Event()  # what a worker waits for that only waits


class Courier:
    """Brings one daemon's rows to EmonCMS.

    A row that nothing is in the way of is posted by the thread that brings it, and its answer is taken by the next that
    comes along. So an event wakes the process once; with a thread that posts it and waits for the answer it was 3.6
    times (tests/benchmark.py).
    """

    def __init__(self, backlog: Backlog, delivery: Delivery, clock: Callable[[], float]) -> None:
        self._backlog = backlog
        self._delivery = delivery
        self._clock = clock
        self._turn = threading.Lock()
        self._wanted = threading.Event()  # the delivery thread is

    def take(self, rows: Sequence[Row]) -> None:
        """Take new rows, from any thread."""
        self._backlog.append(rows)
        if self._turn.acquire(blocking=False):
            try:
                if self._delivery.in_passing():
                    return
            finally:
                self._turn.release()
        self._wanted.set()

    def look(self) -> None:
        """Look after what waits: called every few seconds."""
        self._backlog.save()
        self._backlog.say_losses()
        if self._delivery.unheard > ANSWER_WAITS_S:
            self._wanted.set()

    def run(self, turned: Callable[[], None]) -> None:
        """Be the delivery thread, for ever."""
        while True:
            turned()
            with self._turn:
                wait = self._delivery.step()
            if wait is None:
                self._wanted.wait(IDLE_S)
            else:
                _NOTHING.wait(wait)
            self._wanted.clear()

    def finish(self, seconds: float) -> None:
        """Let a post that is under way end within so many seconds, and begin no other."""
        until = self._clock() + seconds
        if self._turn.acquire(timeout=seconds):
            self._delivery.heard(until - self._clock())

    def status(self) -> str:
        """Say how it stands, in words for STATUS=."""
        return self._delivery.status()
