"""The delivery of blocks: dates, posts in doubt, rejected rows, waits; then random stories, in which all may happen."""

import logging
from collections.abc import Collection
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.demo.account import Account
from envoy2emon.emoncms import delivery as module
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.clock import ServerClock
from envoy2emon.emoncms.delivery import MOST_REJECTED, MOST_REPEATED, Delivery
from envoy2emon.emoncms.disk import Disk
from envoy2emon.outage import Outage
from envoy2emon.rows import Undated
from tests.clocks import EPOCH, Time
from tests.conftest import until
from tests.inprocess import Failure, InProcess
from tests.ledger import kwh_error


class Site:
    """A daemon's backlog and delivery, and EmonCMS in the same process, with a clock that only the test moves."""

    def __init__(self, state: Path, ahead: float = 0.0, interval: float = 0.0) -> None:
        self.time, self.account, self.ahead = Time(), Account(), ahead
        self.emoncms = InProcess(self.time, self.account, ahead)
        self.moments: list[float] = []  # when each reading was taken; its number is its place, counted from 1
        self._file, self._interval = state / "stream.sqlite", interval
        self.start()

    def start(self) -> None:
        """Start a new process, which knows only what is on disk."""
        self.emoncms.clock = ServerClock()
        self.backlog = Backlog(Disk(self._file), 86400, self.time, self.time.wall)
        outage = Outage("EmonCMS", 60, self.time, lambda: 0.0)
        self.delivery = Delivery(self.backlog, self.emoncms, self._interval, self.time, outage)

    def restart(self) -> None:
        """Stop the daemon cleanly, and start it again."""
        self.delivery.save(now=True)
        self.start()

    def read(self, count: int = 1, after: float = 1.0) -> None:
        """Take readings, each so many seconds after the one before, whose watts are their numbers."""
        for _ in range(count):
            self.time.now += after
            self.moments.append(self.time.now)
            inputs = {"w": Decimal(len(self.moments))}
            if len(self.moments) % 3:  # a reading may lack a section
                inputs["also"] = Decimal(1)
            self.delivery.append([Undated(self.time.now, inputs)])

    def attempt(self) -> float:
        """Make one attempt, as the delivery thread does, and return the seconds that it then waited."""
        wait = self.delivery.attempt()
        self.time.now += wait
        return wait

    def deliver(self) -> list[float]:
        """Make attempts until no row is left, and return how long each wait was."""
        waits = []
        while len(self.backlog):
            waits.append(self.attempt())
        return waits

    def all_arrived(self, but: Collection[int] = ()) -> None:
        """Assert that all readings (but some) arrived, each dated when it was taken, in order, and energy is exact."""
        for _ in self.moments:
            self.emoncms.shown()  # a server that goes on without its client may still apply a row
        arrived = [(row.time, int(row.inputs["w"])) for row in self.account.rows]
        taken = [(int(EPOCH + self.ahead + moment), number) for number, moment in enumerate(self.moments, 1)]
        assert sorted(set(arrived)) == [(date, number) for date, number in taken if number not in but]
        assert arrived == sorted(arrived)
        assert kwh_error(self.account) == 0


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that repeats its question to EmonCMS without a pause."""
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)
    return Site(tmp_path)


def test_rows_are_dated_by_emoncms_clock(tmp_path: Path) -> None:
    """A row has the date, by EmonCMS's clock and not by this computer's, when it was taken, however long it waited."""
    site = Site(tmp_path, ahead=-5000.0)
    site.time.wrong = 9e6
    site.read(3)
    site.emoncms.away = True
    site.attempt()
    site.time.now += 500
    site.emoncms.away = False
    site.deliver()
    site.all_arrived()


def test_a_date_is_fixed_at_the_first_post(site: Site) -> None:
    """A row that is posted again keeps its date, even if EmonCMS's clock was set in between."""
    site.emoncms.failures.append(Failure(1))
    site.read()
    site.attempt()
    site.emoncms.ahead = 3600.0
    site.deliver()
    site.all_arrived()


@pytest.mark.parametrize(
    "failure", [Failure(50), Failure(50, halfway=True), Failure(100), Failure(5, later=True)], ids=str
)
def test_a_post_that_was_applied_in_part_goes_on_behind_it(site: Site, failure: Failure) -> None:
    """What EmonCMS shows, once it has finished, is left out; only the newest row goes again, with the same date."""
    site.read(100)
    site.emoncms.failures.append(failure)
    site.deliver()
    site.all_arrived()
    assert len(site.account.rows) <= 101


