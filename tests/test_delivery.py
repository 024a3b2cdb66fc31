"""The delivery of blocks: dates, posts in doubt, rejected rows, waits."""

import logging
from decimal import Decimal
from pathlib import Path
from threading import Thread

import pytest

from envoy2emon.demo.account import Account
from envoy2emon.emoncms import delivery as module
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.delivery import MOST_REJECTED, MOST_REPEATED, Delivery
from envoy2emon.emoncms.disk import Disk
from envoy2emon.outage import Outage
from envoy2emon.rows import Row, Undated
from tests.inprocess import EPOCH, Failure, InProcess, Time
from tests.ledger import kwh_error


class Site:
    """A daemon's backlog and delivery, and EmonCMS in the same process, with a clock that only the test moves."""

    def __init__(self, state: Path, ahead: float = 0.0, interval: float = 0.0) -> None:
        self.time, self.account, self.state = Time(), Account(), state
        self.emoncms = InProcess(self.time, self.account, ahead)
        self.interval = interval
        self.number = 0
        self.restart()

    def restart(self) -> None:
        """Start again, as a new process that knows only what is on disk."""
        self.emoncms.clock.ahead = None
        self.backlog = Backlog(Disk(self.state / "stream.sqlite"), 86400, self.time, self.time.wall)
        outage = Outage("EmonCMS", 60, self.time, lambda: 0.0)
        self.delivery = Delivery(self.backlog, self.emoncms, self.interval, self.time, outage)

    def read(self, count: int = 1) -> None:
        """Take readings, one a second, whose watts are their numbers."""
        for _ in range(count):
            self.time.now += 1
            self.number += 1
            inputs = {"w": Decimal(self.number)}
            if self.number % 3:  # a reading may lack a section
                inputs["also"] = Decimal(1)
            self.delivery.append([Undated(self.time.now, inputs)])

    def deliver(self) -> list[float]:
        """Make attempts until no row is left, and return the seconds to wait after each."""
        waits = []
        while len(self.backlog):
            waits.append(self.delivery.attempt())
            self.time.now += waits[-1]
        return waits

    @property
    def arrived(self) -> list[tuple[int, int]]:
        """Date and number of each row as it was applied."""
        return [(row.time, int(row.inputs["w"])) for row in self.account.rows]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that repeats its question to EmonCMS without a pause."""
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)
    return Site(tmp_path)


def dates(first: int, count: int) -> list[tuple[int, int]]:
    """Return the dates and numbers of `count` readings, one a second, the first taken at monotonic second `first`."""
    return [(int(EPOCH) + first + number, 1 + number) for number in range(count)]


def test_rows_arrive_in_order_with_the_dates_of_their_readings(site: Site) -> None:
    """Each reading is a row, dated when it was taken, however long it waited."""
    site.read(3)
    site.time.now += 500
    assert site.deliver() == [0.0]
    assert site.arrived == dates(1001, 3)


def test_the_computers_clock_does_not_matter(tmp_path: Path) -> None:
    """Rows are dated by EmonCMS's clock, even if that is wrong, whatever this computer's clock says."""
    site = Site(tmp_path, ahead=-5000.0)
    site.time.wrong = 9e6
    site.read(2)
    site.deliver()
    assert site.arrived == dates(1001 - 5000, 2)


def test_nothing_is_posted_before_emoncms_was_heard(site: Site) -> None:
    """EmonCMS's first answer teaches its time: before that no row has a date, so none is posted."""
    site.emoncms.away = True
    site.read()
    assert site.delivery.attempt() == 1.0
    assert site.emoncms.posts == []
    site.emoncms.away = False
    site.deliver()
    assert site.arrived == dates(1001, 1)


def test_a_date_is_fixed_at_the_first_post(site: Site) -> None:
    """A row that is posted again keeps its date, even if EmonCMS's clock was set in between."""
    site.emoncms.failures.append(Failure(1))
    site.read()
    site.delivery.attempt()
    site.emoncms.ahead = 3600.0
    site.deliver()
    assert site.arrived == dates(1001, 1) * 2
    assert kwh_error(site.account) == 0


@pytest.mark.parametrize("applied", [0, 1, 2, 50, 99, 100])
@pytest.mark.parametrize("halfway", [False, True])
def test_a_post_that_was_applied_in_part_goes_on_behind_it(site: Site, applied: int, *, halfway: bool) -> None:
    """Rows that EmonCMS shows are left out, but the newest of them is posted again with its date; energy is exact."""
    site.read(100)
    site.emoncms.failures.append(Failure(applied, halfway=halfway))
    site.deliver()
    assert sorted(set(site.arrived)) == dates(1001, 100)
    assert site.arrived == sorted(site.arrived)
    assert len(site.arrived) <= 101
    assert kwh_error(site.account) == 0


