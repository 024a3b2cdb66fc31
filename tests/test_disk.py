"""The disk in trouble: full, read-only, frozen in the middle, missing, or with a bad spool on it.

The law of this file: the daemon runs on from memory, says so once, and no row is lost or doubled.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.conftest import StartDaemon, until
from tests.daemons import skip_or_fail
from tests.meter import AWAY, QUICK, Meter, held, restart, stream


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small disks."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        directory = tmp_path / f"disk{len(mounted)}"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            skip_or_fail("only root may mount a small disk", "REQUIRE_MOUNT")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=True)


def rows_saved(directory: Path) -> int:
    """Count the rows on a disk."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(directory / "stream.sqlite")) as file:
        return int(file.execute("SELECT sum(count) FROM rows").fetchone()[0] or 0)
    return 0


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Give a directory and let nothing be made or removed there (+i), or let it again (-i), as chattr(1) does."""
    directory = tmp_path / "frozen"
    directory.mkdir()

    def freeze(mode: str) -> Path:
        command = ["chattr", mode, str(directory)]
        if not shutil.which("chattr") or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            skip_or_fail("only root may freeze a directory (chattr +i)", "REQUIRE_MOUNT")
        return directory

    yield freeze
    subprocess.run(["chattr", "-i", str(directory)], check=False)


@pytest.mark.parametrize("options", ["size=12k", "ro"], ids=["full", "read-only"])
def test_a_disk_that_takes_nothing_is_said_once(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, small_disk: Callable[[str], Path], options: str
) -> None:
    """Full or read-only: the daemon runs on from memory, says so once, and delivers all."""
    disk = small_disk(options)
    meter.emoncms.fault = AWAY
    one = daemon("stream", QUICK | {"STATE_DIRECTORY": str(disk)}, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(330, 0.005)  # more than MOST_LOOSE rows: they are packed, and the next look saves them
    held(one, 330)
    one.wait_for_line("WARNING the backlog cannot be saved to .*: rows wait in memory only", 15)
    meter.emoncms.fault = None
    meter.all_arrived()
    assert len([line for line in one.lines if "cannot be saved" in line]) == 1
    assert one.process.poll() is None


def test_a_disk_that_turns_read_only_sends_nothing_again(
    daemon: StartDaemon,
    envoy: SimulatedEnvoy,
    meter: Meter,
    frozen: Callable[[str], Path],
) -> None:
    """What the disk could take no note of is asked for at the next start: all rows of the outage arrive once."""
    disk = frozen("-i")
    meter.emoncms.fault = AWAY
    one = daemon("stream", QUICK | {"STATE_DIRECTORY": str(disk)}, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(330, 0.003)
    held(one, 330)
    until(lambda: rows_saved(disk) > 0)
    frozen("+i")
    one.wait_for_notify("backlog 330, for [6-9] s", 15)  # a date may be off by a second, and so may another
    meter.send(3)
    meter.emoncms.fault = None
    meter.all_arrived()
    restart(one, envoy, kill=True)
    one.wait_for_line(r"INFO EmonCMS: has \d+ rows already of those that an earlier run saved", 15)
    meter.send(5)
    meter.all_arrived()


def test_without_a_state_directory_it_runs(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """No place for a spool: said once, at the end as well, and nothing else changes."""
    meter.emoncms.fault = AWAY
    one = daemon("stream", QUICK | {"STATE_DIRECTORY": "/dev/null/state"}, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(5)
    held(one, 5)
    meter.emoncms.fault = None
    meter.all_arrived()
    meter.emoncms.fault = AWAY
    meter.send(1)
    one.wait_for_line("WARNING EmonCMS")
    assert one.terminate()[0] == 0
    assert len([line for line in one.lines if "cannot be saved" in line]) == 1


@pytest.mark.parametrize("content", ["corrupt", "foreign"])
def test_a_bad_spool_is_set_aside(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, content: str) -> None:
    """A corrupt file, and another program's, gets a new name and keeps its bytes; the daemon works as ever."""
    one = stream(daemon, envoy)
    assert one.terminate()[0] == 0
    bad = one.state / "stream.sqlite"
    if content == "corrupt":
        bad.write_bytes(b"SQLite format 3\0" + os.urandom(9000))
    else:
        with sqlite3.connect(bad) as file:
            file.execute("CREATE TABLE photos (name TEXT)")
        file.close()
    before = bad.read_bytes()
    meter.emoncms.fault = AWAY
    one.start()
    one.wait_for_line(r"WARNING the saved backlog \S+ cannot be read .*: it is now stream.damaged-1")
    envoy.wait_for_stream()
    meter.send(5)
    held(one, 5)
    restart(one, envoy)
    meter.emoncms.fault = None
    meter.all_arrived()
    assert one.terminate()[0] == 0
    assert [(path.name, path.read_bytes()) for path in one.state.iterdir()] == [("stream.damaged-1", before)]