def test_a_post_without_doubt_asks_nothing(site: Site) -> None:
    """As long as posts are answered, EmonCMS is asked only once what it shows, at the start."""
    with patch.object(site.emoncms, "shown", wraps=site.emoncms.shown) as shown:
        for _ in range(3):
            site.read()
            site.deliver()
    shown.assert_called_once()


@pytest.mark.parametrize("answer", ["good", "502"])
def test_all_saved_dates_become_final_when_emoncms_is_heard(site: Site, answer: str) -> None:
    """After any answer from EmonCMS, even a failure, no block on disk is dated by this computer's wrong clock."""
    site.time.wrong = 40.0
    site.emoncms.away = True
    for _ in range(3):
        site.read(5)
        site.attempt()
        site.delivery.save(now=True)
    site.emoncms.away = False
    site.emoncms.out_of_order = answer == "502"
    site.attempt()
    site.start()
    site.emoncms.out_of_order = False
    site.deliver()
    site.all_arrived()


def test_a_date_that_becomes_more_exact_is_saved_before_the_post(site: Site) -> None:
    """EmonCMS's clock is known the better, the more it answers: a kill after the post finds the posted date on disk."""
    site.ahead = site.emoncms.ahead = 0.5
    site.emoncms.out_of_order = True
    site.attempt()
    site.read(after=0.5)
    site.delivery.save(now=True)
    site.emoncms.out_of_order = False
    site.emoncms.failures.append(Failure(1))
    site.attempt()
    site.start()
    site.deliver()
    site.all_arrived()


@pytest.mark.parametrize("posted", [True, False])
def test_a_restart_dates_nothing_back(site: Site, *, posted: bool) -> None:
    """A new process knows EmonCMS's clock less exactly at first, but dates no row before those posted or saved."""
    site.ahead = site.emoncms.ahead = 0.5
    site.emoncms.out_of_order = not posted
    site.read(after=0.5)
    site.delivery.attempt()
    site.restart()
    site.emoncms.out_of_order = False
    site.read(after=0.25)
    site.time.now += 0.25
    site.deliver()
    site.all_arrived()


def test_a_stop_in_doubt_leaves_it_to_the_next_run(site: Site) -> None:
    """SIGTERM leaves no time to wait for a server that goes on applying: rows in doubt are saved, not sent."""
    site.read(20)
    site.emoncms.failures.append(Failure(5, later=True))
    site.attempt()
    ended = Thread()
    ended.start()
    site.delivery.finish(ended)
    site.delivery.run(lambda: None)
    assert len(site.emoncms.posts) == 1
    site.start()
    site.deliver()
    site.all_arrived()


def test_a_row_that_is_rejected_is_dropped_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A rejected row is dropped and logged with EmonCMS's words; all others arrive, however many are rejected."""
    rejected = range(2, 40, 2)
    site.account.reject = lambda _node, inputs: inputs["w"] in rejected
    site.read(40)
    site.deliver()
    site.all_arrived(but=rejected)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == len(rejected)
    assert "this row is rejected" in lines[0]
    assert '{"w":2,"also":1}' in lines[0]


