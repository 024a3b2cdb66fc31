"""The simulated gateway is like a real one: its answers agree, and it refuses what a gateway refuses."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.auth import HTTPDigestAuth

from envoy2emon.demo import site
from envoy2emon.demo.gateway import CHECK_JWT, METERS, REPORTS, SimulatedEnvoy, make_token
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests import fixtures
from tests.certificates import Certificate

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a simulated gateway of firmware D5.0.62 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as simulated:
        yield simulated


def ask(envoy: SimulatedEnvoy, path: str, credentials: str = "", user: str = "", **more: Any) -> requests.Response:  # noqa: ANN401
    """Ask as the firmware requires, with a password (by default the installer's) or a token (by default an owner's)."""
    more |= {"timeout": 10, "stream": path == STREAM}
    if envoy.token_based:
        headers = {"Authorization": f"Bearer {credentials or token(envoy, user or 'owner')}"}
        return requests.get(f"https://{envoy.host}{path}", headers=headers, verify=False, **more)
    auth = HTTPDigestAuth(user or "installer", credentials or envoy.password)
    return requests.get(f"http://{envoy.host}{path}", auth=auth, **more)


def token(envoy: SimulatedEnvoy, user: str = "owner", lifetime: float = 86_400) -> str:
    """Make a token for this gateway."""
    return make_token(envoy.serial, time.time() + lifetime, user)


@pytest.mark.parametrize("firmware", [firmware for firmware in fixtures.FIRMWARES if firmware != "R3.9.36"])
def test_all_answers_tell_of_the_same_watts(envoy: SimulatedEnvoy, firmware: str) -> None:
    """The reports have the stream's sections, phases and watts, and the list of meters matches the reports."""
    fixtures.load(envoy, firmware)
    event = json.loads(envoy.event)
    reports = {report["reportType"]: report for report in ask(envoy, REPORTS).json()}
    assert reports.keys() == event.keys()
    for section, phases in event.items():
        used = [phase["p"] for phase in phases.values() if phase["v"]]
        assert [line["actPower"] for line in reports[section]["lines"]][: len(used)] == used
    assert [(meter["measurementType"], meter["phaseCount"]) for meter in ask(envoy, METERS).json()] == [
        (kind, len(reports[kind]["lines"])) for kind in ("production", "net-consumption")
    ]


@pytest.mark.parametrize(("firmware", "metered", "meters"), [("R3.9.36", None, ""), ("D7.6.175", False, "[]")])
def test_no_meters(envoy: SimulatedEnvoy, firmware: str, metered: bool | None, meters: str) -> None:  # noqa: FBT001
    """Firmware 3 has no meters and knows none; later gateways without meters say so, and their list is empty."""
    envoy.upgrade(firmware)
    envoy.metered = metered
    info = ask(envoy, "/info").text
    assert ("<imeter>" in info, "<imeter>false</imeter>" in info) == (bool(meters), bool(meters))
    assert [ask(envoy, path).status_code for path in (STREAM, REPORTS)] == [404, 404]
    assert ask(envoy, METERS).text == meters


def test_answers_have_the_names_on_record() -> None:
    """Made-up answers have names that gateways sent: all of an inverter's, and of a report's those that are read."""
    report, unit = (
        json.loads(fixtures.text("D8.3.6086", name))[0] for name in ("ivp_meters_reports.json", "inverters.json")
    )
    made = site.reports(THREE_PHASE_EVENT, 1)[0]
    assert made.keys() <= report.keys()
    assert made["lines"][0].keys() <= report["lines"][0].keys()
    assert site.inverters(2, 1)[0].keys() == unit.keys()


def test_digest(envoy: SimulatedEnvoy) -> None:
    """User envoy may read the inverters, but not the stream; a wrong password or an answer used before is refused."""
    digits = envoy.serial[-6:]
    assert ask(envoy, STREAM, digits, "envoy").status_code == 401
    refusal = ask(envoy, STREAM, "wrong")
    assert (refusal.status_code, refusal.headers["Connection"], envoy.open_streams) == (401, "close", 0)
    assert refusal.headers["WWW-Authenticate"].startswith('Digest qop="auth", realm="enphaseenergy.com", nonce="')
    read = ask(envoy, INVERTERS, digits, "envoy")
    assert read.json() == envoy.inverters
    used = {"Authorization": str(read.request.headers["Authorization"])}
    assert requests.get(f"http://{envoy.host}{INVERTERS}", headers=used, timeout=10).status_code == 401


def test_a_connection_that_is_kept_after_401_is_reset(envoy: SimulatedEnvoy) -> None:
    """On request the gateway resets the connection after its challenge, as R/D3.18 does."""
    envoy.reset_after_401 = True
    with pytest.raises(requests.ConnectionError):
        ask(envoy, INVERTERS)


@pytest.mark.parametrize(
    ("firmware", "user", "status"),
    [("D7.6.175", "owner", 401), ("D7.6.175", "installer", 200), ("D8.3.6086", "owner", 200)],
)
def test_who_reads_the_stream(envoy: SimulatedEnvoy, firmware: str, user: str, status: int) -> None:
    """Installers may always read the stream, owners on some firmware; a refusal is HTML without a challenge."""
    envoy.upgrade(firmware)
    with ask(envoy, STREAM, user=user) as answer:
        assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (status, False)
        assert answer.headers["Content-Type"] == ("text/html" if status == 401 else "text/event-stream")


def test_tokens_and_sessions(envoy: SimulatedEnvoy) -> None:
    """Bad tokens are refused; a session's cookie is enough, one session too many gets 503, a restart ends them all."""
    envoy.upgrade("D7.6.175")
    revoked = token(envoy)
    envoy.tokens.refused.add(revoked)
    foreign = make_token("122199999999", time.time() + 60)
    for bad in (token(envoy, lifetime=-1), foreign, revoked, "nonsense"):
        assert ask(envoy, CHECK_JWT, bad).status_code == 401
    envoy.tokens.max_sessions = 1
    first = ask(envoy, CHECK_JWT)
    assert "<h2>Valid token.</h2>" in first.text
    cookies = {"sessionId": first.cookies["sessionId"]}
    assert ask(envoy, CHECK_JWT).status_code == 503
    assert ask(envoy, INVERTERS, "no token", cookies=cookies).status_code == 200
    envoy.upgrade("D7.6.175")
    assert ask(envoy, INVERTERS, "no token", cookies=cookies).status_code == 401
