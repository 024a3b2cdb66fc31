"""Every firmware from 3.9 to 8.3: who is there, how it is logged in to, what it gives, and what it sends oddly."""

import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from envoy2emon import config
from envoy2emon.gateway import info as gateway
from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.connection import Refused
from envoy2emon.gateway.client import Envoy, Missing, NotAllowed
from envoy2emon.outage import REFUSED_WAIT_S
from envoy2emon.gateway.reader import STREAM_AGAIN_S, Reader
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy, make_token
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT, reports
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.gateway.tokens import LOGIN_EVERY_S, Tokens
from tests import fixtures
from tests.certificates import Certificate, self_signed
from tests.conftest import StartDaemon
from tests.enlighten import LOGIN_PATH, Enlighten
from tests.faultproxy import FaultProxy
from tests.test_stream import inputs_of, texts, wait_for_rows

REPORTS, CHECK = "/ivp/meters/reports/", "/auth/check_jwt"


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        yield envoy


@pytest.fixture
def enlighten() -> Iterator[Enlighten]:
    """Serve Enphase."""
    with Enlighten() as enlighten:
        yield enlighten


def account(enlighten: Enlighten) -> dict[str, str]:
    """Return the settings that name an account at Enphase."""
    return {
        "ENPHASE_EMAIL": enlighten.email,
        "ENPHASE_PASSWORD": enlighten.password,
        "ENPHASE_LOGIN_URL": enlighten.login_url,
        "ENPHASE_TOKEN_URL": enlighten.token_url,
    }


def token_for(envoy: SimulatedEnvoy, user: str = "owner") -> str:
    """Make a good token."""
    return make_token(envoy.serial, time.time() + 86_400, user)


def client(
    envoy: SimulatedEnvoy, wall: Callable[[], float] = time.time, state: Path | None = None, /, **changes: str
) -> Envoy:
    """Return a client in this process."""
    environ = {"ENVOY_HOST": envoy.host, "ENVOY_PASSWORD": envoy.password, "EMONCMS_APIKEY": "key"} | changes
    settings, _ = config.load(Path("/nonexistent"), environ, required=False)
    return Envoy(settings, Tokens(settings, state, wall))


def asked(envoy: SimulatedEnvoy) -> list[tuple[str, int]]:
    """Return all requests so far: path and status."""
    return [(request.path, request.status) for request in envoy.requests]


def test_upgrade_overnight(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, enlighten: Enlighten, tmp_path: Path
) -> None:
    """A gateway that goes from 5.0.62 to 8.3 is served on by both daemons without a restart, with one login."""
    same_state = {"STATE_DIRECTORY": str(tmp_path / "state"), "WATCHDOG_USEC": "600000"}
    stream = daemon("stream", environment=same_state, **account(enlighten))
    inverters = daemon("inverters", environment=same_state, INVERTERS_INTERVAL_S=1, **account(enlighten))
    envoy.wait_for_stream()
    envoy.emit(THREE_PHASE_EVENT)
    wait_for_rows(emoncms, 13)
    envoy.upgrade("D8.3.6086")
    envoy.wait_for(lambda: envoy.open_streams == 0)
    envoy.wait_for_stream()
    envoy.emit(THREE_PHASE_EVENT)
    wait_for_rows(emoncms, 14)
    assert texts(emoncms.rows[-1]) == inputs_of(THREE_PHASE_EVENT)
    stream.wait_for_line(f"INFO Envoy: https://{envoy.host}, firmware D8.3.6086")
    inverters.wait_for_line("INFO Envoy: back after")
    expiry = time.strftime("%Y-%m-%d", time.gmtime(time.time() + enlighten.lifetime))
    stream.wait_for_notify(f"STATUS=.*; token until {expiry}")
    inverters.wait_for_notify(f"STATUS=.*; token until {expiry}")
    assert enlighten.logins == [200]
    assert stat.S_IMODE((tmp_path / "state" / "token.json").stat().st_mode) == 0o600
    assert not [line for line in stream.lines + inverters.lines if "ERROR" in line]


