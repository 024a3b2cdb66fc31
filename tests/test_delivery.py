"""Delivery: what is next, what an answer means, what may have arrived.

The law of this file: whatever EmonCMS does, and whenever the daemon is killed, each row arrives once and in order.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs

from hypothesis import given, note, settings
from hypothesis import strategies as st

from envoy2emon.backlog import Backlog
from envoy2emon.dates import Arrived, ByAge
from envoy2emon.delivery import Delivery
from envoy2emon.emoncms import Dropped, EmonCMS, Unauthorized, Unavailable
from envoy2emon.inputs import Row
from envoy2emon.spool import Spool

TICK_S = 5.0  # the main thread looks at the backlog so often
MAY_COST_S = 60.0  # what a kill may cost


class Killed(BaseException):
    """SIGKILL in the middle of a post."""


class Tracked(ByAge):
    """Tells which rows a form was made of: rows may be equal, and a form does not name them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def form(self, rows: Sequence[Row], now: float) -> str:
        self.rows = list(rows)
        return super().form(rows, now)


class Server:
    """EmonCMS in memory. `fault` is what the next post meets: a kind, and how many rows and inputs go in before it."""

    def __init__(self, offset: float, delay: float) -> None:
        self.now = 100.0  # the daemon's monotonic clock; the server's is `offset` seconds ahead
        self.offset, self.delay = offset, delay
        self.fault = ("", 0, 0)
        self.tracked = Tracked()
        self.log: list[tuple[float, int]] = []  # (the row's `at`, the date it got) as applied
        self.late: set[float] = set()  # rows that the server had kept waiting
        self._held: tuple[list[Row], list[int]] = ([], [])
        self._inputs: dict[str, tuple[int, float]] = {}

    def connect(self) -> None:
        if self.fault[0] == "refused":
            raise Unavailable("refused")

    def post(self, form: str) -> None:
        (kind, rows, inputs), self.fault = self.fault, ("", 0, 0)
        times = [entry[0] for entry in json.loads(parse_qs(form)["data"][0])]
        self.now += self.delay
        self._catch_up()
        if kind == "unauthorized":
            raise Unauthorized("401")
        if kind == "late":
            self._held = (self.tracked.rows, times)
            self.now += 60
            raise Unavailable("silence", unclear=True)
        count = min(rows, len(times)) if kind else len(times)
        self._apply(self.tracked.rows[:count], times)
        if kind and count < len(times):
            row, date = self.tracked.rows[count], self._second() + times[count]
            self._set(dict(list(row.inputs.items())[:inputs]), date)
            if all(self._inputs.get(name) == (date, float(value)) for name, value in row.inputs.items()):
                self.log.append((row.at, date))  # all of it, or what was not set was so already
        if kind == "killed":
            raise Killed
        if kind == "dropped":
            raise Dropped("closed", unclear=True)
        if kind:
            raise Unavailable("Fatal error", unclear=True)

    def inputs(self, _node: str) -> Arrived:
        (kind, _, _), self.fault = self.fault, ("", 0, 0)
        if kind == "killed":
            raise Killed
        if kind:
            raise Unavailable("away", unclear=True)
        self._catch_up()
        return Arrived(dict(self._inputs), self._second(), self.now)

    def _catch_up(self) -> None:
        (rows, times), self._held = self._held, ([], [])
        self.late |= {row.at for row in rows}
        self._apply(rows, times)

    def _second(self) -> int:
        return math.floor(self.now + self.offset)

    def _apply(self, rows: Sequence[Row], times: Sequence[int]) -> None:
        for row, time in zip(rows, times, strict=False):
            self.log.append((row.at, self._second() + time))
            self._set(row.inputs, self._second() + time)

    def _set(self, inputs: Mapping[str, Decimal], date: int) -> None:
        self._inputs |= {name: (date, float(value)) for name, value in inputs.items()}


