"""Delivery: what is next, what an answer means, what may have arrived.

The law of this file: whatever EmonCMS does, and whenever the daemon is killed, each row arrives once and in order.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.emoncms import exchange
from envoy2emon.emoncms.arrived import Arrived
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.dates import ByAge, ByDate, Flight, Progress
from envoy2emon.emoncms.delivery import MOST_BAD_ROWS, MOST_ROWS, SAVED_SOON_S, Delivery
from envoy2emon.emoncms.client import Dropped, EmonCMS, Unauthorized, Unavailable
from envoy2emon.emoncms.group import Group
from envoy2emon.rows import Row
from envoy2emon.outage import REFUSED_WAIT_S
from envoy2emon.settings import Secret
from envoy2emon.emoncms.spool import Spool
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.emoncms import FAULTS as AWAY

TICK_S = 5.0  # the main thread looks at the backlog so often
MAY_COST_S = 60.0  # what a kill may cost


class Killed(BaseException):
    """SIGKILL in the middle of a post."""


class Tracked(ByAge):
    """Tells which rows a form was made of: rows may be equal, and a form does not name them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def form(self, rows: Sequence[Row], flight: Flight, now: float) -> str:
        """Return the form, and keep the rows."""
        self.rows = list(rows)
        return super().form(rows, flight, now)


def ages(form: str) -> list[int]:
    """Return when a form's rows were read, in seconds from its arrival, which is below zero."""
    fields = parse_qs(form)
    return [entry[0] - int(fields["sentat"][0]) for entry in json.loads(fields["data"][0])]


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
        self._trouble: Exception | None = None  # what the answer to the last post is
        self._inputs: dict[str, tuple[int, float]] = {}

    def connect(self) -> None:
        """Do as EmonCMS.connect."""
        if self.fault[0] == "refused":
            raise Unavailable("refused")

    def ready(self) -> bool:
        """Do as EmonCMS.ready."""
        return self.fault[0] != "refused"

    def send(self, form: str) -> None:
        """Do as EmonCMS.send."""
        self._trouble = None
        try:
            self.post(form)
        except (Unavailable, Unauthorized) as trouble:
            self._trouble = trouble

    def applied(self, _seconds: float) -> bool:
        """Do as EmonCMS.applied."""
        return self._trouble is None

    def finish(self) -> None:
        """Do as EmonCMS.finish."""
        if self._held[0]:
            self.now += 60
        if self._trouble:
            raise self._trouble

    def post(self, form: str) -> None:
        """Do what the fault says, and raise what the answer is."""
        (kind, rows, inputs), self.fault = self.fault, ("", 0, 0)
        times = ages(form)
        self.now += self.delay
        self._catch_up()
        if kind == "unauthorized":
            raise Unauthorized("401")
        if kind == "late":
            self._held = (self.tracked.rows, times)
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
        """Do as EmonCMS.inputs."""
        (kind, _, _), self.fault = self.fault, ("", 0, 0)
        if kind == "killed":
            raise Killed
        if kind:
            raise Unavailable("away", unclear=True)
        self._catch_up()
        asked_at, date = self.now, self._second()
        self.now += self.delay
        return Arrived(dict(self._inputs), date, asked_at, self.now)

    def _catch_up(self) -> None:
        (rows, times), self._held = self._held, ([], [])
        self.late |= {row.at for row in rows}
        self._apply(rows, times)

    def _second(self) -> int:
        return math.floor(self.now + self.offset)

    def _apply(self, rows: Sequence[Row], times: Sequence[int]) -> None:
        for row, age in zip(rows, times, strict=False):
            self.log.append((row.at, self._second() + age))
            self._set(row.inputs, self._second() + age)

    def _set(self, inputs: Mapping[str, Decimal], date: int) -> None:
        self._inputs |= {name: (date, float(value)) for name, value in inputs.items()}