def test_a_server_that_goes_on_is_waited_for(site: Site) -> None:
    """Rows are sent again only when two answers are equal, because a server that lost its client goes on applying."""
    site.read(20)
    site.emoncms.failures.append(Failure(5, later=True))
    site.deliver()
    assert site.arrived == [*dates(1001, 20), dates(1001, 20)[-1]]
    assert kwh_error(site.account) == 0


def test_a_post_without_doubt_asks_nothing(site: Site) -> None:
    """As long as posts are answered, EmonCMS is asked only once what it shows, at the start."""
    questions = []
    shown = site.emoncms.shown
    site.emoncms.shown = lambda: questions.append(1) or shown()  # type: ignore[method-assign,func-returns-value]
    for _ in range(5):
        site.read()
        site.deliver()
    assert len(questions) == 1


@pytest.mark.parametrize("delivered", [0, 3, 10])
def test_after_a_restart_emoncms_tells_what_it_has(site: Site, delivered: int) -> None:
    """Saved blocks go on after what EmonCMS shows, and keep the dates with which they were posted first."""
    site.read(10)
    site.emoncms.failures.append(Failure(delivered))
    site.delivery.attempt()
    site.delivery.save(now=True)
    site.restart()
    site.time.wrong = 1e6
    site.read()
    site.deliver()
    assert sorted(set(site.arrived)) == dates(1001, 11)
    assert site.arrived == sorted(site.arrived)
    assert kwh_error(site.account) == 0


def test_saved_dates_become_final_before_the_post(site: Site) -> None:
    """A block dated by this computer's clock is redated on disk before its post, so that a restart can ask for it."""
    site.time.wrong = 40.0
    site.emoncms.away = True
    site.read(5)
    site.delivery.attempt()
    site.delivery.save(now=True)
    site.emoncms.away = False
    site.emoncms.failures.append(Failure(5))
    site.delivery.attempt()
    site.restart()
    site.deliver()
    assert site.arrived == [*dates(1001, 5), dates(1001, 5)[-1]]


@pytest.mark.parametrize("answer", ["good", "502"])
def test_all_saved_dates_become_final_when_emoncms_is_heard(site: Site, answer: str) -> None:
    """After any answer from EmonCMS, even a failure, no block on disk is dated by this computer's wrong clock."""
    site.time.wrong = 40.0
    site.emoncms.away = True
    for _ in range(3):
        site.read(5)
        site.delivery.attempt()
        site.delivery.save(now=True)
    site.emoncms.away = False
    site.emoncms.out_of_order = answer == "502"
    site.delivery.attempt()
    site.restart()
    site.emoncms.out_of_order = False
    site.deliver()
    assert sorted(set(site.arrived)) == dates(1001, 15)
    assert kwh_error(site.account) == 0


def test_a_stop_in_doubt_leaves_it_to_the_next_run(site: Site) -> None:
    """SIGTERM leaves no time to wait for a server that goes on applying: rows in doubt are saved, not sent."""
    site.read(20)
    site.emoncms.failures.append(Failure(5, later=True))
    site.delivery.attempt()
    posts = len(site.emoncms.posts)
    finished = Thread(target=lambda: None)
    finished.start()
    site.delivery.finish(finished)
    site.delivery.run(lambda: None)
    assert len(site.emoncms.posts) == posts
    site.restart()
    site.deliver()
    assert sorted(set(site.arrived)) == dates(1001, 20)
    assert kwh_error(site.account) == 0


