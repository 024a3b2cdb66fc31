"""EmonCMS fails, and daemons stop, are killed or meet a full disk meanwhile: nothing is lost or counted twice.

The daemons are processes on sockets. Each event carries its number in a phase's frequency.
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from envoy2emon.demo.emoncms import PHP_DOWN, REDIS_DOWN, Answers, Cuts, Failure, HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.clocks import Clocks
from tests.conftest import StartDaemon, until
from tests.daemons import QUICK, Daemon, altered
from tests.ledger import kwh_error, went_back

NUMBER = "prod_ph-a_frequency"
ALONE_S = 0.15  # an event sooner after the first one would be taken for a burst
# The timeouts for EmonCMS allow for a busy Raspberry Pi.
IMPATIENT = "import envoy2emon.emoncms.client as client\nclient.web.CONNECT_S = client.ANSWER_TIMEOUT_S = 0.5\n"
# In earnest rows are saved when they have waited for half a minute.
SAVES_AT_ONCE = "import envoy2emon.emoncms.backlog as backlog\nbacklog.SAVE_AFTER_S = 0.0\n"


class Meter:
    """Sends numbered events through a simulated gateway and knows which of them arrived."""

    def __init__(self, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
        self.envoy, self.emoncms = envoy, emoncms
        self.sent: list[float] = []  # wall clock

    def send(self, count: int, pace: float = 0.02) -> None:
        """Send events one by one."""
        pause = Event()
        for number in range(count):
            self.sent.append(time.time())
            self.envoy.emit(THREE_PHASE_EVENT.replace('"f":50.0', f'"f":{len(self.sent)}', 1))
            pause.wait(pace if number else ALONE_S)

    def wait_for(self, count: int) -> None:
        """Wait until `count` different events have arrived."""
        self.emoncms.wait_for(lambda: len({row.inputs[NUMBER] for row in self.emoncms.rows}) >= count, 20)

    def all_arrived(self) -> None:
        """Wait for all events; assert that dates never went back, each event has one date, energy is exact."""
        self.wait_for(len(self.sent))
        assert went_back(self.emoncms.rows) == 0
        dates: dict[int, int] = {}
        for row in self.emoncms.rows:
            number = int(row.inputs[NUMBER])
            assert dates.setdefault(number, row.time) == row.time
            assert -2.2 < row.time - self.emoncms.clock_offset - self.sent[number - 1] < 1.2
        assert kwh_error(self.emoncms.account) == 0


@pytest.fixture
def meter(envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> Meter:
    """Return the meter behind the simulated gateway."""
    return Meter(envoy, emoncms)


def stream(daemon: StartDaemon, envoy: SimulatedEnvoy, **environment: str) -> Daemon:
    """Start the stream daemon and wait until it reads the stream."""
    one = daemon("stream", QUICK | environment, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    return one


def restart(one: Daemon, envoy: SimulatedEnvoy, *, kill: bool = False) -> None:
    """End the daemon, start it again, and wait until it reads the stream."""
    if kill:
        one.kill()
    else:
        assert one.terminate() == 0
    envoy.wait_for(lambda: envoy.open_streams == 0)
    one.start()
    envoy.wait_for_stream()


def wait_for_waiting_rows(one: Daemon, count: int) -> None:
    """Wait until the daemon's status reports this many waiting rows."""
    one.wait_for_notify(rf"^STATUS=.*\b{count} rows? waiting", 15)


@pytest.mark.parametrize(
    "fault",
    [HoldsUp(), Answers(200, REDIS_DOWN.body, applied=2), Cuts(applied=None)],
    ids=["silent", "out of order", "cut"],
)
def test_away(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path, fault: Failure) -> None:
    """While EmonCMS fails rows are kept, two lines are logged, and then all arrive, dated when they were read."""
    meter.emoncms.clock_offset = -5 * 3600
    one = stream(daemon, envoy, **altered(tmp_path / "impatient", IMPATIENT))
    meter.send(3)
    meter.wait_for(3)
    meter.emoncms.fault = fault
    meter.send(12)
    one.wait_for_line("WARNING EmonCMS: ")
    meter.emoncms.fault = None
    meter.emoncms.release()
    one.wait_for_line(r"INFO EmonCMS: back after \d+ s; \d+ rows? waited")
    assert len([line for line in one.lines if " EmonCMS: " in line]) == 2
    meter.send(3)
    meter.all_arrived()