class Disk(Spool):
    """A spool on a disk that may turn read-only."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(path, "boot", lambda: 1e9)
        self.read_only = read_only

    def save(self, groups: Iterable[Group], progress: Progress) -> bool:
        """Save, if that is possible."""
        return not self.read_only and super().save(groups, progress)

    def clear(self) -> None:
        """Remove the file, if that is possible."""
        if not self.read_only:
            super().clear()


class World:
    """A daemon between a meter and the server, with its spool in a directory; `now` is its monotonic clock."""

    def __init__(self, server: Server, directory: Path, values: Callable[[int], Mapping[str, Decimal]]) -> None:
        self.server, self.directory, self.values = server, directory, values
        self.appended: list[float] = []
        self.may_be_lost: set[float] = set()
        self._next_tick = server.now
        self.disk = Disk(directory / "stream.sqlite")
        self.start()

    def start(self) -> None:
        """Start the daemon."""
        self.disk = Disk(self.directory / "stream.sqlite", read_only=self.disk.read_only)
        self.backlog = Backlog(86400, self.disk, lambda: self.server.now)
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

    def bring(self, gap: float, kind: str, rows: int, inputs: int) -> None:
        """Let a reading come that is posted in passing, if that is possible, and meets a fault, or none."""
        self.read(gap)
        self.server.fault = (kind, rows, inputs)
        try:
            self.delivery.in_passing()
        except Killed:
            self.kill()

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
ENDS = ("kill", "restart")


def happenings(
    least_gap: float, faults: Sequence[str] = FAULTS, ends: Sequence[str] = ENDS
) -> st.SearchStrategy[list[tuple[object, ...]]]:
    """Draw what happens in turn; readings come at least so many seconds apart."""
    read = st.tuples(st.just("read"), st.floats(least_gap, 1.1))
    meets = (st.sampled_from(faults), st.integers(0, 8), st.integers(0, 3))
    post = st.tuples(st.just("post"), *meets)
    bring = st.tuples(st.just("bring"), st.floats(least_gap, 1.1), *meets)
    wait = st.tuples(st.just("wait"), st.floats(0.0, 40.0))
    stop = [st.tuples(st.sampled_from(ends))] if ends else []
    return st.lists(st.one_of(read, bring, bring, post, post, wait, *stop), max_size=60)


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


@settings(max_examples=200, deadline=None)
@given(story=happenings(0.95), offset=st.floats(-1e5, 1e9), delay=st.floats(0, 0.5))
def test_each_row_arrives_once(story: list[tuple[object, ...]], offset: float, delay: float) -> None:
    """Whatever happens to posts and to the daemon: nothing is lost, at most the newest row goes twice, dates hold."""
    with TemporaryDirectory() as directory:
        live(World(Server(offset, delay), Path(directory), distinct), story)


@settings(max_examples=200, deadline=None)
@given(story=happenings(1.0, [fault for fault in FAULTS if fault != "late"]), offset=st.floats(-1e5, 1e9))
def test_equal_rows_arrive_once(story: list[tuple[object, ...]], offset: float) -> None:
    """Rows that are equal in every digit are told apart by their dates."""
    with TemporaryDirectory() as directory:
        live(World(Server(offset, 0.0), Path(directory), equal), story)


@settings(max_examples=200, deadline=None)
@given(story=happenings(1.0, [fault for fault in FAULTS if fault != "killed"], ()), offset=st.floats(-1e5, 1e9))
def test_equal_rows_are_not_lost_to_one_that_came_late(story: list[tuple[object, ...]], offset: float) -> None:
    """A row that EmonCMS kept waiting has a later row's date: of two that cannot be told apart none is lost."""
    with TemporaryDirectory() as directory:
        world = World(Server(offset, 0.0), Path(directory), equal)
        for name, *arguments in story:
            getattr(world, str(name))(*arguments)
        world.drain()
        assert set(world.appended) <= {at for at, _ in world.server.log}


def test_an_outage_ends_when_all_turns_out_to_have_arrived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the last answer was lost, the question that settles it is the news of the outage's end."""
    caplog.set_level(logging.INFO)
    world = World(Server(0.0, 0.0), tmp_path, distinct)
    world.read(1.0)
    world.read(1.0)
    world.post("fatal error", 2, 0)
    world.post("", 0, 0)
    assert not world.backlog
    assert not world.delivery.outage.reason
    assert caplog.messages[-1].startswith("EmonCMS: back after")


def test_what_was_shown_before_a_post_is_no_proof_of_it(tmp_path: Path) -> None:
    """A row that came late has the date of one of those that waited for it: of these none is taken for applied."""
    silence: list[tuple[object, ...]] = [("post", "late", 0, 0), *[("read", 1.0)] * 20]
    asked_and_cut: list[tuple[object, ...]] = [("post", "", 0, 0), ("post", "fatal error", 0, 0)]
    live(
        World(Server(0.0, 0.0), tmp_path, equal),
        [("read", 1.05), ("post", "", 0, 0), ("read", 1.0), *silence, *asked_and_cut],
    )


