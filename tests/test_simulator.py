"""The simulated gateway is like a real one: its answers agree, and it refuses what a gateway refuses."""

import json
import time
from collections.abc import Iterator

import pytest
import requests
from requests.auth import HTTPDigestAuth

from envoy2emon.demo import site
from envoy2emon.demo.gateway import METERS, REPORTS, SimulatedEnvoy, make_token
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


def ask(envoy: SimulatedEnvoy, path: str) -> requests.Response:
    """Ask as the firmware requires, with the installer's password or an owner's token."""
    if envoy.token_based:
        headers = {"Authorization": f"Bearer {make_token(envoy.serial, time.time() + 60)}"}
        return requests.get(f"https://{envoy.host}{path}", headers=headers, verify=False, timeout=10)
    auth = HTTPDigestAuth("installer", envoy.password)
    return requests.get(f"http://{envoy.host}{path}", auth=auth, timeout=10)


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


def test_an_answer_to_a_challenge_is_good_once(envoy: SimulatedEnvoy) -> None:
    """A digest answer that is sent again is refused, as by a real gateway."""
    used = {"Authorization": str(ask(envoy, INVERTERS).request.headers["Authorization"])}
    assert requests.get(f"http://{envoy.host}{INVERTERS}", headers=used, timeout=10).status_code == 401


def test_a_connection_that_is_kept_after_401_is_reset(envoy: SimulatedEnvoy) -> None:
    """On request the gateway resets the connection after its challenge, as R/D3.18 does."""
    envoy.reset_after_401 = True
    with pytest.raises(requests.ConnectionError):
        ask(envoy, INVERTERS)