class World:
    """A daemon between a meter and the server, with its spool in a directory; `now` is its monotonic clock."""

    def __init__(self, server: Server, directory: Path, values: Callable[[int], Mapping[str, Decimal]]) -> None:
        self.server, self.directory, self.values = server, directory, values
        self.appended: list[float] = []
        self.may_be_lost: set[float] = set()
        self._next_tick = server.now
        self.start()

    def start(self) -> None:
        """Start the daemon."""
        spool = Spool(self.directory / "stream.sqlite", "boot", lambda: 1e9)
        self.backlog = Backlog(86400, spool, lambda: self.server.now)
        self.delivery = Delivery(
            self.backlog,
            self.server,  # type: ignore[arg-type]
            self.server.tracked,
            lambda: self.server.now,
            lambda: 0.0,
        )

    def read(self, gap: float) -> None:
        """Let a reading come after so many seconds."""
        self.wait(gap)
        self.backlog.append([Row(self.server.now, "Envoy-S", self.values(len(self.appended)))])
        self.appended.append(self.server.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, with the main thread's looks at the backlog."""
        end = self.server.now + seconds
        while self._next_tick <= end:
            self.server.now = max(self.server.now, self._next_tick)
            self.backlog.save()
            self._next_tick += TICK_S
        self.server.now = max(self.server.now, end)

    def post(self, kind: str, rows: int, inputs: int) -> None:
        """Let the delivery thread do a step that meets a fault, or none."""
        self.server.fault = (kind, rows, inputs)
        try:
            self.wait(min(self.delivery.step() or 0.0, 1.0))
        except Killed:
            self.kill()

    def kill(self) -> None:
        """End the daemon without a word, and start it again: the youngest rows may be lost."""
        self.may_be_lost |= {at for at in self.appended if at > self.server.now - MAY_COST_S}
        self.start()

    def restart(self) -> None:
        """End the daemon by SIGTERM, and start it again."""
        self.backlog.close()
        self.start()

    def drain(self) -> None:
        """Let EmonCMS answer until nothing waits."""
        self.server.fault = ("", 0, 0)
        while len(self.backlog):
            self.wait(self.delivery.step() or 0.0)
        self.delivery.step()

    def judge(self) -> None:
        """Nothing is lost, nothing doubled but the newest row, order and dates are kept."""
        seen: list[float] = []
        for at, date in self.server.log:
            assert not seen or at >= seen[-1], f"{at} after {seen[-1]}"
            seen.append(at)
            if at not in self.server.late:
                assert abs(date - at - self.server.offset) < 1 + self.server.delay
        assert set(self.appended) - set(seen) <= self.may_be_lost


FAULTS = ("", "refused", "unauthorized", "late", "dropped", "fatal error", "killed")


def happenings(least_gap: float) -> st.SearchStrategy[list[tuple[object, ...]]]:
    """Draw what happens in turn; readings come at least so many seconds apart."""
    read = st.tuples(st.just("read"), st.floats(least_gap, 1.1))
    post = st.tuples(st.just("post"), st.sampled_from(FAULTS), st.integers(0, 8), st.integers(0, 3))
    wait = st.tuples(st.just("wait"), st.floats(0.0, 40.0))
    end = st.tuples(st.sampled_from(("kill", "restart")))
    return st.lists(st.one_of(read, read, post, post, wait, end), max_size=60)


def distinct(number: int) -> dict[str, Decimal]:
    """Return a row as the meters send it: some values are new, some never change, now and then a section is missing."""
    row = {"p": Decimal(number) / 8 + 100, "zero": Decimal(0), "v": Decimal(23000 + number) / 100}
    if number % 5 == 3:
        del row["v"]
    return row


def equal(_number: int) -> dict[str, Decimal]:
    """Return a row as a site sends it where nothing moves."""
    return {"p": Decimal(500), "zero": Decimal(0)}


def live(world: World, story: list[tuple[object, ...]]) -> None:
    """Let all that happen, then let EmonCMS answer, and judge."""
    for name, *arguments in story:
        getattr(world, str(name))(*arguments)
    world.drain()
    world.judge()


@settings(max_examples=100, deadline=None)
@given(story=happenings(0.95), offset=st.floats(-1e5, 1e9), delay=st.floats(0, 0.5))
def test_each_row_arrives_once(story: list[tuple[object, ...]], offset: float, delay: float) -> None:
    """Whatever happens to posts and to the daemon: nothing is lost, at most the newest row goes twice, dates hold."""
    with TemporaryDirectory() as directory:
        live(World(Server(offset, delay), Path(directory), distinct), story)


@settings(max_examples=100, deadline=None)
@given(story=happenings(1.0), offset=st.floats(-1e5, 1e9))
def test_equal_rows_arrive_once(story: list[tuple[object, ...]], offset: float) -> None:
    """Rows that are equal in every digit are told apart by their dates."""
    with TemporaryDirectory() as directory:
        live(World(Server(offset, 0.0), Path(directory), equal), story)