@pytest.mark.parametrize("at_once", [1, 30])
def test_rows_are_kept_while_emoncms_takes_none(site: Site, at_once: int, caplog: pytest.LogCaptureFixture) -> None:
    """If EmonCMS rejects ten rows in succession, it takes none: all are kept, and it is tried every five minutes.

    When it takes rows again, one that it then rejects is dropped.
    """
    site.account.reject = lambda _node, _inputs: True
    for _ in range(30 // at_once):
        site.read(at_once)
        wait = site.delivery.attempt()
    assert wait == 300.0
    assert caplog.text.count("which is dropped") == MOST_REJECTED - 1
    assert "rejects every row" in caplog.text
    site.account.reject = lambda _node, inputs: inputs["w"] == 31
    site.read(2)
    site.deliver()
    site.all_arrived(but={31})


def test_a_row_that_kills_php_blocks_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A row that EmonCMS shows, but that kills PHP at every post, counts as applied after MOST_REPEATED more posts."""
    site.read(5)
    site.emoncms.dead_rows.add(int(EPOCH + site.moments[2]))
    assert len(site.deliver()) == MOST_REPEATED + 2
    site.all_arrived(but={3})
    assert "which is skipped" in caplog.text


def test_what_waits_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """STATUS= shows how many rows wait, and any trouble; the line that ends it counts an earlier run's rows too."""
    caplog.set_level(logging.INFO)
    assert site.delivery.status() == "nothing is waiting"
    site.read()
    assert site.delivery.status() == "1 row waiting"
    site.read(2)
    site.restart()
    site.emoncms.away = True
    site.delivery.attempt()
    site.time.now += 120
    assert site.delivery.status() == "3 rows waiting; EmonCMS failing for 2 min: away"
    site.emoncms.away = False
    site.deliver()
    assert caplog.messages[-1] == "EmonCMS: back after 2 min; 3 rows waited and are being delivered"


def test_waits(site: Site) -> None:
    """While EmonCMS is away waits double, after a successful post they begin anew; a wrong key waits five minutes."""
    site.read()
    site.emoncms.away = True
    assert [site.delivery.attempt() for _ in range(3)] == [1, 2, 4]
    site.emoncms.away = False
    site.deliver()
    site.read()
    site.emoncms.away = True
    assert site.delivery.attempt() == 1
    site.emoncms.away, site.emoncms.locked_out = False, True
    assert site.delivery.attempt() == 300


def test_an_interval_gathers_rows(tmp_path: Path) -> None:
    """With EMONCMS_INTERVAL_S=10 all new rows, 100 at most, are posted every ten seconds; a failure waits that long."""
    site = Site(tmp_path, interval=10.0)
    for count in (1, 130):
        site.read(count)
        assert set(site.deliver()) == {10.0}
    assert [len(post) for post in site.emoncms.posts] == [1, 100, 30]
    site.emoncms.away = True
    site.read()
    assert site.delivery.attempt() == 10.0


@pytest.mark.parametrize("interval", [0.0, 3600.0])
def test_the_last_readings_are_posted_without_waiting(tmp_path: Path, interval: float) -> None:
    """At the end of the process rows that wait for the interval are posted at once."""
    site = Site(tmp_path, interval=interval)
    thread = Thread(target=site.delivery.run, args=(lambda: None,), daemon=True)
    site.read()
    thread.start()
    until(lambda: len(site.account.rows) == 1)
    site.read(4)
    site.delivery.finish(thread)
    assert not thread.is_alive()
    site.all_arrived()


def fail(site: Site, failure: Failure) -> None:
    """Let one more post fail in this way."""
    site.emoncms.failures.append(failure)


def go_away(site: Site) -> None:
    """Take EmonCMS away, or bring it back."""
    site.emoncms.away = not site.emoncms.away


def save(site: Site) -> None:
    """Save the backlog if it is due, as the main thread does."""
    site.delivery.save()


def attempt(site: Site) -> None:
    """Make one attempt if a row waits."""
    if len(site.backlog):
        site.attempt()


def restart(site: Site) -> None:
    """Restart the daemon, while the computer's clock is right: a new process has no other until EmonCMS answers."""
    site.time.wrong = site.ahead
    site.restart()


def slip(site: Site, seconds: float) -> None:
    """Let the computer's clock jump, if EmonCMS has answered, so that its clock is used."""
    if site.emoncms.clock.ahead is not None:
        site.time.wrong += seconds


FAILURES = st.builds(Failure, st.integers(0, 60), halfway=st.booleans(), later=st.booleans())
STEPS = st.one_of(
    st.builds(partial, st.just(Site.read), count=st.integers(1, 130)),
    st.just(attempt),
    st.just(attempt),
    st.builds(partial, st.just(fail), failure=FAILURES),
    st.just(go_away),
    st.just(save),
    st.just(restart),
    st.builds(partial, st.just(slip), seconds=st.floats(-1e5, 1e5)),
)


@settings(max_examples=50)
@given(st.lists(STEPS, min_size=20, max_size=60), st.integers(-100_000, 100_000))
def test_every_story_ends_well(steps: list[partial[None]], ahead: int) -> None:
    """No row is missing, each has the date when it was taken, none goes back, and energy is exact, whatever happens.

    EmonCMS answers before the first restart, because rows saved before that are dated by the computer's clock (README).
    """
    with TemporaryDirectory() as folder, patch.object(module, "ASK_AGAIN_S", 0.0):
        site = Site(Path(folder), float(ahead))
        site.read()
        site.deliver()
        for step in steps:
            step(site)
        site.emoncms.away = False
        site.emoncms.failures.clear()
        site.read()
        site.deliver()
        site.all_arrived()
