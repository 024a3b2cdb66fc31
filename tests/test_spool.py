"""The spool: what is saved comes back, and a bad file or disk harms nobody."""

import logging
import shutil
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms.dates import Flight, Progress
from envoy2emon.emoncms.group import Group
from envoy2emon.rows import Row
from envoy2emon.emoncms.spool import Spool

HOUR_S = 3600.0


def row(at: float, value: str = "54.740") -> Row:
    """Return a row of that time."""
    return Row(at, "Envoy-S", {"prod_ph-a_wNow": Decimal(value), "net_ph-b_wNow": Decimal("-0.0")})


def spool(directory: Path, boot: str | None = "boot", wall: float = 1e9, name: str = "stream.sqlite") -> Spool:
    """Return a spool of that boot; the wall clock is `wall` seconds ahead of the monotonic one."""
    return Spool(directory / name, boot, lambda: wall)


def save(directory: Path, *rows: Row, boot: str | None = "boot", wall: float = 1e9, delivered: int = 0) -> None:
    """Save a group of rows from number 0 on, as a process that is killed then."""
    one = spool(directory, boot, wall)
    assert one.save([Group.pack(0, rows)], Progress(delivered))
    one.close()


def times(groups: list[Group]) -> list[float]:
    """Return the rows' times."""
    return [row.at for group in groups for row in group.rows()]


def names(directory: Path) -> list[str]:
    """Return what lies in the directory."""
    return sorted(path.name for path in directory.iterdir())


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    """Times, node and digits survive, and so does the progress with a post whose fate is unclear."""
    rows = [row(100.125, "54.740"), row(101.0, "-1E+2"), row(101.9, "0.00")]
    first = spool(tmp_path)
    assert first.save([Group.pack(7, rows[:2]), Group.pack(9, rows[2:])], Progress(8, Flight(10, 102.5)))
    groups, progress = spool(tmp_path).load(200.0)
    back = [row for group in groups for row in group.rows()]
    assert back == rows
    assert [str(row.inputs["prod_ph-a_wNow"]) for row in back] == ["54.740", "-1E+2", "0.00"]
    assert progress == Progress(8, Flight(10, 102.5))
    assert [group.first for group in groups] == [7, 9]


def test_delivered_groups_leave_the_file(tmp_path: Path) -> None:
    """What is delivered is not loaded again, a group of which a part is delivered is."""
    one = spool(tmp_path)
    one.save([Group.pack(0, [row(1.0), row(2.0)]), Group.pack(2, [row(3.0), row(4.0)])], Progress(0))
    one.save([], Progress(3))
    groups, progress = spool(tmp_path).load(9.0)
    assert (times(groups), progress.delivered) == ([3.0, 4.0], 3)


def test_there_is_a_file_only_while_rows_wait(tmp_path: Path) -> None:
    """Loading and clearing create nothing, and clearing removes the file."""
    one = spool(tmp_path)
    one.load(0.0)
    one.clear()
    assert names(tmp_path) == []
    one.save([Group.pack(0, [row(1.0)])], Progress(0))
    assert names(tmp_path) == ["stream.sqlite"]
    one.clear()
    assert names(tmp_path) == []


@given(wall=st.floats(-1e9, 2e9), now=st.floats(200, 1e6))
def test_within_a_boot_the_wall_clock_moves_no_row(
    tmp_path_factory: pytest.TempPathFactory, wall: float, now: float
) -> None:
    """However the Pi's clock jumps between saving and loading, rows of this boot keep their monotonic times."""
    directory = tmp_path_factory.mktemp("spool")
    save(directory, row(100.0), row(101.0))
    assert times(spool(directory, wall=wall).load(now)[0]) == [100.0, 101.0]


def test_after_a_reboot_the_wall_clock_dates_the_rows(tmp_path: Path) -> None:
    """A reboot sets the monotonic clock to 0: rows keep their distance from now by the wall clock."""
    save(tmp_path, row(5000.0), row(5001.0), wall=1e9)
    # 100 s after the last row, 30 s after the boot
    groups, _ = spool(tmp_path, "next boot", 1e9 + 5101 - 30).load(30.0)
    assert times(groups) == [-71.0, -70.0]


