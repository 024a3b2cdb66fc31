"""The backlog: waiting rows are kept in blocks, in memory and on disk, within bounds."""

import logging
import random
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
from envoy2emon.emoncms.disk import Disk, pack, unpack
from envoy2emon.gateway.readings import PHASES
from envoy2emon.rows import Row, Undated, inputs_json
from tests.inprocess import EPOCH, Time

NAMES = [
    f"{section}_{phase}_{key}"
    for section in ("prod", "cons", "net")
    for phase in PHASES
    for key in ("wNow", "rmsVoltage", "rmsCurrent", "pwrFactor")
]

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


def drained(backlog: Backlog, ahead: float = EPOCH) -> list[Row]:
    """Take and return all waiting rows, as the delivery does."""
    rows = []
    while len(backlog):
        block = backlog.oldest(0)
        assert block
        backlog.fix_dates(block, lambda moment: int(moment + ahead))
        rows += block.rows()
        backlog.done(block)
    return rows


def expected(*seconds: int) -> list[Row]:
    """Return the rows of these seconds, dated."""
    return [Row(int(EPOCH) + second, {"w": Decimal(second)}) for second in seconds]


def test_rows_come_out_as_they_went_in(path: Path) -> None:
    """Rows come out in order, in blocks of up to 100, with every digit, whether or not they were packed."""
    backlog = made(path)
    for second in range(250):
        backlog.append([row(second)])
    assert len(backlog) == 250
    assert drained(backlog) == expected(*range(250))
    assert backlog.oldest(0) is None


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), DIGITS, min_size=1), min_size=1))
def test_digits_survive_packing(inputs: list[dict[str, Decimal]]) -> None:
    """Unpacking returns what was packed, to the digit."""
    block = Block([Row(7, each) for each in inputs], 0.0)
    block.pack()
    assert [str(each.inputs) for each in block.rows()] == [str(each) for each in inputs]


def test_nothing_is_written_while_emoncms_answers(path: Path) -> None:
    """Rows that are delivered within half a minute are never written to disk, because SD cards wear out."""
    time = Time()
    backlog = made(path, time)
    for second in range(100):
        time.now += 1
        backlog.append([row(second)])
        drained(backlog)
        backlog.save(EPOCH)
    assert not path.exists()


def test_what_waits_is_saved_and_comes_back(path: Path) -> None:
    """Rows are saved after half a minute, or at once at the end; the file is deleted once they are delivered.

    Their dates are by EmonCMS's clock, or by this computer's if EmonCMS has not answered.
    """
    time = Time()
    backlog = made(path, time)
    backlog.append([row(1)])
    backlog.save(EPOCH)
    assert not path.exists()
    time.now += SAVE_AFTER_S
    backlog.append([row(2)])
    backlog.save(EPOCH)
    backlog.append([row(3)])
    assert drained(made(path, time), 0) == expected(1, 2)
    assert not path.exists()
    backlog = made(path, time)
    backlog.append([row(4)])
    backlog.save(None, now=True)
    time.wrong = 99.0
    assert drained(made(path, time), 0) == expected(4)


def test_rows_of_two_runs_are_in_order(path: Path) -> None:
    """Rows that earlier runs left are delivered first."""
    for second in (1, 2, 3):
        backlog = made(path)
        backlog.append([row(second)])
        backlog.save(EPOCH, now=True)
    assert drained(made(path)) == expected(1, 2, 3)


@pytest.mark.parametrize("saved", [False, True])
def test_rows_that_are_put_back_go_first(path: Path, *, saved: bool) -> None:
    """Rows that are put back are delivered before all others, even after a restart."""
    backlog = made(path)
    backlog.append(expected(5, 6))
    backlog.save(EPOCH, now=saved)
    backlog.put_back(expected(3, 4))
    backlog.append(expected(7))
    backlog.save(EPOCH, now=True)
    assert drained(made(path)) == expected(3, 4, 5, 6, 7)
    assert not path.exists()


