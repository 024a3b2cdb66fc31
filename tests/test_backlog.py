"""The backlog: order, bounds, and when the disk is written to."""

import logging
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.dates import Flight, Progress
from envoy2emon.emoncms.group import Group
from envoy2emon.rows import Row
from envoy2emon.emoncms.spool import Spool
from tests.daemons import PROJECT

MAY_COST_S = 60.0
TICK_S = 5.0
DAY_ROWS = 86_400
MIB = 1024 * 1024


class Clock:
    """A monotonic clock that stands."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands."""
    return Clock()


def backlog(clock: Clock, directory: Path | None, limit: int = DAY_ROWS) -> Backlog:
    """Return a backlog with its spool in the directory."""
    return Backlog(limit, Spool(directory and directory / "stream.sqlite", "boot", lambda: 1e9), clock)


def read(one: Backlog, clock: Clock, count: int) -> None:
    """Let a row come each second, and the main thread look at the backlog every five."""
    for _ in range(count):
        clock.now += 1
        one.append([Row(clock.now, "Envoy-S", {"a": Decimal(int(clock.now))})])
        if clock.now % TICK_S == 0:
            one.save()
            one.say_losses()


def times(one: Backlog) -> list[float]:
    """Return the times of the rows that wait."""
    return [row.at for row in one]


def test_rows_leave_oldest_first(clock: Clock, tmp_path: Path) -> None:
    """Rows are given out in the order in which they came, also across loose, packed and saved ones."""
    one = backlog(clock, tmp_path)
    read(one, clock, 500)
    taken: list[float] = []
    while len(one):
        first, rows, _ = one.oldest(70)
        taken += [row.at for row in rows]
        one.done(first + len(rows))
        read(one, clock, 3 if len(taken) < 600 else 0)
    assert taken == [1001.0 + n for n in range(len(taken))]
    assert len(taken) > 500