def test_upgrade_before_the_first_reading(envoy: SimulatedEnvoy) -> None:
    """A gateway that is another one by the attempt after its first /info is found by that attempt."""
    one = client(envoy, ENVOY_TOKEN=token_for(envoy))
    envoy.answers[STREAM] = Answer(503)
    with pytest.raises(StreamLost, match="answers 503"):
        one.stream(1).__enter__()
    envoy.answers.clear()
    envoy.upgrade("D8.3.6086")
    with one.stream(1):
        envoy.wait_for_stream()


def test_who_is_refused_asks_who_is_there(envoy: SimulatedEnvoy) -> None:
    """Each attempt after Refused asks /info again: in five minutes it may be another gateway."""
    envoy.upgrade("D8.3.6086")
    one = client(envoy)
    for attempts in (1, 2, 3):
        with pytest.raises(Refused, match="wants a token"):
            one.inverters()
        assert asked(envoy) == [("/info", 200)] * attempts


def test_upgrade_without_token(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """Where no token can be had after an upgrade, one ERROR says what to put into .env."""
    process = daemon("stream", environment={"WATCHDOG_USEC": "300000"})
    envoy.wait_for_stream()
    envoy.upgrade("D8.3.6086")
    process.wait_for_line(
        "ERROR Envoy: firmware D8.3.6086: this firmware wants a token: put ENPHASE_EMAIL and ENPHASE_PASSWORD into .env"
    )
    process.notifications.clear()
    process.wait_for_notify("STATUS=.*this firmware wants a token")
    assert len([line for line in process.lines if "ERROR" in line]) == 1


@pytest.mark.parametrize("firmware", ["D7.0.88", "D7.6.175", "D8.3.6086"])
def test_firmware(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, firmware: str) -> None:
    """With an owner's token each firmware gives its meters, by the stream or by the reports, and its inverters."""
    fixtures.load(envoy, firmware)
    token = token_for(envoy)
    daemon("stream", ENVOY_TOKEN=token)
    event = fixtures.events(firmware)[0]
    by_reports = firmware == "D7.6.175"
    if by_reports:
        envoy.reports = reports(event, int(time.time()))
    else:
        envoy.wait_for_stream()
        envoy.emit(event)
    wait_for_rows(emoncms, 1)
    inputs = inputs_of(event)
    if by_reports:  # an unused phase is in the stream, all zeros, and not in the reports
        used = [f"_ph-{letter}_" for letter, _ in zip("abc", envoy.reports[0]["lines"], strict=False)]
        inputs = {name: digits for name, digits in inputs.items() if any(phase in name for phase in used)}
    assert {n: float(v) for n, v in texts(emoncms.rows[0]).items()} == {n: float(v) for n, v in inputs.items()}
    daemon("inverters", ENVOY_TOKEN=token)
    alive = [unit for unit in envoy.inverters if unit["lastReportDate"] > time.time() - 7 * 86_400]
    emoncms.wait_for(lambda: len([row for row in emoncms.rows if row.node.endswith("inverters")]) == len(alive))


def test_reports_are_the_stream(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """From reports come the very same inputs as from the stream, once a second, each createdAt once, one session."""
    envoy.upgrade("D7.6.175")
    created = int(time.time())
    envoy.reports = reports(THREE_PHASE_EVENT, created)
    process = daemon("stream", ENVOY_TOKEN=token_for(envoy))
    process.wait_for_line(
        r"INFO Envoy: firmware D7.6.175 does not open /stream/meter to this token \(401\); "
        "its meter reports are read in place of the stream"
    )

    def read() -> list[float]:
        return [request.at for request in envoy.requests if request.path == REPORTS]

    envoy.wait_for(lambda: len(read()) == 1)
    connections = envoy.connections
    envoy.wait_for(lambda: len(read()) == 3)
    assert [texts(row) for row in emoncms.rows] == [inputs_of(THREE_PHASE_EVENT)]
    envoy.reports = reports(THREE_PHASE_EVENT, created + 1)
    wait_for_rows(emoncms, 2)
    first, *_, last = read()
    assert last - first > 0.95 * (len(read()) - 1)
    assert {request.user for request in envoy.requests if request.path == REPORTS} == {"owner"}
    assert asked(envoy).count((CHECK, 200)) == 2  # at first, and to know why the stream was refused
    assert envoy.connections == connections <= 5


class ReportsEnvoy:
    """Refuses the stream and answers reports, each after so many seconds by a clock of its own; its end ends all."""

    def __init__(self, *took: float) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, float]] = []
        self.created = 0
        self._took = iter(took)

    def stream(self, _silence: float) -> None:
        """Refuse."""
        self.asked.append(("stream", self.now))
        raise NotAllowed("not for owners")

    def reports(self) -> str:
        """Answer."""
        self.asked.append(("reports", self.now))
        took = next(self._took, None)
        if took is None:
            raise _End
        self.now += took
        self.created = int(self.now / 2) + 1
        return json.dumps(reports(THREE_PHASE_EVENT, self.created))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0
        self.now += seconds