def test_after_a_reboot_the_flight_moves_with_the_rows(tmp_path: Path) -> None:
    """What was sent before a reboot can still be recognised after it."""
    one = spool(tmp_path)
    one.save([Group.pack(0, [row(5000.0)])], Progress(0, Flight(1, 5000.5)))
    groups, progress = spool(tmp_path, "next boot", 1e9 + 5000).load(50.0)
    assert times(groups) == [0.0]
    assert progress.flight == Flight(1, 0.5, bridged=True)


def test_no_row_comes_back_from_the_future(tmp_path: Path) -> None:
    """If the wall clock went back across a reboot, rows keep their distances and the newest is of now."""
    save(tmp_path, row(5000.0), row(5001.0))
    groups, _ = spool(tmp_path, "next boot", 1e9 - 8 * HOUR_S).load(30.0)
    assert times(groups) == [29.0, 30.0]


def test_dates_found_after_a_reboot_stay(tmp_path: Path) -> None:
    """If the wall clock jumps and the daemon is restarted once more, rows stay where the first start had put them."""
    save(tmp_path, row(5000.0))
    first, _ = spool(tmp_path, "next boot", 1e9 + 5000).load(30.0)
    second, _ = spool(tmp_path, "next boot", 1e9 + 5000 + 3 * HOUR_S).load(60.0)
    assert times(first) == times(second) == [0.0]


def test_reports_keep_their_dates_across_boots(tmp_path: Path) -> None:
    """Inverter rows are in epoch seconds, which neither boots nor clocks change."""
    save(tmp_path, row(1.7e9), boot=None)
    assert times(spool(tmp_path, None, -5.0).load(30.0)[0]) == [1.7e9]


def foreign(path: Path) -> None:
    """Put another program's file in its place."""
    path.unlink()
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE photos (name TEXT)")
    file.close()


def truncated(path: Path) -> None:
    """Cut the end off."""
    path.write_bytes(path.read_bytes()[:5000])


def flipped(path: Path) -> None:
    """Damage a group's data."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x78\x9c")  # where zlib's data begin
    data[at + 20 : at + 40] = bytes(20)
    path.write_bytes(data)


def without_a_group(path: Path) -> None:
    """Take rows out of the middle."""
    with sqlite3.connect(path) as file:
        file.execute("DELETE FROM rows WHERE first = 100")
    file.close()


def without_tables(path: Path) -> None:
    """Take a table out."""
    with sqlite3.connect(path) as file:
        file.execute("DROP TABLE rows")
    file.close()


DAMAGES = {
    "text": lambda path: path.write_text("not a database\n" * 999),
    "foreign": foreign,
    "truncated": truncated,
    "flipped": flipped,
    "without a group": without_a_group,
    "without tables": without_tables,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_file_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    """A file that is damaged or another program's gets a new name, is said once, and a new file takes its place."""
    path = tmp_path / "stream.sqlite"
    one = spool(tmp_path)
    one.save(
        [Group.pack(100 * n, [row(float(n * 100 + i), f"{n}.{i}") for i in range(100)]) for n in range(3)], Progress(0)
    )
    one.close()
    damage(path)
    before = path.read_bytes()
    again = spool(tmp_path)
    assert again.load(9.0) == ([], Progress(0))
    assert names(tmp_path) == ["stream.damaged-1"]
    assert (tmp_path / "stream.damaged-1").read_bytes() == before
    assert again.save([Group.pack(0, [row(1.0)])], Progress(0))
    again.close()
    assert times(spool(tmp_path).load(9.0)[0]) == [1.0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "it is now stream.damaged-1" in caplog.text


def test_two_bad_files_have_two_names(tmp_path: Path) -> None:
    """What was set aside earlier is not written over."""
    for number in (1, 2):
        (tmp_path / "stream.sqlite").write_text(f"bad file {number}" * 99)
        spool(tmp_path).load(0.0)
    assert names(tmp_path) == ["stream.damaged-1", "stream.damaged-2"]


def test_an_empty_file_will_do(tmp_path: Path) -> None:
    """A power cut can leave a file of no length, which is none that anyone misses."""
    (tmp_path / "stream.sqlite").touch()
    one = spool(tmp_path)
    assert one.load(0.0) == ([], Progress(0))
    assert one.save([Group.pack(0, [row(1.0)])], Progress(0))
    assert names(tmp_path) == ["stream.sqlite"]


def test_a_file_that_goes_bad_later_is_set_aside_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage that shows while the daemon runs costs nothing: the next save has a new file."""
    one = spool(tmp_path)
    one.save([Group.pack(0, [row(1.0)])], Progress(0))
    one.close()
    (tmp_path / "stream.sqlite").write_text("no database any more" * 999)
    assert not one.save([Group.pack(1, [row(2.0)])], Progress(0))
    assert not one.holds_rows
    assert one.save([Group.pack(0, [row(1.0)]), Group.pack(1, [row(2.0)])], Progress(0))
    assert names(tmp_path) == ["stream.damaged-1", "stream.sqlite"]
    assert len(caplog.records) == 1


def test_a_full_disk_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full rows wait in memory; when there is room they are saved, and both is said once."""
    caplog.set_level(logging.INFO)
    connect = sqlite3.connect

    def small(*arguments: object, **options: object) -> sqlite3.Connection:
        file: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload]
        file.execute("PRAGMA max_page_count = 4")
        return file

    one = spool(tmp_path)
    big = Group.pack(0, [row(float(n), str(n**7)) for n in range(3000)])
    monkeypatch.setattr(sqlite3, "connect", small)
    assert not one.save([big], Progress(0))
    assert not one.save([big], Progress(0))
    monkeypatch.undo()
    assert one.save([big], Progress(0))
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"the backlog cannot be saved to {tmp_path}/stream.sqlite",
        f"the backlog is saved to {tmp_path}/stream.sqlite again",
    ]
    assert "database or disk is full" in caplog.text


