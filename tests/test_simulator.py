"""The simulated Envoy is like a gateway: clients of others can use it, and it refuses what a gateway refuses."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from pyenphase import Envoy, EnvoyData
from requests.auth import HTTPDigestAuth

from envoy2emon.demo.gateway import Answer, Request, SimulatedEnvoy, make_token
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests import fixtures
from tests.certificates import Certificate, self_signed
from tests.enlighten import Enlighten

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
STREAM, INVERTERS, REPORTS = "/stream/meter", "/api/v1/production/inverters", "/ivp/meters/reports/"
TIMEOUT = 10


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return one gateway's certificate."""
    return self_signed("122112345678", tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a simulated Envoy of firmware D5.0.62 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as simulated:
        yield simulated


def get(envoy: SimulatedEnvoy, path: str, user: str = "installer", password: str | None = None) -> requests.Response:
    """Ask by digest, firmware < 7."""
    auth = HTTPDigestAuth(user, password or {"installer": envoy.password, "envoy": envoy.serial[-6:]}[user])
    return requests.get(f"http://{envoy.host}{path}", auth=auth, timeout=TIMEOUT, stream=path == STREAM)


def get_secure(envoy: SimulatedEnvoy, path: str, token: str = "", **kwargs: Any) -> requests.Response:  # noqa: ANN401
    """Ask with a token, firmware >= 7."""
    headers = {"Authorization": f"Bearer {token or owner_token(envoy)}"}
    url = f"https://{envoy.host}{path}"
    return requests.get(url, headers=headers, verify=False, timeout=TIMEOUT, stream=path == STREAM, **kwargs)


def owner_token(envoy: SimulatedEnvoy, user: str = "owner", lifetime: float = 86_400) -> str:
    """Make a token for this gateway."""
    return make_token(envoy.serial, time.time() + lifetime, user)


async def read_by_pyenphase(host: str, **credentials: str) -> EnvoyData:
    """Log in and read everything, as Home Assistant does."""
    client = Envoy(host)
    try:
        await client.setup()
        await client.authenticate(**credentials)
        return await client.update()
    finally:
        await client.close()


@pytest.mark.parametrize("firmware", ["D5.0.62", "R3.9.36"])
def test_pyenphase_below_7(envoy: SimulatedEnvoy, firmware: str) -> None:
    """A client that others wrote logs in by digest and reads inverters, and meters where there are any."""
    fixtures.load(envoy, firmware)
    data = asyncio.run(read_by_pyenphase(envoy.host, username="envoy", password=""))
    assert {serial: unit.last_report_watts for serial, unit in data.inverters.items()} == {
        unit["serialNumber"]: unit["lastReportWatts"] for unit in envoy.inverters
    }
    if not envoy.metered:
        assert not data.ctmeters
        return
    production = json.loads(envoy.event)["production"]
    meter, second_phase = data.ctmeters["production"], data.ctmeters_phases["production"]["L2"]
    assert meter
    assert meter.active_power == round(sum(phase["p"] for phase in production.values()))
    assert second_phase
    assert second_phase.voltage == production["ph-b"]["v"]


@pytest.mark.parametrize("firmware", ["D7.0.88", "D7.6.175", "D8.3.6086"])
def test_pyenphase_from_7_on(envoy: SimulatedEnvoy, firmware: str) -> None:
    """A client that others wrote logs in by token over TLS and reads inverters and meters."""
    fixtures.load(envoy, firmware)
    data = asyncio.run(read_by_pyenphase(envoy.host, token=owner_token(envoy)))
    assert {serial: unit.last_report_date for serial, unit in data.inverters.items()} == {
        unit["serialNumber"]: unit["lastReportDate"] for unit in envoy.inverters
    }
    net = json.loads(envoy.event)["net-consumption"]
    meter = data.ctmeters["net-consumption"]
    assert meter
    assert meter.active_power == round(sum(phase["p"] for phase in net.values()))
    assert Request(envoy.requests[1].at, "GET", "/auth/check_jwt", 200, "owner") == envoy.requests[1]


@pytest.mark.parametrize("path", [STREAM, INVERTERS])
def test_wrong_password(envoy: SimulatedEnvoy, path: str) -> None:
    """A wrong password is refused with a fresh challenge, in the words on record."""
    answer = get(envoy, path, password="wrong")
    assert answer.status_code == 401
    assert answer.headers["Connection"] == "close"
    assert answer.headers["WWW-Authenticate"].startswith('Digest qop="auth", realm="enphaseenergy.com", nonce="')
    assert envoy.open_streams == 0


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_stream(envoy: SimulatedEnvoy, newline: str, *, chunked: bool) -> None:
    """The installer's password opens the stream; its bytes are as they were given, in either framing."""
    envoy.chunked, envoy.newline = chunked, newline
    with get(envoy, STREAM) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert ("Transfer-Encoding" in answer.headers) is chunked
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
        envoy.emit_raw(b"data: {cut")
        envoy.end_streams()
        assert answer.raw.read() == f"data: {THREE_PHASE_EVENT}{newline * 2}data: {{cut".encode()
    envoy.wait_for(lambda: envoy.open_streams == 0)
    assert [(request.status, request.user) for request in envoy.requests] == [(401, None), (200, "installer")]


def test_client_leaves(envoy: SimulatedEnvoy) -> None:
    """A client that leaves is noticed though no event comes."""
    with get(envoy, STREAM):
        envoy.wait_for_stream()
    envoy.wait_for(lambda: envoy.open_streams == 0)


def test_envoy_user(envoy: SimulatedEnvoy) -> None:
    """User envoy reads the inverters with the last six digits, where the firmware lets it, and never the stream."""
    assert get(envoy, INVERTERS, "envoy").json() == envoy.inverters
    assert get(envoy, STREAM, "envoy").status_code == 401
    envoy.digest.envoy_reads_inverters = False
    assert get(envoy, INVERTERS, "envoy").status_code == 401
    assert get(envoy, INVERTERS, "installer").json() == envoy.inverters


def test_nonce(envoy: SimulatedEnvoy) -> None:
    """A nonce is good for so many requests, then it is stale; an answer to it cannot be sent twice."""
    envoy.digest.nonce_uses = 2
    auth = HTTPDigestAuth("installer", envoy.password)
    answers = [requests.get(f"http://{envoy.host}{INVERTERS}", auth=auth, timeout=TIMEOUT) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [request.status for request in envoy.requests] == [401, 200, 200, 401, 200, 200]
    again = {"Authorization": answers[-1].request.headers["Authorization"]}
    assert requests.get(f"http://{envoy.host}{INVERTERS}", headers=again, timeout=TIMEOUT).status_code == 401


def test_authorization_is_for_one_path(envoy: SimulatedEnvoy) -> None:
    """An Authorization header made for one path does not open another."""
    made = get(envoy, INVERTERS).request.headers["Authorization"].replace("nc=00000001", "nc=00000002")
    for path in (INVERTERS, REPORTS):
        answer = requests.get(f"http://{envoy.host}{path}", headers={"Authorization": made}, timeout=TIMEOUT)
        assert answer.status_code == 401


def test_garbage_challenge(envoy: SimulatedEnvoy) -> None:
    """R3.9.36 answers bad credentials with a WWW-Authenticate that is no challenge."""
    fixtures.load(envoy, "R3.9.36")
    assert "Digest" not in get(envoy, INVERTERS, password="wrong").headers["WWW-Authenticate"]
    assert get(envoy, INVERTERS).json() == envoy.inverters
    assert get(envoy, STREAM).status_code == 404


def test_reset_after_401(envoy: SimulatedEnvoy) -> None:
    """R/D3.18 resets a kept-alive connection after the 401."""
    envoy.reset_after_401 = True
    with pytest.raises(requests.ConnectionError):
        get(envoy, INVERTERS)
    assert [request.status for request in envoy.requests] == [401]


def test_upgrade_while_running(envoy: SimulatedEnvoy) -> None:
    """An upgrade keeps host and port: the stream ends, digest and HTTP are gone, tokens and TLS are there."""
    with get(envoy, STREAM) as answer:
        envoy.wait_for_stream()
        envoy.upgrade("D8.3.6086")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(answer.iter_content(None))
    assert b"<web-tokens>true</web-tokens>" in get_secure(envoy, "/info").content
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT)
    envoy.redirects = True
    answer = requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (301, "https://localhost")


def test_no_tls_below_7(envoy: SimulatedEnvoy) -> None:
    """Below firmware 7 there is no TLS, and /info has no web-tokens."""
    with pytest.raises(requests.ConnectionError):
        get_secure(envoy, "/info")
    assert "web-tokens" not in requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT).text


