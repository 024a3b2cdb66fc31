"""The backlog: waiting rows are kept in blocks, in memory and on disk, within bounds."""

import logging
import random
import re
import sqlite3
import sys
import tracemalloc
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms import backlog as module
from envoy2emon.emoncms.backlog import BLOCK_ROWS, SAVE_AFTER_S, Backlog, Block
from envoy2emon.emoncms.disk import Disk
from envoy2emon.rows import Row, Undated
from tests.clocks import EPOCH, Time

NAMES = [f"prod_ph-{phase}_key{number}" for phase in "abc" for number in range(12)]
DIGITS = st.decimals(-(10**9), 10**9, places=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a daemon's backlog file."""
    return tmp_path / "state" / "stream.sqlite"


def made(path: Path | None, time: Time | None = None, hours: float = 24) -> Backlog:
    """Make a backlog whose clock only the test moves."""
    time = time or Time()
    return Backlog(Disk(path), hours * 3600, time, time.wall)


def row(second: int) -> Undated:
    """Make a row whose watts are its second."""
    return Undated(second, {"w": Decimal(second)})


def saved(path: Path, *seconds: int, by: float | None = EPOCH) -> Backlog:
    """Make a backlog, append rows and save each as a block of its own, by EmonCMS's clock or, None, by this one's."""
    backlog = made(path)
    for second in seconds:
        backlog.append([row(second)])
        backlog.save(by, now=True)
    return backlog


def drained(backlog: Backlog) -> list[Row]:
    """Take and return all waiting rows, as the delivery does."""
    rows = []
    while len(backlog):
        block = backlog.oldest(0)
        assert block
        backlog.fix_dates(block, lambda moment: int(moment + EPOCH))
        rows += block.rows()
        backlog.done(block)
    return rows


def expected(*seconds: int) -> list[Row]:
    """Return the rows of these seconds, dated."""
    return [Row(int(EPOCH) + second, {"w": Decimal(second)}) for second in seconds]


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), DIGITS, min_size=1), min_size=1))
def test_digits_survive_packing(inputs: list[dict[str, Decimal]]) -> None:
    """Unpacking returns what was packed, to the digit."""
    block = Block([Row(7, each) for each in inputs], 0.0, 1)
    block.pack()
    assert [str(each.inputs) for each in block.rows()] == [str(each) for each in inputs]


def test_what_waits_is_saved_and_comes_back(path: Path) -> None:
    """Rows are saved after half a minute, or at once at the end; the file is deleted once they are delivered.

    What EmonCMS takes sooner is never written to disk, because SD cards wear out. Dates are by EmonCMS's clock, or by
    this computer's if EmonCMS has not answered.
    """
    time = Time(wrong=99.0)
    backlog = made(path, time)
    backlog.append([row(0)])
    assert drained(backlog) == expected(0)
    backlog.append([row(1)])
    backlog.save(EPOCH)
    assert not path.exists()
    time.now += SAVE_AFTER_S
    backlog.append([row(2)])
    backlog.save(EPOCH)
    backlog.append([row(3)])
    assert drained(made(path)) == expected(1, 2)
    assert not path.exists()
    saved(path, 4, by=None)
    assert drained(made(path)) == expected(4)


def test_blocks_come_back_in_the_order_in_which_they_came(path: Path) -> None:
    """Blocks of several runs keep their order even if their dates overlap, as inverters' do; each is sorted by date."""
    for dates in ([264], [324, 84], [100]):
        backlog = made(path)
        backlog.append([Row(date, {"x": Decimal(1)}) for date in dates])
        backlog.save(EPOCH, now=True)
    assert [row.date for row in drained(made(path))] == [264, 84, 324, 100]


def test_rows_that_are_put_back_go_first(path: Path) -> None:
    """Rows that are put back are delivered before all others, even after a restart."""
    backlog = made(path)
    backlog.append(expected(5, 6))
    backlog.save(EPOCH, now=True)
    backlog.put_back(expected(3, 4))
    backlog.append(expected(7))
    backlog.save(EPOCH, now=True)
    assert drained(made(path)) == expected(3, 4, 5, 6, 7)
    assert not list(path.parent.iterdir())


