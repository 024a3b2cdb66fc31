"""What `envoy2emon check` says of EmonCMS, of a proxy in front of it, and of the inputs that have arrived there."""

import time
from collections.abc import Iterator

import pytest

from envoy2emon.demo.emoncms import (
    MARIADB_DOWN,
    PHP_DOWN,
    Answer,
    Answers,
    DropsAuthorization,
    Failure,
    RedirectsToHttps,
    StandInEmonCMS,
)
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.certificates import Certificate
from tests.checks import Check
from tests.emoncms import bulk

OLD = -900
METERS, INVERTERS = "Envoy-S", "Envoy-S-inverters"


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that sends twenty events a second."""
    with SimulatedEnvoy(source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


def test_where_emoncms_is_not(check: Check, emoncms: StandInEmonCMS, envoy: SimulatedEnvoy) -> None:
    """A wrong name, a closed port, a wrong path and another server are told apart, each with its cure."""
    for name, cure in {"no-such-emonpi.local": "avahi-daemon", "no-such-emonpi": "in EMONCMS_URL"}.items():
        answers = check(EMONCMS_URL=f"http://{name}/emoncms")
        answers.say("FAIL", "EmonCMS", "cannot be resolved", "Use the address of its computer in EMONCMS_URL", cure)
        assert "key" not in answers.subjects()
    answers = check(EMONCMS_URL="http://127.0.0.1:1/emoncms")
    answers.say("FAIL", "EmonCMS", "refuses the connection", "its web server running")
    base = emoncms.url.removesuffix("/emoncms")
    for wrong in (base, f"{base}/emon"):
        answers = check(EMONCMS_URL=wrong)
        answers.say("FAIL", "EmonCMS", f"There is one at {emoncms.url}, so set EMONCMS_URL={emoncms.url}")
    answers = check(EMONCMS_URL=f"http://{envoy.host}/emoncms")
    answers.say("FAIL", "EmonCMS", "there is no EmonCMS", "is the path in EMONCMS_URL right?")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (PHP_DOWN, ["answers 502 Bad Gateway", "Is its PHP in trouble? Look at EmonCMS in the browser"]),
        (Answers(403, "<h1>Forbidden</h1>"), ["answers 403", "or a proxy in front of it, forbids this"]),
        (MARIADB_DOWN, ["its database (MariaDB or Redis) is down", "mysqli_sql_exception"]),
    ],
)
def test_emoncms_in_trouble(check: Check, emoncms: StandInEmonCMS, fault: Failure, told: list[str]) -> None:
    """A failing EmonCMS is reported without HTML, and without asking whether its address or the key is right."""
    emoncms.fault = fault
    whole = check()
    whole.say("FAIL", "EmonCMS", *told)
    emoncms.fault = None
    emoncms.fail_next(fault)
    halfway = check()
    halfway.say("ok", "EmonCMS")
    halfway.say("FAIL", "EmonCMS", *told)
    for line in [line for line in whole.lines + halfway.lines if line.startswith("FAIL")]:
        assert "<" not in line
        assert "EMONCMS_URL" not in line
        assert "key" not in line


def test_keys(check: Check, emoncms: StandInEmonCMS) -> None:
    """The read key and an unknown key are told apart; the write key is ok, in 2016's versions too; no input is made."""
    check(EMONCMS_APIKEY=emoncms.read_key).say("FAIL", "key", "is the read key", "set the write key", "/check/.env")
    check(EMONCMS_APIKEY="unknown").say("FAIL", "key", "does not know EMONCMS_APIKEY (401)", "My Account")
    for emoncms.account.plain_errors in (False, True):
        answers = check()
        answers.say("ok", "key", "may write")
        answers.say("warn", "inputs", "none from envoy2emon in node Envoy-S yet", "systemctl status envoy2emon")
    assert emoncms.account.nodes == {}