class _End(Exception):
    pass


def follow(envoy: Any, source: str = "auto") -> list[Arrival]:  # noqa: ANN401
    """Let a Reader follow until the script ends; return what came."""
    arrivals: list[Arrival] = []
    with pytest.raises(_End):
        Reader(envoy, arrivals.append, source, 60, lambda: envoy.now, lambda: 0.0, envoy.wait).run(lambda: None)
    return arrivals


def test_fixed_rate() -> None:
    """Reports are asked for at a fixed rate of one a second; while the gateway is slow it gets as long a rest."""
    envoy = ReportsEnvoy(0.25, 0.5, 0.125, 2.0, 0.75, 0.25, 0.25)
    arrivals = follow(envoy)
    times = [at for path, at in envoy.asked if path == "reports"]
    assert [later - earlier for earlier, later in pairwise(times)] == [1, 1, 1, 4, 1.5, 1, 1]
    assert len(arrivals) == len({int(arrival.at / 2) for arrival in arrivals}) == envoy.created


class Booting(ReportsEnvoy):
    """Refuses the reports too at first, and opens the stream by the second attempt."""

    def stream(self, silence: float) -> None:
        """Refuse, once."""
        if self.asked:
            raise _End
        super().stream(silence)

    def reports(self) -> str:
        """Refuse."""
        self.asked.append(("reports", self.now))
        raise NotAllowed("not for owners either")


def test_stream_is_asked_again_where_reports_are_refused() -> None:
    """A gateway that opens neither is asked for both in five minutes, not for reports alone for a day."""
    envoy = Booting()
    follow(envoy)
    assert envoy.asked == [("stream", 0.0), ("reports", 0.0)]
    assert envoy.now == REFUSED_WAIT_S


def test_stream_is_asked_again_once_a_day() -> None:
    """While reports are read the stream is asked again once a day, and reports go on when it is still refused."""
    envoy = ReportsEnvoy(*[5000.0] * 20)
    follow(envoy)
    asked_at = [at for path, at in envoy.asked if path == "stream"]
    assert asked_at[0] == 0
    assert all(STREAM_AGAIN_S <= later - earlier < STREAM_AGAIN_S + 10_001 for earlier, later in pairwise(asked_at))
    assert len(asked_at) == 3


@pytest.mark.parametrize(("source", "path"), [("stream", "stream"), ("reports", "reports")])
def test_source(source: str, path: str) -> None:
    """STREAM_SOURCE=stream and =reports ask for nothing else."""
    envoy = ReportsEnvoy(0.1, 0.1)

    def wait(seconds: float) -> None:
        envoy.now += seconds
        if envoy.now > 400:
            raise _End

    envoy.wait = wait  # type: ignore[method-assign]
    follow(envoy, source)
    assert {each for each, _ in envoy.asked} == {path}


