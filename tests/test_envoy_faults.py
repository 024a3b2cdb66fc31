"""The Envoy's faults: after each, readings go on by themselves, and the gateway is not asked too often."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from envoy2emon import config
from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.connection import Refused
from envoy2emon.gateway.client import Envoy
from envoy2emon.outage import REFUSED_WAIT_S
from envoy2emon.gateway.reader import Reader
from envoy2emon.settings import Config
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.logins import STREAM
from envoy2emon.demo.port import Answer
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.gateway.tokens import Tokens
from tests.conftest import StartDaemon
from tests.daemons import Daemon, altered
from tests.faultproxy import FaultProxy

BACKOFF = 8.0  # s; 1 s and 2 s with a fifth of jitter, and a machine that has other things to do


def settings(envoy: SimulatedEnvoy) -> Config:
    """Return the settings of a client in this process."""
    environ = {"ENVOY_HOST": envoy.host, "ENVOY_PASSWORD": envoy.password, "EMONCMS_APIKEY": "key"}
    return config.load(Path("/nonexistent"), environ, required=False)[0]


@pytest.fixture
def proxy(envoy: SimulatedEnvoy) -> Iterator[FaultProxy]:
    """Stand between the daemon and the gateway."""
    with FaultProxy(*envoy.address) as proxy:
        yield proxy


class Site:
    """A daemon that reads through the proxy, and what arrives."""

    def __init__(self, process: Daemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
        self.process, self.envoy, self.emoncms = process, envoy, emoncms

    def reads(self, timeout: float = BACKOFF) -> None:
        """Wait until a stream is open, and see that its next event arrives."""
        count = len(self.emoncms.rows)
        self.envoy.wait_for_stream(timeout)
        self.envoy.emit(THREE_PHASE_EVENT)
        self.emoncms.wait_for(lambda: len(self.emoncms.rows) > count)
        assert len(self.emoncms.rows[-1].inputs) == 36


@pytest.fixture
def site(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, proxy: FaultProxy) -> Site:
    """Start a daemon whose patience with a silent stream is one second, and see it read."""
    process = daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}", STREAM_TIMEOUT_S=1)
    started = Site(process, envoy, emoncms)
    started.reads()
    return started


def gone(site: Site) -> None:
    """Wait until the stream is given up."""
    site.envoy.wait_for(lambda: site.envoy.open_streams == 0)


def test_refused(site: Site, proxy: FaultProxy) -> None:
    """A gateway that refuses connections for a while."""
    proxy.refuse()
    site.process.wait_for_line(r"WARNING Envoy: .*closed the connection|refuses the connection|has ended")
    gone(site)
    proxy.pass_through()
    site.reads()
    site.process.wait_for_line(r"INFO Envoy: back after \d s")


def test_reset(site: Site, proxy: FaultProxy) -> None:
    """A connection that is reset, and the next ones too."""
    proxy.reset()
    proxy.cut(reset=True)
    site.process.wait_for_line("WARNING Envoy: .* closed the connection")
    proxy.wait_for(lambda: len(proxy.attempts) > 4)
    proxy.pass_through()
    site.reads()


@pytest.mark.parametrize("chunked", [True, False])
def test_cut_in_mid_event(
    request: pytest.FixtureRequest, envoy: SimulatedEnvoy, proxy: FaultProxy, *, chunked: bool
) -> None:
    """A stream that is cut in the middle of an event: the half is not posted, nor joined with what comes next."""
    envoy.chunked = chunked
    site: Site = request.getfixturevalue("site")
    proxy.cut(after=500)
    envoy.emit(THREE_PHASE_EVENT)
    gone(site)
    site.reads()
    assert len(site.emoncms.rows) == 2


def test_stall(site: Site, proxy: FaultProxy) -> None:
    """A stream that stands still with its connection open is given up after STREAM_TIMEOUT_S."""
    proxy.stall()
    start = time.monotonic()
    site.process.wait_for_line("WARNING Envoy: .* does not answer in time")
    assert 0.9 < time.monotonic() - start < 2.5
    proxy.pass_through()
    gone(site)
    site.reads()


def test_no_events(site: Site) -> None:
    """A stream that sends bytes but no events is given up after STREAM_TIMEOUT_S."""
    start = time.monotonic()
    while site.envoy.open_streams and time.monotonic() < start + 3:
        site.envoy.emit_raw(b": still here\n\n")
        with pytest.raises(TimeoutError):
            site.envoy.wait_for(lambda: False, 0.2)
    site.process.wait_for_line("WARNING Envoy: the stream sends no event for 1 s")
    gone(site)
    site.reads()


@pytest.mark.parametrize(
    ("chunked", "words"), [(True, ".* does not answer in time"), (False, "the stream sends no event for 1 s")]
)
def test_drip(
    request: pytest.FixtureRequest, envoy: SimulatedEnvoy, proxy: FaultProxy, words: str, *, chunked: bool
) -> None:
    """A stream that drips is given up, for all that something comes every now and then, be it of a chunk's size."""
    envoy.chunked = chunked
    site: Site = request.getfixturevalue("site")
    proxy.drip(5)
    envoy.emit(THREE_PHASE_EVENT)
    site.process.wait_for_line(f"WARNING Envoy: {words}")
    proxy.pass_through()
    gone(site)
    site.reads()