def test_version_that_is_not_told(check: Check, emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EmonCMS without a version is known by its answer to the key; a router's login page is not mistaken for it."""
    emoncms.fault = Answers(401, "Unauthorized")
    check().say("FAIL", "EmonCMS", "asks for a password (401)")
    emoncms.fault = None
    answer, page = emoncms.answer, Answer(200, "<html>Log in</html>")
    monkeypatch.setattr(emoncms, "answer", lambda path, *rest: page if "version" in path else answer(path, *rest))
    check().say("ok", "EmonCMS", "it does not tell its version")
    emoncms.fault = Answers(200, page.body)
    check().say("FAIL", "EmonCMS", "answers an HTML page: is EMONCMS_URL right")


def test_proxy_that_drops_the_key(check: Check, emoncms: StandInEmonCMS) -> None:
    """A proxy that drops the Authorization header is detected, and check says what to add to its settings."""
    emoncms.fault = DropsAuthorization()
    answers = check()
    answers.say("FAIL", "key", "drops that header", "SetEnvIf Authorization", "CGIPassAuth On", "proxy_set_header")
    assert "read key" not in str(answers.lines)


def test_proxy_with_its_own_certificate(check: Check, emoncms: StandInEmonCMS, certificate: Certificate) -> None:
    """If a proxy redirects to https with a self-signed certificate, check says what to set, and those settings work."""
    with StandInEmonCMS(tls=certificate.context) as secure:
        emoncms.fault = RedirectsToHttps(secure.url.removesuffix("/emoncms"))
        pin = f"EMONCMS_CERT_SHA256={certificate.sha256}"
        check(EMONCMS_URL=emoncms.url).say("FAIL", "EmonCMS", f"Set EMONCMS_URL={secure.url}", "self-signed", pin)
        check(EMONCMS_URL=secure.url).say("FAIL", "EmonCMS", "does not trust", "self-signed", f"set {pin}")
        answers = check(EMONCMS_URL=secure.url, EMONCMS_CERT_SHA256="0" * 64)
        answers.say("FAIL", "EmonCMS", "a certificate other than the one set", "renewed", pin)
        answers = check(EMONCMS_URL=secure.url, EMONCMS_CERT_SHA256=certificate.sha256)
        answers.say("ok", "key")
        answers = check(EMONCMS_URL=emoncms.url, EMONCMS_CERT_SHA256=certificate.sha256)
        answers.say("FAIL", "EmonCMS", f"Set EMONCMS_URL={secure.url}")
        assert "self-signed" not in str(answers.lines)


def test_http_taken_for_https(check: Check, emoncms: StandInEmonCMS) -> None:
    """An https:// address of a server that speaks only http is not taken for a problem with a certificate."""
    answers = check(EMONCMS_URL=emoncms.url.replace("http:", "https:"))
    answers.say("FAIL", "EmonCMS", "TLS", "begin with http:// in the browser?")


def test_both_daemons_arrive(check: Check, emoncms: StandInEmonCMS, envoy: SimulatedEnvoy) -> None:
    """The inputs are ok only if both daemons' rows arrive: the meters' current ones, the inverters' newest report."""
    newest = max(unit["lastReportDate"] for unit in envoy.inverters) - int(time.time())
    meters, inverters = [0, METERS, {"prod_ph-a_wNow": 1}], [newest, INVERTERS, {"1_wNow": 1, "1_wMax": 2, "x": 3}]
    sensor = [0, METERS, {"temperature": 21, "net_power": 1}]
    bulk(emoncms, [sensor, inverters])
    answers = check()
    answers.say("warn", "inputs", "none from envoy2emon in node Envoy-S yet; 2 in node Envoy-S-inverters, the newest")
    answers.say("warn", "inputs", "Is it running? sudo systemctl status envoy2emon")
    bulk(emoncms, [[OLD, METERS, {"prod_ph-a_wNow": 1}], sensor])
    check().say("warn", "inputs", "1 in node Envoy-S, the newest 15 min old", "systemctl status envoy2emon")
    bulk(emoncms, [meters])
    check().say("ok", "inputs", "1 in node Envoy-S, the newest")
    bulk(emoncms, [[OLD, INVERTERS, {"1_wNow": 1, "1_wMax": 2}]])
    check().say("warn", "inputs", "2 in node Envoy-S-inverters, the newest 15 min old", "status envoy2emon_inv")
    envoy.inverters = [{**unit, "lastReportDate": unit["lastReportDate"] - 900} for unit in envoy.inverters]
    check().say("ok", "inputs", "2 in node Envoy-S-inverters, the newest 15 min old")
    emoncms.account.restart_redis()
    check().say("warn", "inputs", "1 in node Envoy-S, without a date")


def test_both_daemons_in_one_node(check: Check, emoncms: StandInEmonCMS) -> None:
    """If both daemons post to one node, the inverters' inputs are not taken for the meters'."""
    bulk(emoncms, [[OLD, METERS, {"prod_ph-a_wNow": 1}], [0, METERS, {"1_wNow": 1}]])
    answers = check(EMONCMS_INVERTERS_NODE=METERS)
    answers.say("warn", "inputs", "1 in node Envoy-S, the newest 15 min old; 1 in node Envoy-S, the newest ")


def test_no_place_for_a_node(check: Check, emoncms: StandInEmonCMS) -> None:
    """If EmonCMS holds as many nodes as it can and one of ours is missing, check says so."""
    bulk(emoncms, [[0, f"node{number}", {"a": 1}] for number in range(31)] + [[0, METERS, {"prod_ph-a_wNow": 1}]])
    answers = check()
    answers.say("FAIL", "inputs", "EmonCMS holds 32 nodes, which is its limit, and none of them is Envoy-S-inverters:")
    bulk(emoncms, [[0, METERS, {"1_wNow": 1}]])
    assert check(EMONCMS_INVERTERS_NODE=METERS).words("inputs") == {"ok"}
