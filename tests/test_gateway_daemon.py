"""The daemons, as processes, and their gateway: after each fault readings resume by themselves."""

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy, make_token
from envoy2emon.demo.logins import STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests import fixtures
from tests.certificates import Certificate
from tests.conftest import StartDaemon
from tests.daemons import Daemon, altered
from tests.enlighten import Enlighten
from tests.faultproxy import FaultProxy
from tests.gateways import INFO, asked
from tests.test_gateway_client import ANSWERS

QUICK = {"WATCHDOG_USEC": "300000"}


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        yield envoy


@pytest.fixture
def proxy(envoy: SimulatedEnvoy) -> Iterator[FaultProxy]:
    """Serve a fault proxy in front of the gateway."""
    with FaultProxy(*envoy.address) as proxy:
        yield proxy


def reads(envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Wait until a stream is open, and check that its next event arrives complete."""

    def whole() -> int:
        return len([row for row in list(emoncms.rows) if len(row.inputs) == 36])

    count = whole()
    envoy.wait_for_stream(15)
    envoy.emit(THREE_PHASE_EVENT)
    emoncms.wait_for(lambda: whole() > count)


def errors(process: Daemon) -> list[str]:
    """Return the lines that report an ERROR."""
    return [line for line in process.lines if "ERROR" in line]


def test_upgrade_overnight(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """Both daemons keep reading a gateway that goes from 5.0.62 to 8.3, without a restart and with one login."""
    same = {"STATE_DIRECTORY": str(tmp_path / "state"), "WATCHDOG_USEC": "600000"}
    with Enlighten() as enlighten:
        stream = daemon("stream", same, **enlighten.settings())
        inverters = daemon("inverters", same, INVERTERS_INTERVAL_S=1, **enlighten.settings())
        reads(envoy, emoncms)
        emoncms.wait_for(lambda: len(emoncms.rows) == 13)
        envoy.upgrade("D8.3.6086")
        envoy.wait_for(lambda: envoy.open_streams == 0)
        reads(envoy, emoncms)
        stream.wait_for_line(f"INFO gateway: https://{envoy.host}, firmware D8.3.6086")
        inverters.wait_for_line("INFO gateway: back after")
        expiry = time.strftime("%Y-%m-%d", time.gmtime(time.time() + enlighten.lifetime))
        for process in (stream, inverters):
            process.wait_for_notify(f"STATUS=.*; token until {expiry}")
            assert errors(process) == []
        assert enlighten.logins == [200]
    assert stat.S_IMODE((tmp_path / "state" / "token.json").stat().st_mode) == 0o600


FAULTS: dict[str, tuple[Callable[[FaultProxy], None], str]] = {
    "refused": (lambda proxy: proxy.refuse(), "the stream has ended"),
    "reset": (lambda proxy: proxy.cut(reset=True), "closed the connection"),
    "cut in mid-event": (lambda proxy: proxy.cut(after=500), "closed the connection|has ended"),
    "stalled": (lambda proxy: proxy.stall(), "does not answer within 1 s"),
    "dripping": (lambda proxy: proxy.drip(5), "the stream has sent no event for 1 s"),
    "flooding": (lambda proxy: proxy.flood(), "the stream sends a line of more than 65536 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, proxy: FaultProxy, fault: str
) -> None:
    """Each fault of the connection is one WARNING, and readings resume when it is over."""
    happens, words = FAULTS[fault]
    envoy.chunked = False
    process = daemon("stream", ENVOY_HOST=f"http://{proxy.host}:{proxy.port}", STREAM_TIMEOUT_S=1)
    reads(envoy, emoncms)
    process.wait_for_line("INFO gateway: its meters: ")  # asked for once, after the first reading
    before = process.memory()[1]
    happens(proxy)
    envoy.emit(THREE_PHASE_EVENT)
    process.wait_for_line(f"WARNING gateway: .*({words})")
    proxy.pass_through()
    envoy.wait_for(lambda: envoy.open_streams == 0)
    reads(envoy, emoncms)
    process.wait_for_line(r"INFO gateway: back after \d+ s")
    assert len([line for line in process.lines if "WARNING" in line]) == 1
    assert process.memory()[1] - before < 4 * 1024 * 1024


def test_no_answer_ends_it(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, proxy: FaultProxy, tmp_path: Path
) -> None:
    """No broken head, length, chunk or /info ends the daemon: it reads again as soon as a gateway answers."""
    impatient = "import envoy2emon.gateway.reader as r\nr.MOST_WAIT_S = 0.01\n"
    deep = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"<a>" * 20_000
    proxy.canned(deep)
    process = daemon(
        "stream", QUICK | altered(tmp_path / "impatient", impatient), ENVOY_HOST=f"{proxy.host}:{proxy.port}"
    )
    for answer, _ in (*ANSWERS.values(), (b"HTTP/1.1 200 OK\r\n\r\n" + INFO * 2000, "")):
        seen = len(proxy.attempts)
        proxy.canned(answer)
        proxy.wait_for(lambda seen=seen: len(proxy.attempts) > seen + 3)  # type: ignore[misc]
    proxy.pass_through()
    reads(envoy, emoncms)
    assert errors(process) == []
    assert not [line for line in process.lines if "Traceback" in line]


def test_unauthorized(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """A wrong password is one ERROR with the cure; after two questions the gateway is left alone for five minutes."""
    process = daemon("stream", QUICK, ENVOY_PASSWORD="wrong-password")
    line = process.wait_for_line("ERROR gateway: .*").string
    assert line.endswith("refuses user installer (401): are ENVOY_USER and ENVOY_PASSWORD right?")
    for _ in range(6):
        process.notifications.clear()
        process.wait_for_notify("STATUS=.*refuses user installer")
    assert len(errors(process)) == 1
    assert asked(envoy) == [("/info", 200), (STREAM, 401), (STREAM, 401)]


@pytest.mark.parametrize("name", ["legacy", "empty_reports"])
def test_no_meters(daemon: StartDaemon, envoy: SimulatedEnvoy, name: str) -> None:
    """A site without meters is logged once, with the cure, and its gateway is left alone for five minutes."""
    fixtures.load_site(envoy, name)
    process = daemon("stream", QUICK, ENVOY_TOKEN=make_token(envoy.serial, time.time() + 86_400))
    process.wait_for_line("WARNING gateway: this gateway has no meters, .*: sudo systemctl disable --now envoy2emon$")
    seen = len(envoy.requests)
    for _ in range(5):
        process.notifications.clear()
        process.wait_for_notify("STATUS=no reading yet; .*this gateway has no meters")
    assert errors(process) == []
    assert len(envoy.requests) == seen <= 8


RESOLVER = """
import os, socket
ask = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host == "envoy.test" and not os.path.exists({path!r}):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return ask("127.0.0.1" if host == "envoy.test" else host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def test_a_name_that_is_not_known_at_first(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path
) -> None:
    """A daemon that starts before the network is there reads as soon as the name can be resolved."""
    known = tmp_path / "known"
    resolver = altered(tmp_path / "resolver", RESOLVER.format(path=str(known)))
    process = daemon("stream", resolver, ENVOY_HOST=f"envoy.test:{envoy.address[1]}")
    process.wait_for_line(r"WARNING gateway: envoy.test:\d+ cannot be resolved: is ENVOY_HOST right\?$")
    known.touch()
    reads(envoy, emoncms)


def test_attempts(daemon: StartDaemon, proxy: FaultProxy, envoy: SimulatedEnvoy) -> None:
    """The second attempt comes a second after the first, however many connections an attempt takes."""
    proxy.reset()
    daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}")
    proxy.wait_for(lambda: len(proxy.attempts) == 4)
    first, second, third, _ = proxy.attempts
    assert second - first < 0.5
    assert 1.0 <= third - second < 1.7
    assert not envoy.requests