class Doors:
    """Notes where /info is asked for, and fails."""

    def __init__(self, lost: StreamLost) -> None:
        self.asked: list[str] = []
        self._lost = lost

    def get(self, url: str, path: str, _silence: float) -> None:
        """Fail."""
        self.asked.append(url + path)
        raise self._lost


AWAY, SHUT, OTHER = StreamLost("no", nobody_there=True), StreamLost("no", shut=True), StreamLost("no")


@pytest.mark.parametrize(
    ("host", "lost", "expected"),
    [
        ("envoy.local", AWAY, ["https://envoy.local"]),
        ("envoy.local", SHUT, ["https://envoy.local", "http://envoy.local"]),
        ("envoy.local", OTHER, ["https://envoy.local", "http://envoy.local"]),
        ("envoy.local:443", OTHER, ["https://envoy.local:443", "http://envoy.local:443"]),
        ("envoy.local:8080", OTHER, ["http://envoy.local:8080", "https://envoy.local:8080"]),
        ("envoy.local:8080", SHUT, ["http://envoy.local:8080"]),
        ("[fe80::1]:8080", AWAY, ["http://[fe80::1]:8080"]),
        ("http://envoy.local", SHUT, ["http://envoy.local"]),
        ("https://envoy.local:8443", OTHER, ["https://envoy.local:8443"]),
    ],
)
def test_detection(host: str, lost: StreamLost, expected: list[str]) -> None:
    """/info is asked for by https, then http, or as the URL says; at a port of the owner's by http first.

    Nobody asks twice where nobody is there, or at one door that is shut.
    """
    doors: Any = Doors(lost)
    with pytest.raises(StreamLost):
        gateway.detect(doors, gateway.doors(host), None)
    assert doors.asked == [f"{url}/info" for url in expected]


@pytest.mark.parametrize("content_type", ["text/xml", "application/json", None])
@pytest.mark.parametrize("firmware", fixtures.FIRMWARES)
def test_info(envoy: SimulatedEnvoy, firmware: str, content_type: str | None) -> None:
    """/info is read whatever its Content-Type, and says whether a token is wanted."""
    fixtures.load(envoy, firmware)
    envoy.answers["/info"] = Answer(200, envoy.info, content_type)
    found = client(envoy).detect()
    secure = firmware >= "D7"
    scheme = "https" if secure and firmware[0] == "D" else "http"
    assert found == gateway.Gateway(f"{scheme}://{envoy.host}", envoy.serial, firmware, scheme == "https")


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("<html><p>busy</html>", "/info is not that of an Envoy: is ENVOY_HOST right?"),
        ("", "/info is not that of an Envoy: is ENVOY_HOST right?"),
        ("<envoy_info/>", "/info tells no serial number: is ENVOY_HOST right? ENVOY_SERIAL can give it"),
        ("x" * 2_000_000, "/info answers without end"),
    ],
)
def test_bad_info(envoy: SimulatedEnvoy, info: str, words: str) -> None:
    """What is not the /info of an Envoy is named so; ENVOY_SERIAL takes the place of a missing serial number."""
    envoy.answers["/info"] = Answer(200, info)
    with pytest.raises(StreamLost, match=re.escape(words)):
        client(envoy).detect()
    if info == "<envoy_info/>":
        assert client(envoy, ENVOY_SERIAL="122100000000").detect().serial == "122100000000"


def test_redirected_to_https(envoy: SimulatedEnvoy) -> None:
    """D7 to D8.2 redirect http to https://localhost: it is not followed, https is asked at the same host."""
    envoy.upgrade("D7.0.88")
    envoy.redirects = True
    assert client(envoy).detect().url == f"https://{envoy.host}"
    assert asked(envoy) == [("/info", 301), ("/info", 200)]


