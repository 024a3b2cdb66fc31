"""Daemons that stop, are killed, start again, or meet a full disk: nothing is lost except what a kill may cost."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import AnswersLate, Cuts, HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.clocks import Clocks
from tests.conftest import StartDaemon, until
from tests.daemons import altered
from tests.ledger import kwh_error
from tests.meter import AWAY, QUICK, Meter, restart, stream, wait_for_waiting_rows


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a small disk and returns its path."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        directory = tmp_path / f"disk{len(mounted)}"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("only root may mount a small disk")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=True)


def test_sigterm_loses_nothing(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """Rows that wait at SIGTERM, even the newest, arrive after the next start, and then the file is deleted."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(40)
    wait_for_waiting_rows(one, 40)
    for _ in range(2):
        restart(one, envoy)
        assert (one.state / "stream.sqlite").exists()
        one.wait_for_line(r"INFO \d+ rows of an earlier run waiting to be delivered")
        meter.send(10)
        wait_for_waiting_rows(one, len(meter.sent))
    meter.emoncms.fault = None
    meter.all_arrived()
    assert one.terminate()[0] == 0
    assert not (one.state / "stream.sqlite").exists()


def test_the_last_reading_before_sigterm_is_posted(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """At SIGTERM, rows that wait for EMONCMS_INTERVAL_S are posted at once and together, whatever else comes in."""
    one = stream(daemon, envoy, EMONCMS_INTERVAL_S=3600)
    meter.send(1)
    meter.wait_for(1)
    meter.send(20)
    wait_for_waiting_rows(one, 20)
    requests = meter.emoncms.requests
    envoy.emit_raw("".join(f"data: {meter.event()}\n\n" for _ in range(3)).encode())
    code, took = one.terminate()
    assert (code, took < 2.0) == (0, True)
    assert meter.emoncms.requests == requests + 1
    assert set(range(1, 22)) <= set(meter.arrived())


@pytest.mark.parametrize("fault", [AnswersLate(), HoldsUp(), Cuts(applied=7)])
def test_a_post_under_way_at_the_end_is_asked_for(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, fault: AnswersLate | HoldsUp | Cuts
) -> None:
    """If EmonCMS did not answer a post, the next run asks what was applied, goes on after it, and energy is exact."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    wait_for_waiting_rows(one, 30)
    restart(one, envoy)
    meter.emoncms.fail_next(fault)
    meter.emoncms.fault = None
    until(lambda: not meter.emoncms.next_faults, 20)  # the post has met it
    restart(one, envoy, kill=True)
    meter.emoncms.release()
    meter.send(3)
    meter.all_arrived()
    assert kwh_error(meter.emoncms.account) == 0


def test_a_kill_costs_at_most_a_minute(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """Rows that were saved before a SIGKILL arrive; only newer ones may be lost."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    wait_for_waiting_rows(one, 30)
    restart(one, envoy)
    meter.send(10)
    wait_for_waiting_rows(one, 40)
    restart(one, envoy, kill=True)
    meter.emoncms.fault = None
    meter.send(5)
    meter.wait_for(35)
    assert set(range(1, 41)) - set(meter.arrived()) <= set(range(31, 41))


@pytest.mark.parametrize("jump", [5 * 3600, -5 * 3600], ids=["forth", "back"])
def test_the_computers_clock_may_jump(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path, jump: int
) -> None:
    """If EmonCMS has answered since the start, no jump of the computer's clock changes a row's date, nor a restart."""
    clocks = Clocks(tmp_path / "clocks")
    one = daemon("stream", QUICK | clocks.environment, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(3)
    clocks.jump(jump)
    meter.send(3)
    meter.wait_for(6)
    meter.emoncms.fault = AWAY
    meter.send(5)
    wait_for_waiting_rows(one, 5)
    clocks.jump(-2 * jump)
    restart(one, envoy)
    wait_for_waiting_rows(one, 5)
    meter.emoncms.fault = None
    meter.send(3)
    meter.all_arrived()


def test_reports_keep_their_dates(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Each changed report arrives with its own date, through an outage, a restart, a kill and a cut post."""
    now = int(time.time())
    expected: set[tuple[str, int]] = set()

    def publish(date: int) -> None:
        envoy.inverters = [
            {"serialNumber": serial, "lastReportDate": date + shift, "lastReportWatts": 1, "maxReportWatts": 2}
            for shift, serial in enumerate(("1001", "1002", "1003"))
        ]
        expected.update((unit["serialNumber"], unit["lastReportDate"]) for unit in envoy.inverters)

    def arrived() -> list[tuple[str, int]]:
        return [(next(iter(row.inputs)).partition("_")[0], row.time) for row in list(emoncms.rows)]

    publish(now - 900)
    emoncms.fault = AWAY
    one = daemon("inverters", QUICK, INVERTERS_INTERVAL_S=1)
    wait_for_waiting_rows(one, 3)
    publish(now - 600)
    wait_for_waiting_rows(one, 6)
    assert one.terminate()[0] == 0
    one.start()
    emoncms.fault = None
    emoncms.fail_next(Cuts(applied=2))
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    one.kill()
    publish(now - 300)
    one.start()
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    for serial in ("1001", "1002", "1003"):
        dates = [date for name, date in arrived() if name == serial]
        assert dates == sorted(dates)


def test_a_disk_that_takes_nothing_is_logged_once(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, small_disk: Callable[[str], Path]
) -> None:
    """On a full disk the daemon keeps rows in memory, logs that once, and delivers all of them."""
    disk = small_disk("size=16k")
    meter.emoncms.fault = AWAY
    saving = altered(disk.parent / "saving", "import envoy2emon.emoncms.backlog as b\nb.SAVE_AFTER_S = 0.0\n")
    one = daemon("stream", QUICK | saving | {"STATE_DIRECTORY": str(disk)}, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(330, 0.005)
    one.wait_for_line("WARNING the backlog cannot be saved .*: rows wait in memory only", 15)
    meter.emoncms.fault = None
    meter.all_arrived()
    assert len([line for line in one.lines if "cannot be saved" in line]) == 1
    assert one.process.poll() is None
