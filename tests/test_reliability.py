"""EmonCMS is away in every way, or idle, or rejects: nothing lost, nothing doubled, by processes on sockets."""

from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.emoncms import Fault
from tests.conftest import StartDaemon
from tests.daemons import Daemon, altered
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