def test_a_row_alone_is_not_taken_for_its_equal_before(tmp_path: Path) -> None:
    """Asked one and a half seconds later: Date headers are cut to seconds, and would let it be either."""
    failed = ("post", "fatal error", 0, 0)
    live(
        World(Server(0.0, 0.0), tmp_path, equal),
        [("read", 1.05), ("post", "", 0, 0), ("read", 1.05), failed, ("wait", 0.5)],
    )


class Slow(Server):
    """EmonCMS on a slow machine: it goes on with a post whose sender has left, for longer than one question takes."""

    def inputs(self, node: str) -> Arrived:
        """Answer, and apply what is left of the post."""
        rows, times = self._held
        self._held = ([], [])
        arrived = super().inputs(node)
        self._apply(rows, [date - self._second() for date in times])
        return arrived

    def post(self, form: str) -> None:
        """Apply four rows before the connection is cut, and keep the rest."""
        if len(self.tracked.rows) < 5:
            super().post(form)
            return
        times = ages(form)
        self._apply(self.tracked.rows[:4], times)
        self._held = (self.tracked.rows[4:], [self._second() + age for age in times[4:]])
        raise Unavailable("cut", unclear=True)


class FarAway(Server):
    """EmonCMS whose name takes a while to resolve."""

    connected = False

    def connect(self) -> None:
        """Take four seconds, once."""
        self.now += 0 if self.connected else 4
        self.connected = True

    def post(self, form: str) -> None:
        """Connect first if nobody has."""
        self.connect()
        super().post(form)


def eleven(server: Server, directory: Path) -> None:
    """Let eleven readings wait, deliver them, and judge."""
    live(World(server, directory, distinct), [("read", 1.0)] * 11)
    assert len(server.log) == 11


def test_a_server_that_is_not_through_is_asked_again(tmp_path: Path) -> None:
    """Only two equal answers a second apart tell that EmonCMS has ended: it applies rows whose sender has left."""
    eleven(Slow(0.0, 0.0), tmp_path)


def test_a_slow_connection_makes_no_date_wrong(tmp_path: Path) -> None:
    """A row's age is taken when the connection stands."""
    eleven(FarAway(0.0, 0.0), tmp_path)


@pytest.mark.parametrize("batches", [0, 1, 2])
@pytest.mark.parametrize("applied", [0, 40, 100])
def test_a_drain_that_the_disk_knows_nothing_of_is_not_repeated(tmp_path: Path, batches: int, applied: int) -> None:
    """The disk turns read-only during an outage, and a kill ends the drain in the middle of a post."""
    world = World(Server(1e6, 0.2), tmp_path, distinct)
    for _ in range(300):
        world.read(1.0)
    world.wait(40.0)
    world.post("fatal error", 0, 0)
    world.wait(10.0)
    world.disk.read_only = True
    for _ in range(batches + 2):  # two of them are questions
        world.post("", 0, 0)
    world.post("killed", applied, 0)
    world.drain()
    world.judge()
    assert set(world.appended) == {at for at, _ in world.server.log}


@pytest.mark.parametrize("saving", [0.05, 0.4, 1.7])
def test_a_disk_that_takes_its_time_makes_no_date_wrong(tmp_path: Path, saving: float) -> None:
    """How long it took to save a flight is made whole seconds of, which EmonCMS is told."""
    server = Server(1e6 + 0.5, 0.0)

    class Slow(Disk):
        def save(self, groups: Iterable[Group], progress: Progress) -> bool:
            server.now += saving
            return super().save(groups, progress)

    world = World(server, tmp_path, distinct)
    world.disk = Slow(tmp_path / "slow.sqlite")
    world.backlog = Backlog(86400, world.disk, lambda: server.now)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        server.now += seconds

    world.delivery = Delivery(
        world.backlog,
        server,  # type: ignore[arg-type]
        server.tracked,
        lambda: server.now,
        lambda: 0.0,
        wait,
    )
    for number in range(100):
        world.read(1.0 + number % 7 / 10)
    world.wait(40)
    world.drain()
    assert all(abs(date - at - server.offset) < 1 + SAVED_SOON_S for at, date in server.log)
    assert len(server.log) == 100
    assert bool(waits) == (saving > SAVED_SOON_S)


