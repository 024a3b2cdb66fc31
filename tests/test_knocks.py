"""How often an Envoy that fails is knocked at: every connection of a daemon's first five minutes is counted.

The law of this file: sockets are real, and time passes only while a daemon waits.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from envoy2emon import config
from envoy2emon.gateway.client import Envoy
from envoy2emon.inverters import Poller
from envoy2emon.gateway.reader import Reader
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy, make_token
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT, reports
from envoy2emon.gateway.tokens import Tokens
from tests.certificates import Certificate
from tests.faultproxy import FaultProxy
from tests.ledger import MOST_ATTEMPTS, busiest_minute

NAME = "envoy.test"
BARE, WITH_PORT = NAME, f"{NAME}:8080"
WATCHED_S = 300.0
CONNECT = socket.create_connection
SHUT = ExceptionGroup("create_connection failed", [ConnectionRefusedError()])
REPORTS = "/ivp/meters/reports/"
DATA = (STREAM, REPORTS, INVERTERS)
ALL = ("/info", "/auth/check_jwt", *DATA)
CANNED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

Fault = Callable[["World"], None]
FAULTS: dict[str, Fault] = {
    "refused": lambda world: world.cut(error=SHUT),
    "no such name": lambda world: world.cut(error=socket.gaierror(socket.EAI_AGAIN, "no such name")),
    "reset": lambda world: world.cut(world.proxy.reset),
    "503 to anything": lambda world: world.cut(lambda: world.proxy.canned(CANNED)),
    "301 to all": lambda world: world.answer(301, *ALL),
    "401 to all": lambda world: world.answer(401, *ALL),
    "302 behind /info": lambda world: world.answer(302, *DATA),
    "503 behind /info": lambda world: world.answer(503, *DATA),
    "404 to the data": lambda world: world.answer(404, *DATA),
    "404 to the reports": lambda world: world.answer(404, REPORTS),
    "404 that closes": lambda world: world.answer(404, *DATA, headers={"Connection": "close"}),
    "503 to a login": lambda world: world.answer(503, "/auth/check_jwt", *DATA),
}
# With the source auto all goes as with stream, but where the data are missing.
FOLLOWED = [*((fault, "stream") for fault in FAULTS), *((fault, "auto") for fault in FAULTS if "404" in fault)]


class _End(Exception):
    """The time is up, or the daemon has got what it asked for."""


class World:
    """A gateway at envoy.test, and a daemon's time. knocks: when which port was tried in the fault; back: its end."""

    def __init__(self, envoy: SimulatedEnvoy, proxy: FaultProxy, host: str, jitter: float = 0.0) -> None:
        self.envoy, self.host, self.jitter = envoy, host, jitter
        self.proxy: FaultProxy = proxy
        self.now, self.back = 0.0, float("inf")
        self.knocks: list[tuple[float, int]] = []
        self._error: Exception | None = None

    def meet(self, fault: str, *, known: bool, daemon: str = "stream", attempts: int = 999) -> None:
        """Let a daemon meet the fault at its start, or when it has read, and again and again for so many attempts."""
        self._fault: Fault | None = FAULTS[fault]
        self._attempts = attempts
        token = make_token(self.envoy.serial, time.time() + 86_400)
        environ = {"ENVOY_HOST": self.host, "ENVOY_PASSWORD": self.envoy.password, "EMONCMS_APIKEY": "key"}
        settings, _ = config.load(Path("/nonexistent"), environ | {"ENVOY_TOKEN": token}, required=False)
        client = Envoy(settings, Tokens(settings, None), inverters=daemon == "inverters")
        if not known:
            self._begin()
        times: Any = lambda: self.now, lambda: self.jitter, self._wait
        follows: dict[str, Any] = {
            "stream": Reader(client, self._take, "stream", 60, *times),
            "auto": Reader(client, self._take, "auto", 60, *times),
            "inverters": Poller(client, self._take, 1, *times),
        }
        with patch.object(socket, "create_connection", self._connect), pytest.raises(_End):
            follows[daemon].run(lambda: None)
        client.connection.close()
        self.mend()

    def cut(self, fault: Callable[[], None] = lambda: None, error: Exception | None = None) -> None:
        """Cut what is open, and let this happen to what is opened."""
        self._error = error
        fault()
        self.proxy.cut()

    def answer(self, status: int, *paths: str, headers: Mapping[str, str] = {}) -> None:
        """Let the gateway answer these paths so."""
        self.envoy.answers |= dict.fromkeys(paths, Answer(status, "<html>", headers=headers))

    def _connect(self, address: tuple[str, int], *rest: Any, **options: Any) -> socket.socket:  # noqa: ANN401
        if address[0] != NAME:
            return CONNECT(address, *rest, **options)
        self.knocks.append((self.now, address[1]))
        if self._error or address[1] not in {8080, 443 if self.envoy.token_based else 80}:
            raise self._error or SHUT
        return CONNECT((self.proxy.host, self.proxy.port), *rest, **options)

    def _begin(self) -> None:
        assert self._fault
        self._fault(self)
        self._fault = None
        self.knocks.clear()

    def mend(self) -> None:
        """Let all go well."""
        self._error = None
        self.proxy.pass_through()
        self.envoy.answers.clear()
        self.envoy.tokens.end_sessions()

    def _take(self, _: object) -> None:
        if not self._fault:
            raise _End
        self._begin()
        self.envoy.end_streams()

    def _wait(self, seconds: float) -> None:
        self._attempts -= 1
        if not self._attempts:
            self.back = self.now
            self.mend()
        self.now += seconds
        if self.now >= WATCHED_S:
            raise _End


