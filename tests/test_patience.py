"""What the daemons do once in five minutes, and once an hour: as processes whose time runs faster.

The law of this file: each test watches at the sockets and in the journal for at least three times as long as the rule
says, and at its end the daemon goes on by itself.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.demo.emoncms import StandInEmonCMS
from tests.clocks import Clocks, said_at
from tests.conftest import StartDaemon
from tests.daemons import Daemon
from tests.faultproxy import FaultProxy
from tests.meter import AWAY, Meter

# How much faster a daemon's time runs: what it does once in so long it does once a second.
FIVE_MINUTES, HOUR = 300, 3600
# Sockets keep the true time, by which a stream may be silent for as long as these tests take.
SILENT = {"STREAM_TIMEOUT_S": 3600, "STREAM_KEYS": "wNow,frequency"}
KEPT = 108  # rows: more than one post, and 0.03 h


def waits(begun: Sequence[float]) -> list[float]:
    """Return the seconds of a daemon whose five minutes are a second between attempts that were seen at these times."""
    return [(later - earlier) * FIVE_MINUTES for earlier, later in pairwise(begun)]


def errors(one: Daemon) -> list[str]:
    """Return the ERROR lines in the journal."""
    return [line for line in one.lines if " ERROR " in line]


@pytest.mark.parametrize(
    ("command", "path", "names"),
    [
        ("stream", STREAM, "ENVOY_USER and ENVOY_PASSWORD"),
        ("inverters", INVERTERS, "ENVOY_INVERTERS_USER and ENVOY_INVERTERS_PASSWORD"),
    ],
    ids=["stream", "inverters"],
)
def test_a_login_that_the_envoy_refuses_is_tried_once_in_five_minutes(
    daemon: StartDaemon,
    envoy: SimulatedEnvoy,
    emoncms: StandInEmonCMS,
    tmp_path: Path,
    command: str,
    path: str,
    names: str,
) -> None:
    """One ERROR names the cure; when the Envoy takes the password again, readings go on by themselves."""
    password, envoy.password = envoy.password, "another"
    changes = {"ENVOY_INVERTERS_USER": "installer", "ENVOY_INVERTERS_PASSWORD": password}
    one = daemon(command, Clocks(tmp_path / "clocks", FIVE_MINUTES).environment, **changes)

    def begun() -> list[float]:
        # An attempt that is refused asks twice: what the challenge is, or with the last one, and in answer to it.
        return [request.at for request in list(envoy.requests) if request.path == path][::2]

    envoy.wait_for(lambda: len([request for request in envoy.requests if request.path == path]) >= 6)
    envoy.password = password
    if command == "stream":
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
    emoncms.wait_for(lambda: bool(emoncms.rows))
    one.wait_for_line(r"INFO Envoy: back after \d+ min")
    assert all(300 <= wait < 600 for wait in waits(begun()[:4])), waits(begun()[:4])
    assert len(errors(one)) == 1
    assert f"refuses user installer (401): are {names} right?" in errors(one)[0]


def test_a_key_that_emoncms_refuses_is_tried_once_in_five_minutes(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path
) -> None:
    """One ERROR names the cure, however many rows come; when the key is right, all arrive, in order and once."""
    key, meter.emoncms.key = meter.emoncms.key, "another"
    meter.emoncms.max_requests = 1  # each connection is a post
    with FaultProxy("127.0.0.1", urlsplit(meter.emoncms.url).port or 0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/emoncms"
        one = daemon("stream", Clocks(tmp_path / "clocks", FIVE_MINUTES).environment, EMONCMS_URL=url, **SILENT)
        envoy.wait_for_stream()
        meter.send(120, 0.01)
        proxy.wait_for(lambda: len(proxy.visits) >= 3 and proxy.visits[2].end < float("inf"))
        meter.emoncms.key = key
        meter.send(10)
        meter.wait_for(130)
        assert meter.arrived() == list(range(1, 131))
        assert all(300 <= wait < 600 for wait in waits(proxy.attempts[:4])), waits(proxy.attempts[:4])
        assert len(errors(one)) == 1
        assert "does not know EMONCMS_APIKEY (401): put the write key into .env" in errors(one)[0]


def test_rows_that_are_lost_are_said_once_an_hour(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter, tmp_path: Path
) -> None:
    """The first at once; the counts add up to the rows that never arrive, and the newest arrive, oldest first."""
    clocks = Clocks(tmp_path / "clocks", HOUR)
    meter.emoncms.fault = AWAY
    one = daemon("stream", clocks.environment, BACKLOG_HOURS=KEPT / 3600, **SILENT)
    envoy.wait_for_stream()

    def said() -> list[tuple[int, int]]:
        found = [line.partition(" rows are lost (BACKLOG_HOURS)") for line in one.lines]
        return [(said_at(line), int(line.rpartition(" ")[2])) for line, lost, _ in found if lost]

    meter.send(KEPT, 0.001)
    before = clocks.now()
    for count in (1, 50, 50, 50):
        meter.send(count, 0.002)
        one.wait_for(lambda: sum(lost for _, lost in said()) == len(meter.sent) - KEPT)
    times = [at for at, _ in said()]
    assert times[0] - before < HOUR / 2
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(HOUR <= gap < 2 * HOUR for gap in gaps), gaps
    meter.emoncms.fault = None
    meter.emoncms.wait_for(lambda: meter.arrived()[-1:] == [len(meter.sent)])
    assert meter.arrived() == list(range(len(meter.sent) - KEPT + 1, len(meter.sent) + 1))
