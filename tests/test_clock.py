"""The Pi's wall clock jumps: the daemons as processes, with clocks that a test moves."""

import time
from pathlib import Path

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.clocks import Clocks, said_at
from tests.conftest import StartDaemon
from tests.daemons import Daemon
from tests.meter import AWAY, NUMBER, QUICK, Meter, held, restart

HOUR = 3600


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """Return the daemons' clocks."""
    return Clocks(tmp_path / "clocks")


@pytest.fixture
def one(daemon: StartDaemon, clocks: Clocks, envoy: SimulatedEnvoy) -> Daemon:
    """Start the stream daemon with these clocks and wait until it reads."""
    made = daemon("stream", QUICK | clocks.environment, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    return made


def reboot(one: Daemon, envoy: SimulatedEnvoy, clocks: Clocks, jump: int = 0, *, power_cut: bool = False) -> None:
    """Let the machine boot, and its wall clock jump meanwhile."""
    if power_cut:
        one.kill()
    else:
        assert one.terminate()[0] == 0
    envoy.wait_for(lambda: envoy.open_streams == 0)
    clocks.reboot()
    clocks.jump(jump)
    one.environment |= clocks.environment
    one.start()


def moved(meter: Meter) -> list[float]:
    """Wait for all, and return how many seconds later than it was read each reading is dated."""
    meter.wait_for(len(meter.sent))
    assert meter.arrived() == list(range(1, len(meter.sent) + 1))
    return [row.time - meter.sent[int(row.inputs[NUMBER]) - 1] for row in meter.emoncms.rows]


def hours_ahead(line: str) -> int:
    """Return how far the clock is ahead that dated this line of the log just now."""
    return round((said_at(line) - time.time()) / HOUR)


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR], ids=["forth", "back"])
def test_a_jump_moves_no_row(one: Daemon, clocks: Clocks, meter: Meter, jump: int) -> None:
    """Before, during and after an outage the wall clock jumps: each reading is dated when it was read."""
    meter.send(3)
    clocks.jump(jump)
    meter.send(3)
    meter.wait_for(6)
    meter.emoncms.fault = AWAY
    meter.send(5)
    held(one, 5)
    assert hours_ahead(one.wait_for_line("WARNING EmonCMS: ").string) == jump / HOUR
    clocks.jump(-2 * jump)
    meter.send(5)
    held(one, 10)
    meter.emoncms.fault = None
    line = one.wait_for_line(r"INFO EmonCMS: back after \d s; 10 rows waited")
    assert hours_ahead(line.string) == -jump / HOUR
    clocks.jump(jump)
    meter.send(3)
    meter.all_arrived()


def test_a_clock_shared_with_emoncms_moves_no_row(one: Daemon, clocks: Clocks, meter: Meter) -> None:
    """On a Pi that runs EmonCMS too, its clock jumps as well: what waited is dated by the clock that it shows then."""
    meter.emoncms.fault = AWAY
    for hours in (5, -10, 8):
        meter.send(3)
        clocks.jump(hours * HOUR)
        meter.emoncms.clock_offset += hours * HOUR
    held(one, 9)
    meter.emoncms.fault = None
    meter.send(3)
    meter.all_arrived()


def test_a_jump_between_two_runs_moves_no_row(one: Daemon, clocks: Clocks, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """Within a boot rows keep their dates across SIGTERM and SIGKILL, however often the wall clock jumps meanwhile."""
    meter.emoncms.fault = AWAY
    meter.send(5)
    held(one, 5)
    clocks.jump(5 * HOUR)
    restart(one, envoy)
    meter.send(5)
    held(one, 10)
    clocks.jump(-10 * HOUR)
    restart(one, envoy)
    held(one, 10)
    clocks.jump(5 * HOUR)
    restart(one, envoy, kill=True)
    clocks.jump(5 * HOUR)
    meter.send(5)
    held(one, 15)
    meter.emoncms.fault = None
    meter.all_arrived()


@pytest.mark.parametrize("jump", [0, 5 * HOUR, -5 * HOUR], ids=["right", "forth", "back"])
def test_a_reboot_moves_rows_by_what_the_clock_is_wrong(
    one: Daemon, clocks: Clocks, envoy: SimulatedEnvoy, meter: Meter, jump: int
) -> None:
    """Across a reboot the wall clock alone can date rows: they move by its error, all alike, and never into the future.

    When it is set right later, they stay where they are.
    """
    meter.emoncms.fault = AWAY
    meter.send(4, 0.4)
    held(one, 4)
    reboot(one, envoy, clocks, jump)
    held(one, 4)
    up = time.time()
    envoy.wait_for_stream()
    meter.send(3)
    held(one, 7)
    clocks.jump(-jump)
    restart(one, envoy)
    meter.send(3)
    meter.emoncms.fault = None
    errors = moved(meter)
    old, new = errors[:4], errors[4:]
    assert max(map(abs, new)) < 1.2
    assert max(old) - min(old) < 1.2
    if jump < 0:
        newest = meter.emoncms.rows[3].time
        assert meter.sent[3] - 1.2 < newest < up + 1.2
    else:
        assert -jump - 1.2 < min(old) <= max(old) < -jump + 1.2


def test_a_post_under_way_at_a_reboot_is_not_doubled(
    one: Daemon, clocks: Clocks, envoy: SimulatedEnvoy, meter: Meter
) -> None:
    """What EmonCMS had applied before the power went is recognised after it, though the monotonic clock is another."""
    meter.emoncms.fault = AWAY
    meter.send(12)
    held(one, 12)
    restart(one, envoy)
    meter.emoncms.fail_next(Fault("hang", applied=None))
    meter.emoncms.fault = None
    meter.wait_for(12)
    reboot(one, envoy, clocks, power_cut=True)
    meter.emoncms.release()
    envoy.wait_for_stream()
    meter.send(3)
    meter.all_arrived()


def test_reports_keep_their_dates(
    daemon: StartDaemon, clocks: Clocks, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """Inverters' rows keep their own dates across an outage, a reboot and jumps; each changed report arrives once."""
    dates = [int(time.time()) - 900 + 100 * number for number in range(4)]

    def publish(date: int) -> None:
        envoy.inverters = [
            {"serialNumber": "1001", "lastReportDate": date, "lastReportWatts": 1, "maxReportWatts": 2},
        ]

    publish(dates[0])
    emoncms.fault = AWAY
    one = daemon("inverters", QUICK | clocks.environment, INVERTERS_INTERVAL_S=1)
    held(one, 1)
    clocks.jump(5 * HOUR)
    publish(dates[1])
    held(one, 2)
    reboot(one, envoy, clocks, -10 * HOUR)
    publish(dates[2])
    held(one, 3)
    clocks.jump(5 * HOUR)
    emoncms.fault = None
    publish(dates[3])
    emoncms.wait_for(lambda: len(emoncms.rows) >= 4)
    assert [row.time for row in emoncms.rows] == dates