def test_a_row_that_is_rejected_alone_is_dropped_with_the_servers_words(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that is rejected alone is dropped and logged; all rows before and after it arrive, and energy is exact."""
    site.account.reject = lambda _node, inputs: inputs["w"] == 4
    site.read(9)
    site.deliver()
    assert sorted(set(site.arrived)) == [row for row in dates(1001, 9) if row[1] != 4]
    assert kwh_error(site.account) == 0
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "this row is rejected" in line
    assert '{"w":4,"also":1}' in line


@pytest.mark.parametrize("at_once", [1, 30])
def test_rows_are_kept_while_emoncms_takes_none(site: Site, at_once: int, caplog: pytest.LogCaptureFixture) -> None:
    """If EmonCMS rejects ten rows in succession, it takes none: all are kept, and it is tried every five minutes."""
    site.account.reject = lambda _node, _inputs: True
    waits = []
    for _ in range(3 * MOST_REJECTED // at_once):
        site.read(at_once)
        waits.append(site.delivery.attempt())
    assert waits[-1] == 300.0
    assert "rejects every row" in caplog.text
    site.account.reject = lambda _node, _inputs: False
    site.deliver()
    assert sorted(set(site.arrived)) == dates(1001, 3 * MOST_REJECTED)
    assert site.arrived == sorted(site.arrived)
    assert kwh_error(site.account) == 0


def test_a_row_that_kills_php_blocks_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A row that EmonCMS shows, but that kills PHP at every post, counts as applied after MOST_REPEATED more posts."""
    site.read(5)
    site.emoncms.dead_rows.add(dates(1001, 5)[2][0])
    waits = site.deliver()
    assert len(waits) == MOST_REPEATED + 2
    assert site.arrived == [row for row in dates(1001, 5) if row[1] != 3]
    assert "which is skipped" in caplog.text


def test_the_end_of_an_outage_counts_the_rows_of_an_earlier_run(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that started during an outage also says how many rows waited for its end."""
    caplog.set_level("INFO")
    site.read(3)
    site.emoncms.away = True
    site.delivery.attempt()
    site.delivery.save(now=True)
    site.restart()
    site.delivery.attempt()
    site.emoncms.away = False
    site.deliver()
    assert "; 3 rows waited and are being delivered" in caplog.messages[-1]


def test_waits_double_and_begin_anew(site: Site) -> None:
    """While EmonCMS is away the waits are 1, 2, 4 ... 60 s; after a successful post they begin at 1 s again."""
    site.read()
    site.emoncms.away = True
    assert [site.delivery.attempt() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    site.emoncms.away = False
    site.deliver()
    site.emoncms.away = True
    site.read()
    assert site.delivery.attempt() == 1


def test_a_wrong_key_is_tried_every_five_minutes(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown key is logged once, as an ERROR, and tried again every five minutes; the rows wait."""
    site.emoncms.locked_out = True
    site.read()
    assert [site.delivery.attempt() for _ in range(3)] == [300.0] * 3
    assert [record.getMessage() for record in caplog.records] == ["EmonCMS: wrong key"]
    site.emoncms.locked_out = False
    site.deliver()
    assert site.arrived == dates(1001, 1)


def test_an_interval_gathers_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With EMONCMS_INTERVAL_S=10 all new rows are posted every ten seconds; a failure waits that long too."""
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)
    site = Site(tmp_path, interval=10.0)
    site.read()
    assert site.delivery.attempt() == 10.0
    site.read(10)
    assert site.delivery.attempt() == 10.0
    assert [len(post) for post in site.emoncms.posts] == [1, 10]
    site.emoncms.away = True
    site.read()
    assert site.delivery.attempt() == 10.0


def test_the_last_readings_are_posted_without_waiting(tmp_path: Path) -> None:
    """At the end of the process rows that wait for the interval are posted at once, or else saved."""
    site = Site(tmp_path, interval=3600.0)
    thread = Thread(target=site.delivery.run, args=(lambda: None,), daemon=True)
    site.read()
    thread.start()
    while not site.account.rows:
        thread.join(0.001)
    site.read(4)
    site.delivery.finish(thread)
    assert not thread.is_alive()
    assert site.arrived == dates(1001, 5)
    assert not (tmp_path / "stream.sqlite").exists()
    site.restart()
    site.read()
    site.emoncms.away = True
    site.delivery.finish(thread)
    site.restart()
    assert len(site.backlog) == 1


def test_status_says_what_waits(site: Site) -> None:
    """STATUS= shows how many rows wait and any trouble, and neither when all is well."""
    assert site.delivery.status() == "nothing is waiting"
    site.read(3)
    assert site.delivery.status() == "3 rows waiting"
    site.emoncms.away = True
    site.delivery.attempt()
    site.time.now += 120
    assert site.delivery.status() == "3 rows waiting; EmonCMS failing for 2 min: away"


def test_inverters_rows_go_out_in_order_of_date(site: Site) -> None:
    """Reports come in the order of the gateway's list, but are posted in order of date."""
    rows = [Row(date, {f"{serial}_wNow": Decimal(1)}) for serial, date in ((7, 300), (8, 100), (9, 200))]
    site.delivery.append(rows)
    site.deliver()
    assert [row.date for row in site.emoncms.posts[0]] == [100, 200, 300]