def test_token_goes_to_no_other_host(envoy: SimulatedEnvoy, certificate: Certificate) -> None:
    """A redirect to another host is not followed, with the token or without."""
    envoy.upgrade("D8.3.6086")
    with SimulatedEnvoy("D8.3.6086", tls=certificate.context) as elsewhere:
        for path in (CHECK, REPORTS, STREAM, INVERTERS):
            envoy.answers = {path: Answer(302, headers={"Location": f"https://{elsewhere.host}{path}"})}
            redirected = client(envoy, ENVOY_TOKEN=token_for(envoy))
            for ask in (redirected.reports, redirected.inverters, redirected.stream(1).__enter__):
                with suppress(StreamLost):
                    ask()
            assert (path, 302) in asked(envoy)
        assert elsewhere.connections == 0


def test_one_session(envoy: SimulatedEnvoy) -> None:
    """One session, its cookie and one connection serve all polls; too many sessions of others are 503."""
    envoy.upgrade("D7.6.175")
    envoy.tokens.max_sessions = 1
    token = token_for(envoy)
    first = client(envoy, ENVOY_HOST=f"https://{envoy.host}", ENVOY_TOKEN=token)
    first.inverters()
    envoy.tokens.refused.add(token)  # from now on its session alone lets it in
    for _ in range(5):
        assert json.loads(first.inverters()) == envoy.inverters
        first.reports()
    assert [path for path, _ in asked(envoy)].count(CHECK) == 1
    assert envoy.connections == 1
    with pytest.raises(StreamLost, match="/auth/check_jwt answers 503"):
        client(envoy, ENVOY_TOKEN=token_for(envoy)).inverters()


def test_restarted_gateway(envoy: SimulatedEnvoy) -> None:
    """A gateway that restarts forgets its sessions and cuts the kept connection: the next poll does not notice."""
    envoy.upgrade("D7.6.175")
    polling = client(envoy, ENVOY_TOKEN=token_for(envoy))
    polling.inverters()
    envoy.upgrade("D7.6.175")
    assert json.loads(polling.inverters()) == envoy.inverters