def test_blocks_come_back_in_the_order_in_which_they_came(path: Path) -> None:
    """Blocks keep their order after a restart even if their dates overlap, as those of inverters do."""
    backlog = made(path)
    for rows in ([Row(264, {"x": Decimal(1)})], [Row(84, {"y": Decimal(1)}), Row(324, {"x": Decimal(2)})]):
        backlog.append(rows)
        backlog.save(EPOCH, now=True)
    assert [row.date for row in drained(made(path))] == [264, 84, 324]


def test_hours_are_hours(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BACKLOG_HOURS limits how long rows wait, not how many there are; losses are logged once an hour."""
    time = Time()
    backlog = made(path, time, hours=1)
    backlog.append([Row(second, {f"{second}_wNow": Decimal(0)}) for second in range(5000)])
    for _ in range(60 * 12):
        time.now += 5
        backlog.save(EPOCH)
    assert len(backlog) == 5000
    assert path.exists()
    for _ in range(100):
        time.now += 5
        backlog.append([Row(int(time.now), {"w": Decimal(0)})])
        backlog.save(EPOCH)
    assert len(backlog) == 100
    assert [record.getMessage() for record in caplog.records] == [
        "the backlog is full (BACKLOG_HOURS, or its size): its oldest 5000 rows are lost. Is EmonCMS down?"
    ]
    assert 100 - SAVE_AFTER_S / 5 <= len(made(path, time, hours=1)) <= 100


def test_a_poll_of_inverters_is_kept_however_short_the_backlog(path: Path) -> None:
    """Even BACKLOG_HOURS=0.001 loses no report that EmonCMS accepts at once."""
    backlog = made(path, hours=0.001)
    backlog.append([Row(9, {f"{serial}_wNow": Decimal(1)}) for serial in range(51)])
    backlog.save(EPOCH)
    assert len(backlog) == 51


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


def test_a_disk_in_trouble_is_logged_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk fails, rows wait in memory; the failure is logged once, and so is its end."""
    caplog.set_level(logging.INFO)
    (tmp_path / "state").write_text("a file where the directory should be")
    time = Time()
    backlog = made(tmp_path / "state" / "stream.sqlite", time)
    for second in range(3):
        backlog.append([row(second)])
        backlog.save(EPOCH, now=True)
    (tmp_path / "state").unlink()
    backlog.save(EPOCH, now=True)
    begin, end = (record.getMessage() for record in caplog.records)
    assert "cannot be saved" in begin
    assert "saved to" in end
    assert drained(made(tmp_path / "state" / "stream.sqlite", time), 0) == expected(0, 1, 2)


def test_a_python_that_is_being_upgraded_ends_no_daemon(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite is imported only when needed; if it is gone by then, rows wait in memory until it is back."""
    backlog = made(path)
    backlog.append([row(1)])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sqlite3", None)
        backlog.save(EPOCH, now=True)
    assert "cannot be saved" in caplog.text
    backlog.save(EPOCH, now=True)
    assert drained(made(path), 0) == expected(1)


def test_what_a_disk_did_not_delete_is_deleted_later(tmp_path: Path) -> None:
    """Rows delivered while the disk was failing are deleted from it later, so they do not come back."""
    path = tmp_path / "state" / "stream.sqlite"
    backlog = made(path)
    backlog.append([row(1)])
    backlog.save(EPOCH, now=True)
    path.parent.rename(tmp_path / "away")
    (tmp_path / "state").write_text("a file where the directory should be")
    drained(backlog)
    (tmp_path / "state").unlink()
    (tmp_path / "away").rename(path.parent)
    backlog.save(EPOCH)
    assert not path.exists()


def test_a_full_disk_does_not_bring_rows_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing can be deleted from the file because the disk is full, the file is removed with its last block."""
    backlog = made(path)
    backlog.append([row(1)])
    backlog.save(EPOCH, now=True)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", Mock(side_effect=full))
        drained(backlog)
    assert not path.exists()


@pytest.mark.parametrize("noticed_by", ["saving", "delivery"])
def test_a_file_that_is_damaged_meanwhile_is_made_anew(
    path: Path, caplog: pytest.LogCaptureFixture, noticed_by: str
) -> None:
    """The rows of a damaged file are still in memory, and are saved again to a new file."""
    backlog = made(path)
    for number in (1, 2):
        backlog.append([row(number)])
        backlog.save(EPOCH, now=True)
    path.write_bytes(b"damaged")
    if noticed_by == "saving":
        backlog.append([row(3)])
        backlog.save(EPOCH, now=True)
    else:
        block = backlog.oldest(0)
        assert block
        backlog.done(block)
    backlog.save(EPOCH, now=True)
    assert "cannot be read" in caplog.text
    assert drained(made(path), 0) == (expected(1, 2, 3) if noticed_by == "saving" else expected(2))


def test_without_a_directory_rows_wait_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    """A user without a home has no state directory: that is logged once, and rows wait in memory."""
    backlog = made(None)
    backlog.append([row(1)])
    backlog.save(EPOCH, now=True)
    backlog.save(EPOCH, now=True)
    assert len(caplog.records) == 1
    assert drained(backlog) == expected(1)


def small(path: Path) -> bytes:
    """Save a small backlog, in SQLite's smallest pages, and return its file's bytes."""
    backlog = made(path)
    backlog.append([row(1), row(2)])
    backlog.save(EPOCH, now=True)
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA page_size = 512")
        file.execute("VACUUM")
    return path.read_bytes()


def test_any_damage_is_set_aside_or_harmless(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever byte of a saved backlog is flipped, the next run starts, logs any loss of rows, and saves again."""
    good = small(path)
    for place in range(len(good)):
        for leftover in path.parent.iterdir():
            leftover.unlink()
        bad = bytearray(good)
        bad[place] ^= 0xFF
        path.write_bytes(bad)
        caplog.clear()
        backlog = made(path)
        assert len(backlog) == 2 or len(caplog.records) == 1
        if place % 100 == 0:  # not every time, because a disk is slow
            backlog.append([row(3)])
            backlog.save(EPOCH, now=True)
            assert drained(backlog)[-1:] == expected(3)


@pytest.mark.parametrize(
    "content",
    [b"not a database", b"SQLite format 3\0" + bytes(4096), b"\0" * 100],
    ids=["text", "a header alone", "zeros"],
)
def test_a_file_that_is_not_ours_is_set_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no backlog is renamed, the new name is logged, and a new file takes its place."""
    path.parent.mkdir()
    path.write_bytes(content)
    backlog = made(path)
    assert "cannot be read" in caplog.text
    (aside,) = path.parent.iterdir()
    assert aside.name in caplog.text
    assert aside.read_bytes() == content
    backlog.append([row(1)])
    backlog.save(EPOCH, now=True)
    assert drained(made(path), 0) == expected(1)


def test_a_backlog_of_version_1_0_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of version 1.0, which has another layout, is kept under a new name, and that is logged."""
    path.parent.mkdir()
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA application_id = {0x65326501}")
        file.execute("CREATE TABLE rows (first INTEGER PRIMARY KEY, count INTEGER, shift REAL, packed BLOB)")
    file.close()
    assert len(made(path)) == 0
    assert "another version's" in caplog.text
    assert len(list(path.parent.iterdir())) == 1


@given(st.binary(max_size=200) | st.lists(st.text(max_size=40)).map(pack))
def test_what_is_no_block_is_a_value_error(packed: bytes) -> None:
    """Whatever the packed bytes are, unpack() returns rows of inputs or raises ValueError."""
    try:
        lines = unpack(packed)
    except ValueError:
        return
    assert all(line.startswith("{") for line in lines)


def test_a_zip_bomb_is_no_block() -> None:
    """A block that unpacks to more bytes than rows can have counts as damaged."""
    with pytest.raises(ValueError, match="damaged"):
        unpack(pack([inputs_json({"w": Decimal(1)})] * 600_000))