def test_flood(request: pytest.FixtureRequest, envoy: SimulatedEnvoy, proxy: FaultProxy) -> None:
    """A flood without newline is cut off, and memory stays bounded."""
    envoy.chunked = False
    site: Site = request.getfixturevalue("site")
    before = site.process.memory()[1]
    proxy.flood()
    site.process.wait_for_line("WARNING Envoy: the stream sends a line of more than 65536 bytes")
    proxy.pass_through()
    gone(site)
    site.reads()
    assert site.process.memory()[1] - before < 4 * 1024 * 1024


def test_ends_by_itself(site: Site) -> None:
    """A stream that ends in good order is opened again."""
    site.envoy.end_streams()
    site.process.wait_for_line("WARNING Envoy: the stream has ended")
    gone(site)
    site.reads()


def test_garbage_between_events(site: Site) -> None:
    """Garbage between events costs no event and no connection."""
    for garbage in (b"\x00\xff\xfe\r\r\n\n", b'data: {"production":\n\n', b"data\n\n", b"data: [1]\ndata: 2\n\n"):
        site.envoy.emit_raw(garbage)
        site.reads()
    site.process.wait_for_line("WARNING Envoy: skips what is no reading")
    assert len([line for line in site.process.lines if "WARNING" in line]) == 1
    assert site.envoy.connections == 3


def test_missing_sections(site: Site) -> None:
    """An event with missing sections gives what it has, nothing of an earlier event."""
    count = len(site.emoncms.rows)
    site.envoy.emit('{"net-consumption":{"ph-a":{"p":5}}}')
    site.emoncms.wait_for(lambda: len(site.emoncms.rows) > count)
    assert list(site.emoncms.rows[-1].inputs) == ["net_ph-a_wNow"]
    site.reads()


@pytest.mark.parametrize("status", [302, 404, 503])
def test_error_status(site: Site, status: int) -> None:
    """A gateway that answers an error or a redirect for a while, as 503 at about 23:00 every night (HA 156189)."""
    with SimulatedEnvoy() as elsewhere:
        headers = {"Location": f"http://{elsewhere.host}{STREAM}"} if status == 302 else {}
        site.envoy.answers[STREAM] = Answer(status, headers=headers)
        site.envoy.end_streams()
        site.envoy.wait_for(lambda: site.envoy.requests[-1].status == status)
        site.envoy.answers.clear()
        site.reads()
        assert elsewhere.connections == 0
    site.process.wait_for_line("WARNING Envoy: ")
    assert len([line for line in site.process.lines if "WARNING" in line]) == 1


@pytest.mark.parametrize("path", [STREAM, "/info"])
@pytest.mark.parametrize("status", [404, 500, 502, 503, 301, 302])
def test_status(envoy: SimulatedEnvoy, path: str, status: int) -> None:
    """An error or a redirect is StreamLost, with the status; no redirect is followed; the next question is answered."""
    client = Envoy(settings(envoy), Tokens(settings(envoy), None))
    with SimulatedEnvoy() as elsewhere:
        target = f"http://{elsewhere.host}{path}"
        envoy.answers[path] = Answer(status, "<html>", headers={"Location": target} if status < 400 else {})
        with pytest.raises(StreamLost, match=f"{envoy.host}{path} answers {status}"), client.stream(1):
            pass
        assert elsewhere.connections == 0
    envoy.answers.clear()
    with client.stream(1):
        envoy.wait_for_stream()