def test_refused_token(envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A fetched token that the gateway refuses is replaced, at most once in ten minutes."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    polling = client(envoy, lambda: now[0], **account(enlighten))
    polling.inverters()
    for _ in range(3):
        envoy.tokens.refused |= set(enlighten.tokens)
        envoy.tokens.end_sessions()
        with pytest.raises(Refused, match=r"refuses the token that Enphase gave \(Enphase was asked 0 s ago\)"):
            polling.inverters()
        now[0] += LOGIN_EVERY_S
        polling.inverters()
    assert enlighten.logins == [200] * 4


def test_a_passing_refusal_costs_no_token(envoy: SimulatedEnvoy, enlighten: Enlighten, tmp_path: Path) -> None:
    """A gateway that refuses a good token for a while is read on, also by a new process, with Enphase unreachable."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    polling = client(envoy, lambda: now[0], tmp_path, **account(enlighten))
    polling.inverters()
    enlighten.statuses[LOGIN_PATH] = 503
    envoy.tokens.refused |= set(enlighten.tokens)
    envoy.tokens.end_sessions()
    for _ in range(5):
        now[0] += REFUSED_WAIT_S
        with pytest.raises(Refused):
            polling.inverters()
    assert enlighten.logins == [200, 503, 503]
    envoy.tokens.refused.clear()
    for one in (polling, client(envoy, lambda: now[0], tmp_path, **account(enlighten))):
        assert json.loads(one.inverters()) == envoy.inverters
    assert enlighten.logins == [200, 503, 503]


def test_a_passing_refusal_of_all_tokens(envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A gateway that refused the token that was kept, and a fresh one, gets that one again by the next attempt."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    polling = client(envoy, lambda: now[0], **account(enlighten))
    polling.inverters()
    now[0] += LOGIN_EVERY_S
    envoy.answers = {CHECK: Answer(401), INVERTERS: Answer(401)}
    with pytest.raises(Refused, match="refuses the token that Enphase gave"):
        polling.inverters()
    assert asked(envoy)[-3:] == [("/info", 200), (CHECK, 401), (CHECK, 401)]
    envoy.answers.clear()
    now[0] += REFUSED_WAIT_S
    assert json.loads(polling.inverters()) == envoy.inverters
    assert enlighten.logins == [200, 200]


def test_a_clock_that_was_ahead_costs_no_token(envoy: SimulatedEnvoy, enlighten: Enlighten, tmp_path: Path) -> None:
    """With a clock two years ahead a token is used while the gateway takes it, and is there when the clock is right."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    polling = client(envoy, lambda: now[0], tmp_path, **account(enlighten))
    polling.inverters()
    enlighten.statuses[LOGIN_PATH] = 503
    now[0] += 2 * 365 * 86_400
    assert json.loads(polling.inverters()) == envoy.inverters
    with pytest.raises(Refused, match="503"):
        client(envoy, lambda: now[0], tmp_path, **account(enlighten)).inverters()
    now[0] = time.time()
    for one in (polling, client(envoy, lambda: now[0], tmp_path, **account(enlighten))):
        assert json.loads(one.inverters()) == envoy.inverters
    assert enlighten.logins == [200, 503]


def test_no_token_will_do(
    envoy: SimulatedEnvoy, enlighten: Enlighten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that refuses all tokens costs one login at Enphase in ten minutes, on a full disk as well."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    polling = client(envoy, lambda: now[0], tmp_path, **account(enlighten))
    polling.inverters()
    now[0] += LOGIN_EVERY_S
    monkeypatch.setattr(os, "ftruncate", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    envoy.answers |= dict.fromkeys((CHECK, INVERTERS), Answer(401))
    for _ in range(3):
        with pytest.raises(Refused, match="the gateway refuses the token that Enphase gave"):
            polling.inverters()
    assert enlighten.logins == [200, 200]


def test_renewed_while_polling(envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A token that is due is renewed between two polls; one that is due and cannot be replaced yet is kept in peace."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    enlighten.lifetime = 29 * 86_400.0
    polling = client(envoy, lambda: now[0], **account(enlighten))
    for _ in range(3):
        polling.inverters()
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (1, 1)
    enlighten.lifetime = 365 * 86_400.0
    now[0] += LOGIN_EVERY_S
    for _ in range(3):
        polling.inverters()
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (2, 2)


def test_no_token_over_plain_http(envoy: SimulatedEnvoy) -> None:
    """Who answers plainly and wants a token does not get it, whatever became of https."""
    envoy.info = (
        f"<envoy_info><device><sn>{envoy.serial}</sn><software>{envoy.firmware}</software></device>"
        "<web-tokens>true</web-tokens></envoy_info>"
    )
    with pytest.raises(StreamLost, match="wants a token, which goes out by https only"):
        client(envoy, ENVOY_TOKEN=token_for(envoy)).reports()
    assert {request.path for request in envoy.requests} == {"/info"}


def test_pasted_token_is_tried_again(envoy: SimulatedEnvoy, certificate: Certificate) -> None:
    """A gateway that refused a good token while it was starting gets it again by the next attempt."""
    envoy.firmware, envoy.tls = "D7.6.175", certificate.context
    token = token_for(envoy)
    one = client(envoy, ENVOY_TOKEN=token)
    envoy.tokens.refused.add(token)
    for _ in range(2):
        with pytest.raises(Refused, match="the gateway refuses ENVOY_TOKEN"):
            one.reports()
    envoy.tokens.refused.clear()
    assert "lines" in one.reports()


@pytest.mark.parametrize(
    ("expires_in", "serial", "words"),
    [
        (-86_400, "122112345678", "ENVOY_TOKEN expired on "),
        (86_400, "122199999999", "ENVOY_TOKEN is for the gateway 122199999999, this one is 122112345678"),
    ],
)
def test_pasted_token(daemon: StartDaemon, envoy: SimulatedEnvoy, expires_in: int, serial: str, words: str) -> None:
    """A pasted token that is expired or for another gateway is named so, and never sent."""
    envoy.upgrade("D7.6.175")
    process = daemon("stream", ENVOY_TOKEN=make_token(serial, time.time() + expires_in))
    process.wait_for_line(f"ERROR Envoy: firmware D7.6.175: {words}")
    assert {path for path, _ in asked(envoy)} == {"/info"}


def test_no_login(daemon: StartDaemon, envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A login that fails is one ERROR of the daemon, in its own words."""
    envoy.upgrade("D7.6.175")
    enlighten.mfa = True
    process = daemon("stream", **account(enlighten))
    process.wait_for_line(r"ERROR Envoy: .* two-factor login \(MFA\): switch it off, or paste ENVOY_TOKEN")


def test_certificate(
    envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A self-signed certificate is accepted, its SHA-256 logged once, and again when it is another."""
    caplog.set_level("INFO")
    envoy.upgrade("D8.3.6086")
    polling = client(envoy, ENVOY_TOKEN=token_for(envoy))
    for _ in range(2):
        polling.inverters()
        polling.detect()
    envoy.tls, other = (made := self_signed(envoy.serial, tmp_path)).context, made.sha256
    envoy.upgrade("D8.3.6086")
    polling.detect()
    logged = [record.getMessage() for record in caplog.records if "SHA-256" in record.getMessage()]
    assert logged == [f"Envoy: its certificate has SHA-256 {digest}" for digest in (certificate.sha256, other)]


def test_pin(envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path) -> None:
    """With ENVOY_CERT_SHA256 only that certificate is accepted; a change is named: old, new, and what to do."""
    envoy.upgrade("D8.3.6086")
    spelled = ":".join(re.findall("..", certificate.sha256.upper()))
    polling = client(envoy, ENVOY_CERT_SHA256=spelled, ENVOY_TOKEN=token_for(envoy))
    polling.inverters()
    envoy.tls, new = (made := self_signed(envoy.serial, tmp_path)).context, made.sha256
    envoy.upgrade("D8.3.6086")
    before = asked(envoy)
    with pytest.raises(Refused) as raised:
        polling.inverters()
    assert str(raised.value) == (
        f"https://{envoy.host} shows another certificate than ENVOY_CERT_SHA256: it was {certificate.sha256}, it is "
        f"{new}. If the Envoy was replaced or updated, set ENVOY_CERT_SHA256={new}"
    )
    assert asked(envoy) == before  # the token was not sent
    client(envoy, ENVOY_CERT_SHA256=new, ENVOY_TOKEN=token_for(envoy)).inverters()


@pytest.mark.parametrize("status", [401, 403])
def test_stream_not_allowed(envoy: SimulatedEnvoy, status: int) -> None:
    """401 or 403 for the stream, with a token that check_jwt accepts, is NotAllowed, and reports are open."""
    envoy.upgrade("D8.3.6086")
    envoy.answers[STREAM] = Answer(status)
    reading = client(envoy, ENVOY_TOKEN=token_for(envoy))
    with pytest.raises(NotAllowed, match=f"D8.3.6086 does not open /stream/meter to this token .{status}"):
        reading.stream(1).__enter__()
    assert asked(envoy)[-3:] == [("/info", 200), (CHECK, 200), (STREAM, status)]
    assert json.loads(reading.reports()) == envoy.reports


def test_stream_missing(envoy: SimulatedEnvoy) -> None:
    """404 for the stream is Missing, with one login to make sure and none while it lasts."""
    envoy.upgrade("D8.3.6086")
    reading = client(envoy, ENVOY_TOKEN=token_for(envoy))
    with reading.stream(1):
        logins = asked(envoy).count((CHECK, 200))
    envoy.answers[STREAM] = Answer(404, "<html>")
    for _ in range(9):
        with pytest.raises(Missing, match=f"^https://{envoy.host}/stream/meter answers 404$"):
            reading.stream(1).__enter__()
    assert asked(envoy).count((CHECK, 200)) == logins + 1
    assert json.loads(reading.reports()) == envoy.reports


def test_session_does_not_vouch_for_token(envoy: SimulatedEnvoy) -> None:
    """A token that the gateway refuses is named so, though its session is still good."""
    envoy.upgrade("D8.3.6086")
    token = token_for(envoy)
    reading = client(envoy, ENVOY_TOKEN=token)
    reading.reports()
    envoy.tokens.refused.add(token)
    envoy.answers[STREAM] = Answer(401)
    with pytest.raises(Refused, match="the gateway refuses ENVOY_TOKEN: put ENPHASE_EMAIL"):
        reading.stream(1).__enter__()


@pytest.mark.parametrize("challenge", ["\xfe\xac?\xff", 'Digest qop="auth"', "Digest", ""])
def test_garbage_challenge(envoy: SimulatedEnvoy, challenge: str) -> None:
    """A 401 without a usable challenge means bad credentials (R3.9.36)."""
    envoy.answers[INVERTERS] = Answer(401, headers={"WWW-Authenticate": challenge} if challenge else {})
    with pytest.raises(Refused, match=r"refuses user installer \(401\)"):
        client(envoy).inverters()


def test_garbage_challenge_of_r3(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """R3.9.36 with a wrong password: an ERROR, no traceback."""
    fixtures.load(envoy, "R3.9.36")
    process = daemon("inverters", ENVOY_INVERTERS_PASSWORD="wrong-password")
    process.wait_for_line("ERROR Envoy: .*firmware R3.9.36, refuses user envoy")
    assert process.terminate()[0] == 0


def test_reset_after_401(envoy: SimulatedEnvoy) -> None:
    """R/D3.18 resets a kept connection after its 401 (HA 126162): the question is asked again at once."""
    envoy.reset_after_401 = True
    polling = client(envoy)
    for _ in range(2):
        assert json.loads(polling.inverters()) == envoy.inverters


def test_stale_nonce(envoy: SimulatedEnvoy) -> None:
    """A nonce that goes stale is replaced by the one of the next challenge."""
    envoy.digest.nonce_uses = 2
    polling = client(envoy)
    for _ in range(7):
        assert json.loads(polling.inverters()) == envoy.inverters
    assert [status for path, status in asked(envoy) if path == INVERTERS] == [401, 200, 200] * 3 + [401, 200]


def test_length_and_chunked(envoy: SimulatedEnvoy, caplog: pytest.LogCaptureFixture) -> None:
    """An answer with both Content-Length and chunked is read by its chunks."""
    caplog.set_level("ERROR", "urllib3")
    info = fixtures.text("D5.0.62", "info.xml").encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    with FaultProxy(*envoy.address) as proxy:
        proxy.canned(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(info), info))
        assert client(envoy, ENVOY_HOST=f"{proxy.host}:{proxy.port}").detect().firmware == "D5.0.62"


def test_missing_production(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Without production CTs the section may be missing: the others are posted."""
    fixtures.load(envoy, "D8.3.6086")
    daemon("stream", ENVOY_TOKEN=token_for(envoy))
    envoy.wait_for_stream()
    envoy.emit(fixtures.events("D8.3.6086", "stream_meter_without_production.txt")[0])
    wait_for_rows(emoncms, 1)
    assert {name.partition("_")[0] for name in emoncms.rows[0].inputs} == {"cons", "net"}