@pytest.mark.parametrize(
    ("firmware", "user", "status"),
    [
        ("D7.0.88", "owner", 200),
        ("D7.6.175", "owner", 401),
        ("D7.6.175", "installer", 200),
        ("D8.3.6086", "owner", 200),
    ],
)
def test_who_reads_the_stream(envoy: SimulatedEnvoy, firmware: str, user: str, status: int) -> None:
    """Installers read the stream always, owners on D7.0.88 and D8.3.6086; the refusal is HTML without a challenge."""
    fixtures.load(envoy, firmware)
    with get_secure(envoy, STREAM, owner_token(envoy, user)) as answer:
        assert answer.status_code == status
        assert "WWW-Authenticate" not in answer.headers
        assert answer.headers["Content-Type"] == ("text/html" if status == 401 else "text/event-stream")
    assert get_secure(envoy, REPORTS).json() == envoy.reports


def test_bad_tokens(envoy: SimulatedEnvoy) -> None:
    """A token that is expired, for another gateway, revoked, or none at all is refused."""
    envoy.upgrade("D7.6.175")
    revoked = owner_token(envoy)
    envoy.tokens.refused.add(revoked)
    expired, foreign = owner_token(envoy, lifetime=-1), make_token("122199999999", time.time() + 60)
    for token in (expired, foreign, revoked, "a.b.c", "nonsense"):
        assert get_secure(envoy, "/auth/check_jwt", token).status_code == 401