def test_unauthorized(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """A wrong password is one ERROR that says what to do, two questions with it, and then five minutes' peace."""
    process = daemon("stream", ENVOY_PASSWORD="wrong-password", environment={"WATCHDOG_USEC": "300000"})
    line = process.wait_for_line("ERROR Envoy: .*").string
    assert f"http://{envoy.host}, firmware D5.0.62, refuses user installer (401)" in line
    assert line.endswith("are ENVOY_USER and ENVOY_PASSWORD right?")
    seen = len(envoy.requests)
    for _ in range(8):
        process.notifications.clear()
        process.wait_for_notify("STATUS=.*refuses user installer")
    assert len(envoy.requests) == seen <= 5
    assert len([line for line in process.lines if "ERROR" in line]) == 1


def test_no_password(daemon: StartDaemon) -> None:
    """Firmware below 7 without ENVOY_PASSWORD is an ERROR that says what to put where."""
    process = daemon("stream", ENVOY_PASSWORD=None)
    process.wait_for_line("ERROR Envoy: firmware D5.0.62 wants the installer's password: put ENVOY_PASSWORD into .env")


RESOLVER = """
import os, socket
ask = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host == "envoy.test" and not os.path.exists({path!r}):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return ask("127.0.0.1" if host == "envoy.test" else host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def test_dns_failure(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """A name that cannot be resolved at first."""
    known = tmp_path / "known"
    process = daemon(
        "stream",
        ENVOY_HOST=f"envoy.test:{envoy.address[1]}",
        environment=altered(tmp_path / "resolver", RESOLVER.format(path=str(known))),
    )
    process.wait_for_line(r"WARNING Envoy: envoy.test:\d+ is a name that cannot be resolved: is ENVOY_HOST right\?$")
    known.touch()
    Site(process, envoy, emoncms).reads()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n<html>not an Envoy", b"\x00\x01\x02\r\n\r\n", b""])
def test_something_else(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, proxy: FaultProxy, answer: bytes
) -> None:
    """Something that is no Envoy at its address."""
    proxy.canned(answer)
    process = daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}")
    process.wait_for_line("WARNING Envoy: ")
    proxy.pass_through()
    Site(process, envoy, emoncms).reads()


def test_attempts(daemon: StartDaemon, envoy: SimulatedEnvoy, proxy: FaultProxy) -> None:
    """The second attempt comes one second after the first, one connection each."""
    proxy.reset()
    daemon("stream", ENVOY_HOST=f"http://{proxy.host}:{proxy.port}")
    proxy.wait_for(lambda: len(proxy.attempts) == 2)
    first, second = proxy.attempts
    assert 1.0 <= second - first < 1.7
    assert not envoy.requests


def test_two_connections_at_once(daemon: StartDaemon, proxy: FaultProxy) -> None:
    """An attempt that tries http and https is followed by the waits of two: 1 s and 2 s."""
    proxy.reset()
    daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}")
    proxy.wait_for(lambda: len(proxy.attempts) == 3)
    first, second, third = proxy.attempts
    assert second - first < 0.5
    assert 3.0 <= third - second < 4.3


class Script:
    """What a reader meets, on a clock of its own: an error, or a stream that holds for so many seconds."""

    def __init__(self, *script: Exception | float, jitter: float = 0.0) -> None:
        self.now = 0.0
        self.attempts: list[float] = []
        self._script = iter(script)
        envoy: Any = self
        self._reader = Reader(envoy, lambda _: None, "auto", 60, lambda: self.now, lambda: jitter, self._wait)

    def run(self) -> list[float]:
        """Return the times of all attempts."""
        with pytest.raises(_End):
            self._reader.run(lambda: None)
        return self.attempts

    @contextmanager
    def stream(self, _silence: float) -> Iterator[Callable[[], bytes]]:
        """Give a stream, or raise."""
        self.attempts.append(self.now)
        try:
            happens = next(self._script)
        except StopIteration as end:
            raise _End from end
        if isinstance(happens, Exception):
            raise happens
        chunks = iter([happens, None])

        def read() -> bytes:
            held = next(chunks)
            self.now += held or 0.0
            return b"" if held is None else f"data: {THREE_PHASE_EVENT}\n\n".encode()

        yield read

    def _wait(self, seconds: float) -> None:
        self.now += seconds


class _End(Exception):
    pass


def test_backoff() -> None:
    """Waits double from 1 s to 30 s: at most six attempts in any minute, jitter makes them fewer."""
    for jitter in (0.0, 1.0):
        attempts = Script(*[StreamLost("away")] * 30, jitter=jitter).run()
        waits = [later - earlier for earlier, later in pairwise(attempts)]
        assert waits == pytest.approx([wait * (1 + 0.2 * jitter) for wait in (1, 2, 4, 8, 16, *[30] * 25)])
        assert all(len([at for at in attempts if start <= at < start + 60]) <= 6 for start in attempts)


def waits(*script: Exception | float) -> list[float]:
    """Return the seconds between the end of one attempt and the start of the next."""
    attempts = Script(*script).run()
    held = [each if isinstance(each, float) else 0.0 for each in script]
    return [later - earlier - lasted for (earlier, later), lasted in zip(pairwise(attempts), held, strict=True)]


def test_flapping_is_no_recovery() -> None:
    """Streams that break off after seconds do not bring the waits back to 1 s, one that held for a minute does."""
    assert waits(StreamLost("away"), 5.0, 5.0, 59.0, 60.0, 5.0) == [1, 2, 4, 8, 1, 2]


def test_refused_once_in_five_minutes() -> None:
    """After Refused there is one attempt in five minutes; it neither lengthens nor shortens the other waits."""
    script = [StreamLost("away"), Refused("no"), Refused("no"), StreamLost("away")]
    assert waits(*script) == [1, REFUSED_WAIT_S, REFUSED_WAIT_S, 2]


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A night's outage is a line when it begins and one when it ends, with how long it lasted."""
    caplog.set_level("INFO")
    Script(*[StreamLost("away")] * 20, 61.0, StreamLost("away")).run()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Envoy: away"),
        ("INFO", "Envoy: back after 9 min"),
        ("WARNING", "Envoy: the stream has ended"),
    ]