class Line:
    """A backlog in memory, its delivery, and a stand-in at the other end of a real connection."""

    def __init__(
        self, emoncms: StandInEmonCMS, count: int, value: Callable[[int], int] = lambda number: number
    ) -> None:
        self.emoncms = emoncms
        self.backlog = Backlog(86400, Spool(None, "boot", lambda: 0.0), time.monotonic)
        client = EmonCMS(emoncms.url, Secret(emoncms.key))
        self.delivery = Delivery(self.backlog, client, ByAge(), time.monotonic, lambda: 0.0)
        self.began = time.monotonic() - count
        self.rows = [Row(self.began + n, "Envoy-S", {"p": Decimal(value(n)), "zero": Decimal(0)}) for n in range(count)]
        self.backlog.append(self.rows)

    def steps(self, most: int = 400) -> int:
        """Go on without a pause until nothing waits, and return how many steps that took."""
        for number in range(most):
            if self.delivery.step() is None:
                return number
        return most

    def arrived(self) -> list[int]:
        """Return the values in the order in which they were applied."""
        return [int(row.inputs["p"]) for row in self.emoncms.rows]

    def kwh(self) -> float:
        """Return what `power to kWh` made of the rows."""
        return self.emoncms.account.nodes["Envoy-S"]["p"].kwh


def test_rows_go_oldest_first_in_batches(emoncms: StandInEmonCMS) -> None:
    """What waits goes before what is new, at most a hundred rows at once, over one connection."""
    line = Line(emoncms, 950)
    line.delivery.step()
    line.backlog.append([Row(time.monotonic(), "Envoy-S", {"p": Decimal(950)})])
    line.steps()
    assert line.arrived() == list(range(951))
    assert (emoncms.requests, emoncms.connections, MOST_ROWS) == (10, 1, 100)


