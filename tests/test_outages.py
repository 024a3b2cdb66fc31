"""EmonCMS fails in every way, with daemons as processes on sockets: nothing is lost, no energy is counted twice."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from envoy2emon.demo.emoncms import HoldsUp
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.conftest import StartDaemon
from tests.daemons import Daemon, altered
from tests.emoncms import FAULTS
from tests.faultproxy import FaultProxy
from tests.ledger import kwh_error
from tests.meter import AWAY, NUMBER, QUICK, Meter, restart, stream, wait_for_waiting_rows

MIB = 1024 * 1024
# The timeouts for EmonCMS allow for a busy Raspberry Pi; these tests shorten them.
IMPATIENT = "import envoy2emon.emoncms.client as client\nclient.web.CONNECT_S = client.ANSWER_TIMEOUT_S = 0.5\n"


def troubles(one: Daemon) -> list[str]:
    """Return the log messages about EmonCMS."""
    return [line.split(" ", 2)[2] for line in one.lines if " EmonCMS: " in line]


def test_while_emoncms_answers_nothing_is_written(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """While EmonCMS answers, no byte goes to the disk, no backlog file is made, and memory stays within 64 MiB."""
    one = stream(daemon, envoy)
    meter.send(5)
    meter.wait_for(5)
    before = one.written()[0]
    meter.send(150, 0.01)
    meter.all_arrived()
    assert one.written()[0] == before
    assert not (one.state / "stream.sqlite").exists()
    assert one.memory()[1] <= 64 * MIB


@pytest.mark.parametrize("name", FAULTS)
def test_away_in_every_way(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path, name: str) -> None:
    """Whatever EmonCMS answers, rows are kept, two lines are logged, and then all arrive, dated when they were read."""
    meter.emoncms.clock_offset = -5 * 3600
    one = daemon("stream", QUICK | altered(tmp_path / "impatient", IMPATIENT), STREAM_KEYS="wNow,frequency")
    envoy.wait_for_stream()
    meter.send(3)
    meter.wait_for(3)
    meter.emoncms.fault = FAULTS[name]
    meter.send(12)
    one.wait_for_line("(WARNING|ERROR) EmonCMS: ")
    meter.emoncms.fault = None
    meter.emoncms.release()
    if name == "unauthorized":
        restart(one, envoy)  # as after a change of the key
    else:
        one.wait_for_line(r"INFO EmonCMS: back after \d+ s; \d+ rows? waited")
        assert len(troubles(one)) == 2
    meter.send(3)
    meter.all_arrived()
    assert kwh_error(meter.emoncms.account) == 0


@pytest.mark.parametrize("way", ["refuse", "reset", "stall"])
def test_away_on_the_network(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, way: str) -> None:
    """If connections to EmonCMS are refused, reset or stalled, rows are kept and arrive in order, rightly dated."""
    port = urlsplit(meter.emoncms.url).port or 0
    with FaultProxy("127.0.0.1", port) as proxy:
        one = stream(daemon, envoy, EMONCMS_URL=f"http://127.0.0.1:{proxy.port}/emoncms")
        meter.send(3)
        meter.wait_for(3)
        getattr(proxy, way)()
        if way == "reset":
            proxy.cut()
        meter.send(12)
        one.wait_for_notify(r"^STATUS=.*\b1[1-3] rows waiting", 15)  # one may be under way, or one more gone astray
        if way == "stall":
            proxy.cut()
        proxy.pass_through()
        meter.send(3)
        meter.all_arrived()


def test_a_post_that_is_held_up_costs_no_energy(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """A post that php-fpm holds up for ten seconds is applied afterwards with its own dates; the energy is exact."""
    stream(daemon, envoy)
    meter.send(3, 1.0)
    meter.emoncms.fail_next(HoldsUp(10.0))
    meter.send(11, 1.0)
    meter.send(2, 1.0)
    meter.all_arrived()
    assert kwh_error(meter.emoncms.account) == 0


def test_a_bad_row_is_dropped_alone(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """A row that EmonCMS rejects is logged as an ERROR with the server's words; the rows around it arrive."""
    meter.emoncms.account.reject = lambda _, inputs: inputs[NUMBER] == 7
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(20)
    wait_for_waiting_rows(one, 20)
    meter.emoncms.fault = None
    meter.emoncms.wait_for(lambda: meter.arrived()[-1:] == [20], 20)
    assert set(meter.arrived()) == set(range(1, 21)) - {7}
    one.wait_for_line(
        r"ERROR EmonCMS: rejects a row \(.*this row is rejected.*\), which is dropped: .*frequency\":7[,}]"
    )
    assert len([line for line in one.lines if " ERROR " in line]) == 1