def test_a_post_that_is_held_up_costs_no_energy(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """A post that php-fpm holds up for ten seconds is applied afterwards with its own dates; the energy is exact."""
    stream(daemon, envoy)
    meter.send(3, 1.0)
    meter.emoncms.fail_next(HoldsUp(10.0))
    meter.send(13, 1.0)
    meter.all_arrived()


def test_a_bad_row_is_dropped_alone(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """A row that EmonCMS rejects is logged as an ERROR with the server's words; the rows around it arrive."""
    meter.emoncms.account.reject = lambda _, inputs: inputs[NUMBER] == 7
    meter.emoncms.fault = PHP_DOWN
    one = stream(daemon, envoy)
    meter.send(20)
    wait_for_waiting_rows(one, 20)
    meter.emoncms.fault = None
    meter.wait_for(19)
    one.wait_for_line(r"ERROR EmonCMS: rejects a row \(.*row is rejected.*\), which is dropped: .*frequency\":7[,}]")
    assert len([line for line in one.lines if " ERROR " in line]) == 1


@pytest.mark.parametrize("fault", [HoldsUp(), Cuts(3)], ids=["held up", "cut"])
def test_a_post_under_way_at_a_kill_is_asked_for(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, fault: Failure
) -> None:
    """If a run was killed before EmonCMS answered its post, the next run asks what was applied and goes on after it."""
    meter.emoncms.fault = PHP_DOWN
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


def test_a_restart_loses_nothing(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path) -> None:
    """Rows that wait at SIGTERM arrive after the next start, though the computer's clock jumps; the file is deleted."""
    clocks = Clocks(tmp_path / "clocks")
    one = stream(daemon, envoy, **clocks.environment)
    meter.send(3)
    meter.wait_for(3)
    meter.emoncms.fault = PHP_DOWN
    for jump in (5 * 3600, -10 * 3600):
        clocks.jump(jump)
        meter.send(10)
        wait_for_waiting_rows(one, len(meter.sent) - 3)
        restart(one, envoy)
        assert (one.state / "stream.sqlite").exists()
        one.wait_for_line(r"INFO \d+ rows of an earlier run waiting to be delivered")
    meter.emoncms.fault = None
    meter.send(3)
    meter.all_arrived()
    assert one.terminate() == 0
    assert not (one.state / "stream.sqlite").exists()


def test_a_kill_costs_only_what_was_not_saved(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path
) -> None:
    """Rows that were saved while they waited arrive even after a SIGKILL."""
    meter.emoncms.fault = PHP_DOWN
    one = stream(daemon, envoy, **altered(tmp_path / "saving", SAVES_AT_ONCE))
    meter.send(30)
    wait_for_waiting_rows(one, 30)  # rows are saved before they are counted
    restart(one, envoy, kill=True)
    meter.emoncms.fault = None
    meter.send(3)
    meter.all_arrived()


def test_reports_keep_their_dates(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path
) -> None:
    """Each inverter's reports arrive with their own dates, the older one first, after an outage, a kill and a stop."""
    newest = int(time.time())
    expected = [(serial, date) for date in (newest - 300, newest) for serial in ("1001", "1002")]
    emoncms.fault = PHP_DOWN

    def publish(date: int) -> None:
        envoy.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": 1, "maxReportWatts": 2}
            for serial in ("1001", "1002")
        ]

    publish(newest - 300)
    one = daemon("inverters", QUICK | altered(tmp_path / "saving", SAVES_AT_ONCE))
    wait_for_waiting_rows(one, 2)
    one.kill()
    one.environment = dict(QUICK)
    publish(newest)
    one.start()
    wait_for_waiting_rows(one, 4)
    assert one.terminate() == 0
    envoy.inverters = []
    emoncms.fault = None
    one.start()
    emoncms.wait_for(lambda: len(emoncms.rows) == 4, 20)
    assert [(next(iter(row.inputs)).partition("_")[0], row.time) for row in emoncms.rows] == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 16 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_logged_once(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, small_disk: Path, tmp_path: Path
) -> None:
    """On a full disk the daemon keeps rows in memory, logs that once, and delivers all of them."""
    meter.emoncms.fault = PHP_DOWN
    one = stream(daemon, envoy, **altered(tmp_path / "saving", SAVES_AT_ONCE), STATE_DIRECTORY=str(small_disk))
    meter.send(330, 0.005)
    one.wait_for_line("WARNING the backlog cannot be saved .*: rows wait in memory only", 15)
    meter.emoncms.fault = None
    meter.all_arrived()
    assert len([line for line in one.lines if "cannot be saved" in line]) == 1