@pytest.mark.parametrize("clock_offset", [0, -3 * 3600, 86400 * 365])
def test_dates_are_right_whatever_the_clocks_show(emoncms: StandInEmonCMS, clock_offset: float) -> None:
    """EmonCMS's clock may be hours off: rows are dated by it, to within a second of their age."""
    emoncms.clock_offset = clock_offset
    line = Line(emoncms, 300)
    line.steps()
    for row, applied in zip(line.rows, emoncms.rows, strict=True):
        truth = emoncms.now() - (time.monotonic() - row.at)
        assert abs(applied.time - truth) < 1.1
    assert all(after.time >= before.time for before, after in pairwise(emoncms.rows))


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY.keys())
def test_away_in_every_way(emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Rows are kept while EmonCMS is away; then all arrive, in order, once, but for the newest that had arrived."""
    monkeypatch.setattr(exchange, "ANSWER_TIMEOUT_S", 0.2)
    emoncms.fault = fault
    line = Line(emoncms, 11)
    assert line.delivery.step() in {0.0, 1.0, REFUSED_WAIT_S}
    assert len(line.backlog) == 11
    emoncms.fault = None
    line.steps()
    again = 1 if fault.applied == 2 else 0
    assert sorted(line.arrived()) == sorted([*range(11), *[1] * again])
    assert line.arrived() == sorted(line.arrived())


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize("applied", [0, 1, 5, 10, 11])
@pytest.mark.parametrize("answer", ["cut", (200, "Fatal error"), (500, "")], ids=["cut", "fatal error", "500"])
def test_eleven_rows_sent_answer_lost_energy_not_doubled(
    emoncms: StandInEmonCMS,
    answer: object,
    applied: int,
    equal: bool,  # noqa: FBT001
) -> None:
    """Eleven rows at a constant 3.6 kW are 10 Wh, however many of them were applied when the answer got lost."""
    emoncms.fail_next(Fault(answer, applied))  # type: ignore[arg-type]
    line = Line(emoncms, 11, lambda number: 3600 if equal else 3600 + number)
    line.steps()
    assert len(emoncms.rows) - 11 in {0, 1}
    assert line.kwh() == pytest.approx(0.010, abs=0.0011)  # the newest row may go again a second apart
    if applied == 11 and not equal:
        assert len(emoncms.rows) == 11


def test_the_same_batch_twice_would_double_it(emoncms: StandInEmonCMS) -> None:
    """The stand-in counts as EmonCMS does: a batch that goes again is energy that never was."""
    line = Line(emoncms, 11, lambda _: 3600)
    line.steps()
    line.backlog.append(line.rows)
    line.steps()
    assert line.kwh() == pytest.approx(0.020, abs=0.0022)


@pytest.mark.parametrize("bad", [(0,), (37,), (99,), (36, 37), (5, 60, 250)])
def test_a_bad_row_is_found_and_dropped(
    emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture, bad: tuple[int, ...]
) -> None:
    """It is dropped with the server's words and its own; the rows around it arrive once."""
    emoncms.account.reject = lambda _, inputs: int(inputs["p"]) in bad
    line = Line(emoncms, 260)
    line.steps()
    assert line.arrived() == [number for number in range(260) if number not in bad]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * len(bad)
    for number, words in zip(bad, caplog.messages, strict=True):
        assert "this row is rejected" in words
        assert f'"p":{number},' in words


def test_if_every_row_is_rejected_they_are_kept(emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture) -> None:
    """EmonCMS with 32 nodes takes no row at all: after ten that is no matter of rows any more."""
    emoncms.account.reject = lambda *_: True
    line = Line(emoncms, 100)
    waits = [line.delivery.step() for _ in range(60)]
    assert REFUSED_WAIT_S in waits
    assert len(line.backlog) == 100 - MOST_BAD_ROWS
    assert "rejects every row" in caplog.messages[-1]
    emoncms.account.reject = lambda *_: False
    line.steps()
    assert line.arrived() == list(range(MOST_BAD_ROWS, 100))


def test_a_connection_closed_while_idle_is_silent(emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture) -> None:
    """A kept connection that is closed as a post goes out is tried again at once, and nobody hears of it."""
    caplog.set_level(logging.INFO)
    line = Line(emoncms, 150)
    line.delivery.step()
    emoncms.fail_next(Fault("cut"))
    assert line.delivery.step() == 0.0
    line.steps()
    assert line.arrived() == list(range(150))
    assert caplog.messages == []


def test_a_server_that_dies_of_each_post_is_an_outage(
    emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture
) -> None:
    """If the second try is closed as well it was not for idleness: it is said, and waits grow."""
    line = Line(emoncms, 250)
    line.delivery.step()
    emoncms.fail_next(*[Fault("cut")] * 6)
    waits = [line.delivery.step() or 0.0 for _ in range(20)]
    assert max(waits) >= 4
    assert "closed" in caplog.messages[0]
    line.steps()
    assert line.arrived() == list(range(250))


def test_an_outage_is_two_lines(emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it starts; one when it ends, with how long and how many rows."""
    caplog.set_level(logging.INFO)
    line = Line(emoncms, 250)
    for fault in ("502", "fatal error", "cut", "500", "empty"):
        emoncms.fault = AWAY[fault]
        line.delivery.step()
    assert "502" not in line.delivery.status()
    assert line.delivery.status().startswith("backlog 250, for 0 s: ")
    emoncms.fault = None
    line.steps()
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == "EmonCMS: back after 0 s; 250 rows waited and are being delivered"
    assert line.delivery.status() == "backlog 0"


def test_a_wrong_key_waits_for_the_owner(emoncms: StandInEmonCMS, caplog: pytest.LogCaptureFixture) -> None:
    """401: an ERROR that says what to do, once; the rows are kept, and it is tried every five minutes."""
    line = Line(emoncms, 11)
    emoncms.key = "changed"
    assert [line.delivery.step() for _ in range(3)] == [REFUSED_WAIT_S] * 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    emoncms.key = "writekey"
    line.steps()
    assert line.arrived() == list(range(11))


def test_reports_keep_their_dates(emoncms: StandInEmonCMS) -> None:
    """Inverter rows are dated by the gateway, however late they arrive, and what arrived of them is known."""
    backlog = Backlog(86400, Spool(None, None, lambda: 0.0), time.monotonic)
    client = EmonCMS(emoncms.url, Secret(emoncms.key))
    delivery = Delivery(backlog, client, ByDate(), time.monotonic, lambda: 0.0)
    reports = [Row(1_700_000_000 + 7 * n, "roof", {f"{n % 4}_wNow": Decimal(n)}) for n in range(20)]
    emoncms.fail_next(Fault("cut", applied=9))
    backlog.append(reports)
    while delivery.step() is not None:
        pass
    dates = [row.time for row in emoncms.rows]
    assert dates == sorted([1_700_000_000 + 7 * n for n in [*range(20), 8]])