@pytest.fixture(params=["D5.0.62", "D8.3.6086"])
def envoy(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway that keeps no connection, and one that does, behind TLS."""
    with SimulatedEnvoy(request.param, tls=certificate.context) as envoy:
        yield envoy


@pytest.fixture
def proxy(envoy: SimulatedEnvoy) -> Iterator[FaultProxy]:
    """Stand between the daemon and the gateway."""
    with FaultProxy(*envoy.address) as proxy:
        yield proxy


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("host", [BARE, WITH_PORT])
@pytest.mark.parametrize(("fault", "daemon"), [*FOLLOWED, *((fault, "inverters") for fault in FAULTS)])
def test_six_connections_in_a_minute(
    envoy: SimulatedEnvoy, proxy: FaultProxy, fault: str, host: str, daemon: str, *, known: bool
) -> None:
    """In no minute of a fault more than six connections are tried, whether it is met at the start or later."""
    world = World(envoy, proxy, host)
    world.meet(fault, known=known, daemon=daemon)
    assert busiest_minute([at for at, _ in world.knocks]) <= MOST_ATTEMPTS


# What asks at one door by turns may have asked at the right one after 15 s, and does so again after 61 s.
@pytest.mark.parametrize(("known", "longest"), [(True, 30), (False, 46)])
@pytest.mark.parametrize("host", [BARE, WITH_PORT])
@pytest.mark.parametrize(("fault", "daemon"), FOLLOWED)
def test_back_within_the_backoff(
    envoy: SimulatedEnvoy, proxy: FaultProxy, fault: str, host: str, daemon: str, longest: float, *, known: bool
) -> None:
    """Whenever the fault ends, the stream is open 30 s later at most; where the door was never known, 46 s later."""
    for attempts in (1, 2, 4, 5, 8):
        world = World(envoy, proxy, host, jitter=1.0)
        world.meet(fault, known=known, daemon=daemon, attempts=attempts)
        assert world.now - world.back <= 1.2 * longest + 0.01


START = [(0, 443), (0, 80), (3, 443), (7, 80), (15, 443), (31, 80), (61, 443), (61, 80), (91, 443), (91, 80)]
LOST = [(1, 80), (3, 80), (3, 443), (7, 80), (15, 80), (31, 80), (61, 80), (91, 80), (91, 443), (121, 80), (121, 443)]
DENIED = [(1, 80), (1, 80), (3, 80), (3, 443), (15, 80), (31, 80), (61, 80), (91, 80), (121, 80), (121, 443)]


@pytest.mark.parametrize("envoy", ["D5.0.62"], indirect=True)
@pytest.mark.parametrize(("fault", "begin"), [("refused", START), ("refused", LOST), ("401 to all", DENIED)])
def test_doors(envoy: SimulatedEnvoy, proxy: FaultProxy, fault: str, begin: list[tuple[float, int]]) -> None:
    """Both doors at the start; then one by turns, or the one that is known; both again when waits are 30 s."""
    world = World(envoy, proxy, BARE)
    world.meet(fault, known=begin is not START)
    assert world.knocks[: len(begin)] == begin


@pytest.mark.parametrize("envoy", ["D8.3.6086"], indirect=True)
@pytest.mark.parametrize("daemon", ["stream", "auto"])
def test_a_moment_without_data(envoy: SimulatedEnvoy, proxy: FaultProxy, daemon: str) -> None:
    """A gateway that has its data again after two attempts is read on after the second wait."""
    world = World(envoy, proxy, WITH_PORT, jitter=1.0)
    world.meet("404 to the data", known=True, daemon=daemon, attempts=2)
    assert world.now - world.back == pytest.approx(2 * 1.2)


class Owners(World):
    """A gateway whose reports go on when all is well."""

    def mend(self) -> None:
        """Let all go well."""
        super().mend()
        self.envoy.reports = reports(THREE_PHASE_EVENT, int(time.time()) + 1)


@pytest.mark.parametrize("envoy", ["D7.6.175"], indirect=True)
@pytest.mark.parametrize("attempts", [2, 3, 4, 5, 6, 9, 10])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("fault", ["404 to the data", "404 to the reports", "404 that closes"])
def test_where_owners_have_the_reports_alone(
    envoy: SimulatedEnvoy, proxy: FaultProxy, fault: str, attempts: int, *, known: bool
) -> None:
    """Missing reports are back within the backoff too, and cost few logins, for each one is a session."""
    world = Owners(envoy, proxy, BARE, jitter=1.0)
    world.meet(fault, known=known, daemon="auto", attempts=attempts)
    assert world.now - world.back <= 1.2 * 30 + 0.01
    assert busiest_minute([at for at, _ in world.knocks]) <= MOST_ATTEMPTS
    assert [request.path for request in envoy.requests].count("/auth/check_jwt") <= 5


class Updated(World):
    """A gateway that comes back with another firmware."""

    def mend(self) -> None:
        """Let all go well."""
        super().mend()
        self.envoy.upgrade("D8.3.6086")


@pytest.mark.parametrize("envoy", ["D5.0.62"], indirect=True)
@pytest.mark.parametrize(("attempts", "found"), [(1, 3.0), (2, 3.0), (3, 91.0), (7, 91.0), (8, 121.0)])
def test_another_firmware(envoy: SimulatedEnvoy, proxy: FaultProxy, attempts: int, found: float) -> None:
    """A gateway that comes back with https in place of http is found when both doors are asked."""
    world = Updated(envoy, proxy, BARE)
    world.meet("refused", known=True, attempts=attempts)
    assert world.now == found