def test_sessions(envoy: SimulatedEnvoy) -> None:
    """check_jwt gives a session whose cookie is enough; one too many is answered 503, a restart ends all."""
    envoy.upgrade("D7.6.175")
    envoy.tokens.max_sessions = 1
    first = get_secure(envoy, "/auth/check_jwt")
    assert "<h2>Valid token.</h2>" in first.text
    cookies = {"sessionId": first.cookies["sessionId"]}
    assert get_secure(envoy, "/auth/check_jwt").status_code == 503
    assert get_secure(envoy, INVERTERS, "no token", cookies=cookies).status_code == 200
    assert get_secure(envoy, "/auth/check_jwt", cookies=cookies).cookies["sessionId"] == cookies["sessionId"]
    envoy.upgrade("D7.6.175")
    assert get_secure(envoy, INVERTERS, "no token", cookies=cookies).status_code == 401


def test_canned_answers(envoy: SimulatedEnvoy) -> None:
    """A canned answer takes the place of everything else, its Content-Type may be missing."""
    envoy.answers["/info"] = Answer(200, "<envoy_info/>", None)
    answer = requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT)
    assert (answer.text, "Content-Type" in answer.headers) == ("<envoy_info/>", False)
    envoy.inverters = "[]"
    assert get(envoy, INVERTERS).text == "[]"


def test_source(certificate: Certificate) -> None:
    """A source's events go to the stream, and the reports tell the same."""
    values = iter(range(1, 1_000_000))

    def event() -> str:
        return THREE_PHASE_EVENT.replace('"p":54.745', f'"p":{next(values)}')

    simulated = SimulatedEnvoy("D7.0.88", tls=certificate.context, source=event, interval=0.02)
    with simulated, get_secure(simulated, STREAM) as answer:
        data = answer.raw.read1()
        watts = json.loads(data.partition(b"\n")[0].removeprefix(b"data: "))["production"]["ph-a"]["p"]
        report = get_secure(simulated, REPORTS).json()[0]
        assert (report["reportType"], len(report["lines"])) == ("production", 3)
        assert report["lines"][0]["actPower"] >= watts
        assert abs(report["createdAt"] - time.time()) < 5


def test_same_port_after_a_restart() -> None:
    """A gateway that was off comes back at the same address."""
    envoy = SimulatedEnvoy()
    for _ in range(2):
        with envoy:
            assert requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT).status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{envoy.host}/info", timeout=TIMEOUT)
    assert len({envoy.host}) == 1
    assert envoy.connections == 2


@pytest.mark.parametrize("firmware", fixtures.FIRMWARES)
def test_fixtures(firmware: str) -> None:
    """Fixtures hold together: p_total = p_production + p_net, and no serial number twice."""
    serials = [unit["serialNumber"] for unit in fixtures.inverters(firmware)]
    assert len(set(serials)) == len(serials)
    for text in fixtures.events(firmware) if firmware != "R3.9.36" else ():
        event = json.loads(text)
        for phase, total in event["total-consumption"].items():
            assert total["p"] == pytest.approx(event["production"][phase]["p"] + event["net-consumption"][phase]["p"])


def test_enlighten() -> None:
    """A login with the right password gives a session, and the session a token; every refusal is as on record."""
    with Enlighten() as enlighten:

        def login(password: str) -> requests.Response:
            form = {"user[email]": enlighten.email, "user[password]": password}
            return requests.post(enlighten.login_url, data=form, timeout=TIMEOUT)

        session = login(enlighten.password).json()["session_id"]
        wanted = {"session_id": session, "serial_num": "122112345678", "username": enlighten.email}
        token = requests.post(enlighten.token_url, json=wanted, timeout=TIMEOUT).text
        assert token == enlighten.tokens[0]
        assert (
            requests.post(enlighten.token_url, json={**wanted, "session_id": "x"}, timeout=TIMEOUT).status_code == 401
        )
        assert login("wrong").status_code == 401
        enlighten.mfa = True
        assert login(enlighten.password).json() == {"success": True, "isBlocked": False}
        enlighten.blocked = True
        assert login(enlighten.password).json() == {"success": False, "isBlocked": True}
        enlighten.statuses["/login/login.json"] = 503
        assert login(enlighten.password).status_code == 503
        assert enlighten.logins == [200, 401, 200, 200, 503]