def test_no_directory_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a state directory, or with one that cannot be made, rows wait in memory, and that is said once."""
    (tmp_path / "file").touch()
    for one in (Spool(None, "boot", lambda: 0.0), spool(tmp_path / "file")):
        caplog.clear()
        assert one.load(0.0) == ([], Progress(0))
        assert [one.save([Group.pack(0, [row(1.0)])], Progress(0)) for _ in range(3)] == [False] * 3
        assert len(caplog.records) == 1
        one.clear()


def test_a_file_that_cannot_be_moved_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk a bad file stays where it is; it is set aside when that is possible."""
    bad = tmp_path / "stream.sqlite"
    bad.write_text("no database" * 99)
    before = bad.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    one = spool(tmp_path)
    monkeypatch.setattr(Path, "rename", refuse)
    assert one.load(0.0) == ([], Progress(0))
    assert not one.save([Group.pack(0, [row(1.0)])], Progress(0))
    assert bad.read_bytes() == before
    assert len(caplog.records) == 1
    monkeypatch.undo()
    assert one.save([Group.pack(0, [row(1.0)])], Progress(0))
    assert (tmp_path / "stream.damaged-1").read_bytes() == before


def test_rows_of_an_earlier_boot_survive_a_read_only_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are loaded though the file cannot be brought to this boot's times; later all of them get a new file."""
    save(tmp_path, row(5000.0))
    one = spool(tmp_path, "next boot", 1e9 + 5000)
    other = sqlite3.connect(tmp_path / "stream.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # nobody else can write now
    groups, _ = one.load(30.0)
    other.close()
    assert times(groups) == [0.0]
    assert len(caplog.records) == 1
    assert one.save(groups, Progress(0))
    one.close()
    assert times(spool(tmp_path, "next boot").load(99.0)[0]) == [0.0]


def test_a_kill_in_the_middle_of_a_save_costs_that_save_only(tmp_path: Path) -> None:
    """A transaction that was cut off is rolled back: the file is as it was before."""
    save(tmp_path, row(1.0))
    file = sqlite3.connect(tmp_path / "stream.sqlite", isolation_level=None)
    file.execute("PRAGMA cache_size = 1")  # spill: the half of it stands in the file
    file.execute("BEGIN IMMEDIATE")
    file.execute("DELETE FROM rows")
    for number in range(50):
        file.execute("INSERT INTO rows VALUES (?, 1, 0, zeroblob(9000))", (number + 9,))
    copy = tmp_path / "after the kill"
    copy.mkdir()
    for path in (tmp_path / "stream.sqlite", tmp_path / "stream.sqlite-journal"):
        shutil.copy(path, copy)
    file.close()
    assert times(spool(copy).load(9.0)[0]) == [1.0]