def test_the_oldest_go_beyond_the_limit(clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the limit the oldest rows go: said at once, and then once an hour, with how many."""
    one = backlog(clock, tmp_path, 1000)
    read(one, clock, 1000)
    assert caplog.messages == []
    read(one, clock, 3 * 3600 + 10)
    assert times(one) == [clock.now - 999 + n for n in range(1000)]
    assert one.lost == 3 * 3600 + 10
    counts = [int(re.search(r"\d+", line)[0]) for line in caplog.messages]  # type: ignore[index]
    assert len(counts) == 4
    assert counts[1:] == [3600] * 3
    assert set(times(one)[:960]) <= set(times(backlog(clock, tmp_path, 1000)))


def test_a_post_that_is_under_way_may_outgrow_the_limit(clock: Clock, tmp_path: Path) -> None:
    """If the rows of an unclear post go, what is left of them is still that post's."""
    one = backlog(clock, tmp_path, 100)
    read(one, clock, 100)
    one.sent(Flight(60, clock.now))
    read(one, clock, 40)
    first, rows, flight = one.oldest(100)
    assert (first, len(rows)) == (40, 20)
    assert flight
    read(one, clock, 20)
    first, rows, flight = one.oldest(100)
    assert (first, len(rows), flight) == (60, 100, None)


def test_nothing_is_written_while_rows_leave(clock: Clock, tmp_path: Path) -> None:
    """As long as EmonCMS takes rows within half a minute the directory stays empty."""
    one = backlog(clock, tmp_path)
    for _ in range(400):
        read(one, clock, 25)
        first, rows, _ = one.oldest(100)
        one.sent(Flight(first + len(rows), clock.now))
        assert list(tmp_path.iterdir()) == []
        one.done(first + len(rows))


@pytest.mark.parametrize("killed_after", [61, 64, 90, 127, 1000])
def test_a_kill_costs_less_than_a_minute(clock: Clock, tmp_path: Path, killed_after: int) -> None:
    """While EmonCMS is away all rows are on disk but those of the last 60 s, whenever the process dies."""
    one = backlog(clock, tmp_path)
    read(one, clock, killed_after)
    saved = times(backlog(clock, tmp_path))
    assert saved == times(one)[: len(saved)]
    assert clock.now - saved[-1] < MAY_COST_S
    assert clock.now - saved[-1] < 36  # as tight as it is


def test_closing_saves_all(clock: Clock, tmp_path: Path) -> None:
    """At SIGTERM all rows that wait are saved, and none may be sent any more."""
    one = backlog(clock, tmp_path)
    read(one, clock, 3)
    one.close()
    assert times(backlog(clock, tmp_path)) == times(one)
    assert not one.sent(Flight(1, clock.now))


def test_closing_without_rows_writes_nothing(clock: Clock, tmp_path: Path) -> None:
    """A restart while EmonCMS answers leaves no file."""
    one = backlog(clock, tmp_path)
    read(one, clock, 3)
    one.done(3)
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_with_the_last_row(clock: Clock, tmp_path: Path) -> None:
    """When all that was saved is delivered there is no file any more."""
    one = backlog(clock, tmp_path)
    read(one, clock, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["stream.sqlite"]
    one.done(100)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_of_a_post_leaves_all_of_it_on_disk(clock: Clock, tmp_path: Path) -> None:
    """What is under way while rows are on disk is on disk too: after a kill it can be asked for as a whole."""
    one = backlog(clock, tmp_path)
    read(one, clock, 40)  # 35 of them are saved
    one.sent(Flight(40, clock.now))
    first, rows, flight = backlog(clock, tmp_path).oldest(1)
    assert (first, [row.at for row in rows], flight) == (0, times(one), Flight(40, clock.now))


def test_a_restart_knows_what_is_delivered(clock: Clock, tmp_path: Path) -> None:
    """With the next post the disk learns how far the one before has come."""
    one = backlog(clock, tmp_path)
    read(one, clock, 100)
    one.sent(Flight(50, clock.now))
    one.done(50)
    one.sent(Flight(90, clock.now))
    again = backlog(clock, tmp_path)
    assert again.oldest(100)[0] == 50
    assert times(again) == times(one)


def test_without_a_disk_rows_wait_in_memory(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """No state directory: said once, and nothing is lost while the process lives."""
    one = backlog(clock, None)
    read(one, clock, 2000)
    assert len(times(one)) == 2000
    assert len(caplog.messages) == 1
    one.done(2000)
    assert len(one) == 0


def test_a_disk_that_comes_late_gets_all(clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When a disk can be written to at last it gets all rows that wait, the partly delivered group included."""
    caplog.set_level(logging.INFO)
    blocked = tmp_path / "state"
    blocked.touch()
    one = backlog(clock, blocked)
    read(one, clock, 500)
    one.done(100)
    blocked.unlink()
    read(one, clock, 40)
    assert len(caplog.messages) == 2
    saved = times(backlog(clock, blocked))
    assert saved == times(one)[: len(saved)]
    assert len(saved) >= 400


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep the file as a disk that takes nothing does: what is written to it fails."""
    other = sqlite3.connect(directory / "stream.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


def test_rows_of_an_earlier_boot_outlive_a_disk_in_trouble(clock: Clock, tmp_path: Path) -> None:
    """If the disk takes nothing just after a reboot, all rows that were loaded are saved as soon as it does."""
    one = backlog(clock, tmp_path)
    read(one, clock, 100)
    one.close()

    def rebooted() -> Backlog:
        return Backlog(DAY_ROWS, Spool(tmp_path / "stream.sqlite", "next boot", lambda: 1e9), clock)

    with locked(tmp_path):
        again = rebooted()
    read(again, clock, 40)
    assert len(again) == 140
    saved = times(rebooted())
    assert saved == times(again)[: len(saved)]
    assert len(saved) >= 100


def test_what_is_delivered_is_not_saved_for_another_time(clock: Clock, tmp_path: Path) -> None:
    """A file that cannot be brought up to date while rows leave goes: after a kill it would send them again."""
    one = backlog(clock, tmp_path)
    read(one, clock, 100)
    with locked(tmp_path):
        assert one.sent(Flight(50, clock.now))
        one.done(50)
        assert len(backlog(clock, tmp_path)) == 0
        assert one.sent(Flight(60, clock.now))
    one.done(60)
    one.save()
    saved = times(backlog(clock, tmp_path))
    assert saved == times(one)[: len(saved)]
    assert len(saved) >= 10


def test_a_file_that_was_spoiled_is_written_anew(clock: Clock, tmp_path: Path) -> None:
    """Though no new row comes, all rows that wait are on disk again by the next look."""
    one = backlog(clock, tmp_path)
    read(one, clock, 100)
    (tmp_path / "stream.sqlite").write_bytes(b"no database " * 1000)
    assert one.sent(Flight(50, clock.now))
    one.save()
    saved = times(backlog(clock, tmp_path))
    assert saved == times(one)[: len(saved)]
    assert len(saved) >= 60


class SlowDisk(Spool):
    """A spool whose disk takes its time: as long as `busy` is locked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "boot", lambda: 1e9)
        self.busy, self.writing = threading.Lock(), threading.Event()

    def save(self, groups: Iterable[Group], progress: Progress) -> bool:
        """Wait, and save."""
        self.writing.set()
        with self.busy:
            return super().save(groups, progress)


def test_a_slow_disk_keeps_no_reading_waiting(clock: Clock, tmp_path: Path) -> None:
    """While rows are being saved others are appended at once, and none of them is lost or saved twice."""
    disk = SlowDisk(tmp_path / "stream.sqlite")
    one = Backlog(DAY_ROWS, disk, clock)
    for _ in range(40):
        clock.now += 1
        one.append([Row(clock.now, "Envoy-S", {"a": Decimal(1)})])
    with disk.busy:
        saving = threading.Thread(target=one.save)
        saving.start()
        assert disk.writing.wait(10)
        read_meanwhile = threading.Thread(target=one.append, args=[[Row(clock.now + 1, "Envoy-S", {"a": Decimal(2)})]])
        read_meanwhile.start()
        read_meanwhile.join(10)
        assert not read_meanwhile.is_alive()
        assert one.oldest(100)[0] == 0
        assert not one.sent(Flight(1, clock.now), at_once=True)  # that would wait
        assert saving.is_alive()
    saving.join()
    one.save(now=True)
    assert times(backlog(clock, tmp_path)) == times(one) == [1001.0 + n for n in range(41)]


def test_what_is_on_disk_is_not_posted_in_passing(clock: Clock, tmp_path: Path) -> None:
    """The disk has to learn of it first, which takes its time."""
    one = backlog(clock, tmp_path)
    assert one.sent(Flight(0, clock.now), at_once=True)
    read(one, clock, 40)
    assert not one.sent(Flight(40, clock.now), at_once=True)
    assert one.sent(Flight(40, clock.now))


DAY = """
import random, sys
from decimal import Decimal
from pathlib import Path
import envoy2emon.reader, envoy2emon.stream, envoy2emon.emoncms, envoy2emon.live  # all that the daemon imports
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.rows import Row
from envoy2emon.emoncms.spool import Spool
now = 0.0
backlog = Backlog(86_400, Spool(Path(sys.argv[1]) / "stream.sqlite", "boot", lambda: 1e9), lambda: now)
means = {"wNow": 900, "rmsVoltage": 240, "rmsCurrent": 4, "pwrFactor": 0.8}
names = [f"{section}_ph-{phase}_{key}" for section in ("prod", "cons", "net") for phase in "abc" for key in means]
def number(name):
    mean = means[name.rpartition("_")[2]]
    return Decimal(f"{random.gauss(mean, mean / 9):.{2 if name.endswith('Factor') else 3}f}")
random.seed(1)
# A group is compressed by itself, so it does not matter that the next one may be of the same rows.
noise = [{name: number(name) for name in names} for _ in range(997)]
for second in range(1, 86_401):
    now = second + random.gauss(0, 0.02)
    backlog.append([Row(now, "Envoy-S", noise[second % 997])])
    if second % 5 == 0:
        backlog.save()
backlog.save(now=True)
del noise
assert len(backlog) == 86_400
print(sum(path.stat().st_size for path in Path(sys.argv[1]).iterdir()))
for _ in range(9):
    first, rows, _ = backlog.oldest(100)
    backlog.done(first + len(rows))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.timeout(120)
def test_a_day_fits(tmp_path: Path) -> None:
    """86 400 rows of 36 noisy inputs take at most 40 MB on disk, and the process at most 64 MB of memory."""
    script = [sys.executable, "-c", DAY, str(tmp_path)]
    disk, memory = subprocess.run(script, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    print(f"{int(disk) / 1e6:.1f} MB on disk, {int(memory) * 1024 / 1e6:.1f} MB of memory")
    assert int(disk) <= 40_000_000
    assert int(memory) * 1024 <= 64_000_000