def test_hours_are_hours(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BACKLOG_HOURS limits how long rows wait, not how many there are; losses are logged once an hour.

    A block that is dropped while it is being posted takes no other one with it.
    """
    time = Time()
    backlog = made(path, time, hours=1)
    under_way = None
    for number in range(36):
        time.now += 300
        backlog.append([row(number)] * 50)
        under_way = under_way or backlog.oldest(0)
        backlog.save(EPOCH)
    assert under_way
    backlog.done(under_way)
    assert len(backlog) == len(made(path)) + 50 == 13 * 50
    losses = [re.findall(r"backlog is full .*: its oldest rows are lost \((\d+)\)", line) for line in caplog.messages]
    assert losses == [["50"], ["600"]]


def test_bytes_are_bounded_whatever_the_digits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit in bytes, here 256 KiB, also bounds memory and disk: beyond it the oldest rows are dropped."""
    most = 2**18
    monkeypatch.setattr(module, "MOST_BYTES", most)
    time, numbers = Time(), random.Random(7)
    backlog = made(path, time)
    tracemalloc.start()
    try:
        for _ in range(15):
            for _ in range(BLOCK_ROWS):
                time.now += 1
                backlog.append([Undated(time.now, {name: Decimal(numbers.randrange(10**39)) for name in NAMES})])
            backlog.save(EPOCH)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * most < path.stat().st_size < 1.2 * most
    assert grown < 1.3 * most
    assert 2 * BLOCK_ROWS < len(backlog) < 10 * BLOCK_ROWS
    assert drained(backlog)[-1].date == int(EPOCH + time.now)


def test_a_disk_in_trouble_is_logged_once_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While nothing can be saved, rows wait in memory; that is logged once, and so is its end.

    SQLite is imported only when needed: while Python is being upgraded, it may be gone.
    """
    caplog.set_level(logging.INFO)
    path.parent.write_text("a file where the directory should be")
    backlog = saved(path, 1, 2)
    path.parent.unlink()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sqlite3", None)
        backlog.save(EPOCH, now=True)
    backlog.save(EPOCH, now=True)
    backlog.append([row(3)])
    backlog.save(EPOCH, now=True)
    begin, end = caplog.messages
    assert "cannot be saved" in begin
    assert "saved to" in end
    assert drained(made(path)) == expected(1, 2, 3)


def test_without_a_directory_rows_wait_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    """A user without a home has no state directory: that is logged once, and rows wait in memory."""
    backlog = made(None)
    backlog.append([row(1)])
    backlog.save(EPOCH, now=True)
    backlog.save(EPOCH, now=True)
    assert len(caplog.records) == 1
    assert drained(backlog) == expected(1)


def test_what_a_disk_did_not_delete_is_deleted_later(path: Path, tmp_path: Path) -> None:
    """Rows delivered while the disk was failing are deleted from it later, so they do not come back."""
    backlog = saved(path, 1)
    path.parent.rename(tmp_path / "away")
    path.parent.write_text("a file where the directory should be")
    drained(backlog)
    path.parent.unlink()
    (tmp_path / "away").rename(path.parent)
    backlog.save(EPOCH)
    assert not path.exists()


def test_a_full_disk_does_not_bring_rows_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing can be deleted from the file because the disk is full, the file is removed with its last block."""
    backlog = saved(path, 1)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", Mock(side_effect=full))
        drained(backlog)
    assert not list(path.parent.iterdir())


def test_a_file_that_is_damaged_meanwhile_is_made_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rows of a damaged file are still in memory, and are saved again to a new file."""
    backlog = saved(path, 1, 2)
    path.write_bytes(b"damaged")
    backlog.append([row(3)])
    for _ in range(2):
        backlog.save(EPOCH, now=True)
    assert "cannot be read" in caplog.text
    assert drained(made(path)) == expected(1, 2, 3)


def test_any_damage_is_set_aside_or_harmless(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever byte of a saved backlog is flipped, the next run starts, logs any loss of rows, and saves again."""
    saved(path, 1, 2)
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA page_size = 512")
        file.execute("VACUUM")
    good, whole = path.read_bytes(), Disk(path).load()
    assert len(whole) == 2
    for place in range(len(good)):
        for leftover in path.parent.iterdir():
            leftover.unlink()
        bad = bytearray(good)
        bad[place] ^= 0xFF
        path.write_bytes(bad)
        caplog.clear()
        loaded = Disk(path).load()
        assert loaded == whole or (loaded, len(caplog.records)) == ([], 1)
        if place % 100 == 0:  # not every time, because a disk is slow
            assert drained(saved(path, 3))[-1:] == expected(3)


def of_version_1_0() -> bytes:
    """Return a backlog file of version 1.0, which had another layout."""
    with closing(sqlite3.connect(":memory:")) as file:
        file.execute(f"PRAGMA application_id = {0x65326501}")
        file.execute("CREATE TABLE rows (first INTEGER PRIMARY KEY, count INTEGER, shift REAL, packed BLOB)")
        return file.serialize()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"not a database", "not a database"), (of_version_1_0(), "another version's")]
)
def test_a_file_that_is_not_ours_is_set_aside(
    path: Path, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no backlog of this version is renamed, the new name is logged, and a new file takes its place."""
    path.parent.mkdir()
    path.write_bytes(content)
    saved(path, 1)
    (aside,) = set(path.parent.iterdir()) - {path}
    assert re.search(rf"cannot be read \(.*{reason}.*\): it was renamed {aside.name}", caplog.text)
    assert aside.read_bytes() == content
    assert drained(made(path)) == expected(1)
