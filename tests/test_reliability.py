"""Nothing lost, nothing doubled: the daemons as processes, their neighbours on sockets."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from envoy2emon.backlog import Backlog
from envoy2emon.bursts import Arrival
from envoy2emon.courier import Courier
from envoy2emon.dates import ByAge
from envoy2emon.delivery import Delivery
from envoy2emon.emoncms import EmonCMS
from envoy2emon.inputs import Selection
from envoy2emon.readings import parse_event
from envoy2emon.simulator import SimulatedEnvoy
from envoy2emon.simulator_site import THREE_PHASE_EVENT
from envoy2emon.spool import Spool
from envoy2emon.standin import Fault, StandInEmonCMS
from envoy2emon.stream import Stream
from tests.conftest import StartDaemon, until
from tests.daemons import Daemon, altered, skip_or_fail
from tests.emoncms import FAULTS
from tests.faultproxy import FaultProxy
from tests.meter import AWAY, NUMBER, QUICK, Meter, held, restart, stream

MIB = 1024 * 1024


def troubles(one: Daemon) -> list[str]:
    """Return what the journal heard of EmonCMS."""
    return [line.split(" ", 2)[2] for line in one.lines if " EmonCMS: " in line]


def test_while_emoncms_answers_nothing_is_written(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """No byte goes to a disk, no file is made, one connection is enough, and a restart changes nothing of that."""
    one = stream(daemon, envoy)
    meter.send(5)
    meter.wait_for(5)
    before = one.written()[0]
    meter.send(150, 0.01)
    meter.wait_for(155)
    assert one.written()[0] == before
    assert list(one.state.iterdir()) == []
    assert meter.emoncms.connections == 1
    restart(one, envoy)
    meter.send(5)
    meter.all_arrived()
    assert list(one.state.iterdir()) == []
    assert one.memory()[1] <= 64 * MIB


# The others differ only in words that the daemon reads: tests/test_delivery.py has them all.
@pytest.mark.parametrize("name", ["502", "fatal error after two rows", "cut after applying", "empty", "unauthorized"])
def test_away_in_every_way(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, name: str) -> None:
    """Rows are kept, whatever EmonCMS answers; two lines tell of it; then all arrive, dated when they were read."""
    fault = FAULTS[name]
    meter.emoncms.clock_offset = -5 * 3600
    one = stream(daemon, envoy)
    meter.send(3)
    meter.wait_for(3)
    meter.emoncms.fault = fault
    meter.send(12)
    if name == "unauthorized":
        one.wait_for_line(r"ERROR EmonCMS: .*EMONCMS_APIKEY")
        held(one, 12)
        meter.emoncms.fault = None
        restart(one, envoy)  # as after a change of the key
    else:
        one.wait_for_line("WARNING EmonCMS: ")
        meter.emoncms.fault = None
        one.wait_for_line(r"INFO EmonCMS: back after \d+ s; \d+ rows waited")
        assert len(troubles(one)) == 2
    meter.send(3)
    meter.wait_for(18)
    arrived = Counter(meter.arrived())
    assert list(arrived) == list(range(1, 19))
    doubled = [number for number, times in arrived.items() if times > 1]
    assert len(doubled) <= (1 if fault.applied != 0 else 0)


@pytest.mark.parametrize("way", ["refuse", "reset", "stall"])
def test_away_on_the_network(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, way: str) -> None:
    """Refused, reset or silent: readings go on being received, and all arrive once, in order, rightly dated."""
    port = urlsplit(meter.emoncms.url).port or 0
    with FaultProxy("127.0.0.1", port) as proxy:
        one = stream(daemon, envoy, EMONCMS_URL=f"http://127.0.0.1:{proxy.port}/emoncms")
        meter.send(3)
        meter.wait_for(3)
        getattr(proxy, way)()
        if way == "reset":
            proxy.cut()
        meter.send(12)
        held(one, 12)
        if way == "stall":
            proxy.cut()
        proxy.pass_through()
        meter.send(3)
        meter.all_arrived()


# EmonCMS's timeouts are for a Raspberry Pi that is busy.
IMPATIENT = """
import envoy2emon.exchange as exchange
exchange.CONNECT_TIMEOUT_S = exchange.ANSWER_TIMEOUT_S = 0.5
"""


def test_one_fault_after_the_other(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path) -> None:
    """Errors, silence, cuts: after each all arrives, in order, and once but for the newest row that was applied."""
    one = daemon("stream", QUICK | altered(tmp_path / "impatient", IMPATIENT), STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    names = ["500", "cut", "fatal error", "hang after applying"]
    for name in names:
        meter.emoncms.fault = FAULTS[name]
        one.notifications.clear()
        meter.send(5)
        one.wait_for_notify(r"backlog 5, for \d+ s: ")
        meter.emoncms.fault = None
        meter.emoncms.release()
        meter.wait_for(len(meter.sent))
    arrived = meter.arrived()
    assert arrived == sorted(arrived)
    assert set(arrived) == set(range(1, 5 * len(names) + 1))
    doubled = [number for number, times in Counter(arrived).items() if times > 1]
    assert doubled in ([], [16])  # posted alone, when only the last fault let anything in


WHERE = """
import socket
ask = socket.getaddrinfo
def getaddrinfo(host, port, *rest, **more):
    if host == "emoncms.test":
        with open({path!r}) as file:
            host, _, port = file.read().partition(":")
        if not host:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return ask(host, port, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def test_away_without_a_trace(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path, full: str
) -> None:
    """EmonCMS's name is unknown, then its machine does not answer: said once; then all arrive, once and in order."""
    where = tmp_path / "where"
    where.touch()
    code = WHERE.format(path=str(where)) + IMPATIENT
    url = "http://emoncms.test/emoncms"
    one = daemon("stream", QUICK | altered(tmp_path / "resolver", code), STREAM_KEYS="wNow,frequency", EMONCMS_URL=url)
    envoy.wait_for_stream()
    meter.send(5)
    one.wait_for_line("WARNING EmonCMS: .* has a name that cannot be resolved")
    where.write_text(full)
    one.wait_for_notify("backlog 5, for .* does not answer within")
    where.write_text(urlsplit(meter.emoncms.url).netloc)
    one.wait_for_line(r"INFO EmonCMS: back after \d+ s; 5 rows waited")
    meter.send(3)
    meter.all_arrived()
    assert len(troubles(one)) == 2


def test_a_connection_that_is_closed_while_idle_is_no_trouble(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path
) -> None:
    """Whether it was closed before the post or as it went out: it goes again at once, and nobody hears of it."""
    meter.emoncms.idle_timeout = 0.1
    idle = altered(tmp_path / "idle", "import envoy2emon.exchange as exchange\nexchange.BUSY_S = 0.3\n")
    one = daemon("stream", QUICK | idle, STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(2, 0.5)
    meter.emoncms.idle_timeout = 5.0
    before = meter.emoncms.connections
    meter.send(1)
    meter.wait_for(3)
    assert meter.emoncms.connections == before + 1
    meter.send(2, 0.5)
    meter.wait_for(5)
    meter.emoncms.fail_next(Fault("cut"))
    meter.send(2, 0.5)
    meter.all_arrived()
    assert meter.emoncms.connections == before + 2
    assert meter.emoncms.rows[-1].arrived - meter.emoncms.rows[-2].arrived < 1.0  # the shortest wait
    assert troubles(one) == []


def test_an_answer_that_is_lost_on_a_busy_connection_is_no_trouble(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter
) -> None:
    """Whether a row follows, or none: it goes again soon, and nobody hears of it."""
    one = stream(daemon, envoy)
    meter.send(5)
    meter.wait_for(5)
    for count in (1, 3):
        meter.emoncms.fail_next(Fault("cut"))
        meter.send(count)
        meter.all_arrived()
    assert troubles(one) == []


def test_a_bad_row_is_dropped_alone(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """A row that EmonCMS rejects is an ERROR with the server's words; the rows around it arrive once."""
    meter.emoncms.account.reject = lambda _, inputs: inputs[NUMBER] == 7
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(20)
    held(one, 20)
    meter.emoncms.fault = None
    meter.emoncms.wait_for(lambda: meter.arrived()[-1:] == [20], 20)
    assert meter.arrived() == [number for number in range(1, 21) if number != 7]
    said = r'ERROR EmonCMS: rejects a row \(.*this row is rejected.*\), which is dropped: .*"prod_ph-a_frequency":7[,}]'
    one.wait_for_line(said)
    assert len([line for line in one.lines if " ERROR " in line]) == 1


def test_a_backlog_goes_before_what_is_new(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """While a long backlog is delivered new readings wait behind it, in batches of a hundred."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(330, 0.003)
    held(one, 330)
    requests = meter.emoncms.requests
    meter.emoncms.fault = None
    meter.send(20, 0.1)
    meter.all_arrived()
    assert meter.emoncms.requests - requests <= 4 + 20


def test_sigterm_loses_nothing(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """What waits at SIGTERM, what came a moment before, arrives after the next start, and the file goes."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(40)
    held(one, 40)
    for _ in range(2):
        restart(one, envoy)
        assert all(path.name.startswith("stream.sqlite") for path in one.state.iterdir())  # its journal too
        assert (one.state / "stream.sqlite").exists()
        one.wait_for_line(r"INFO \d+ rows of an earlier run wait to be delivered")
        meter.send(10)
        held(one, len(meter.sent))
    meter.emoncms.fault = None
    meter.all_arrived()
    assert one.terminate()[0] == 0
    assert list(one.state.iterdir()) == []


def test_what_is_held_at_sigterm_is_kept() -> None:
    """Readings that wait to be dated, since more may follow on their heels, become rows when the process ends."""
    backlog = Backlog(100, Spool(None, "boot", lambda: 0.0), lambda: 50.0)
    selection = Selection(("prod",), ("ph-a",), ("wNow",), Decimal(0), net_calculated=False)
    away = EmonCMS("http://127.0.0.1:9/emoncms", None)
    courier = Courier(backlog, Delivery(backlog, away, ByAge(), lambda: 50.0, lambda: 0.0), lambda: 50.0)
    main = Stream("Envoy-S", selection, courier, None, lambda _: None, lambda: 50.0)
    main.take(Arrival(50.0, tuple(parse_event(THREE_PHASE_EVENT, 50.0) for _ in range(3))))
    assert len(backlog) == 0
    main.close()
    assert [row.at for row in backlog] == [48.0, 49.0, 50.0]


def test_a_post_under_way_at_sigterm_is_not_doubled(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """EmonCMS applied the rows and is silent: the next run asks, and goes on after them."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    held(one, 30)
    meter.emoncms.fault = None
    meter.emoncms.fail_next(Fault("hang", applied=None))
    meter.wait_for(30)
    restart(one, envoy)
    meter.emoncms.release()
    meter.send(3)
    meter.all_arrived()


def test_a_kill_in_the_middle_of_delivering_doubles_nothing(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter
) -> None:
    """SIGKILL with a part of the backlog delivered and a post unanswered: nothing is lost, nothing comes twice."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(250, 0.003)
    held(one, 250)
    restart(one, envoy)  # by SIGTERM: all is on disk
    meter.emoncms.fail_next(AWAY, Fault("hang", applied=None))
    meter.emoncms.fault = None
    meter.wait_for(100)
    restart(one, envoy, kill=True)
    meter.emoncms.release()
    meter.send(3)
    meter.all_arrived()


def test_a_kill_costs_at_most_a_minute(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """What was saved before a SIGKILL arrives; what is younger than a minute may be lost, and nothing else."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    held(one, 30)
    restart(one, envoy)
    meter.send(10)
    held(one, 40)
    restart(one, envoy, kill=True)
    meter.emoncms.fault = None
    meter.send(5)
    meter.wait_for(35)
    assert set(range(1, 41)) - set(meter.arrived()) <= set(range(31, 41))


def test_beyond_the_bound_the_oldest_go(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """BACKLOG_HOURS bounds what is kept: the oldest go, and the journal says how many."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy, BACKLOG_HOURS="0.01")
    meter.send(50, 0.005)
    held(one, 36)
    one.wait_for_line(r"WARNING the backlog is full: the oldest \d+ rows are lost \(BACKLOG_HOURS\)", 15)
    meter.emoncms.fault = None
    meter.wait_for(36)
    assert meter.arrived() == list(range(15, 51))


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


def test_reports_survive_outage_and_restart(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """Each changed report arrives with its own date, though EmonCMS is away and the daemon is restarted and killed."""
    now = int(time.time())
    reports = {str(serial): [now - 900, serial, 295] for serial in range(1001, 1005)}
    expected: set[tuple[str, int, int]] = set()

    def publish() -> None:
        envoy.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": watts, "maxReportWatts": most}
            for serial, (date, watts, most) in reports.items()
        ]
        expected.update((serial, date, watts) for serial, (date, watts, _) in reports.items())

    def change(serial: str) -> None:
        reports[serial][0] += 100
        reports[serial][1] += 1
        publish()

    def arrived() -> list[tuple[str, int, int]]:
        return [
            (name.removesuffix("_wNow"), row.time, int(value))
            for row in list(emoncms.rows)
            for name, value in row.inputs.items()
            if name.endswith("_wNow")
        ]

    publish()
    emoncms.fault = AWAY
    one = daemon("inverters", QUICK, INVERTERS_INTERVAL_S=1)
    held(one, 4)
    change("1002")
    held(one, 5)
    assert one.terminate()[0] == 0
    change("1003")
    one.start()
    held(one, 6)
    emoncms.fault = None
    emoncms.fail_next(Fault("cut", applied=3))
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    one.kill()
    change("1001")
    one.start()
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    dates = dict.fromkeys(reports, 0)
    for serial, date, _ in arrived():
        assert date >= dates[serial]
        dates[serial] = date
