"""`envoy2emon check` as the owner runs it: the settings, the gateway and its site, and what check leaves behind."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envoy2emon.check import emoncms as check_emoncms
from envoy2emon.check.verdict import Report, fail, ok
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy, make_token
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.certificates import Certificate
from tests.checks import Check
from tests.conftest import StartDaemon
from tests.daemons import PROJECT, Daemon, altered, write_settings
from tests.emoncms import bulk
from tests.enlighten import Enlighten
from tests.faultproxy import FaultProxy
from tests.fixtures import SITES, load_site

YEAR = 365 * 86_400
ORDER = "settings name ports firmware login meters reading inverters EmonCMS key inputs clocks backlog units"
ARRIVED = [[0, "Envoy-S", {"prod_ph-a_wNow": 1}], [0, "Envoy-S-inverters", {"122000000001_wNow": 1}]]


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that sends twenty events a second."""
    with SimulatedEnvoy(source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


@pytest.fixture
def gateway7(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway that needs a token and denies owners the stream."""
    tls = certificate.context
    with SimulatedEnvoy("D7.6.175", tls=tls, source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


def at(gateway: SimulatedEnvoy, **changes: object) -> dict[str, Any]:
    """Return the settings for a gateway of firmware 7 and an owner's token."""
    token = make_token(gateway.serial, time.time() + YEAR)
    return {"ENVOY_HOST": gateway.host, "ENVOY_TOKEN": token} | changes


def test_all_is_well(check: Check, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """When nothing is wrong, each answer is ok, in order, and check leaves no trace in the gateway or EmonCMS."""
    bulk(emoncms, ARRIVED)
    answers = check()
    assert answers.subjects() == ORDER
    assert {line.split()[0] for line in answers.lines} == {"ok"}
    answers.say("ok", "settings", "/check/.env")
    answers.say("ok", "name", "127.0.0.1")
    answers.say("ok", "ports", f"{envoy.address[1]} is open")
    answers.say("ok", "firmware", "D5.0.62", "...5678", "ENVOY_PASSWORD")
    answers.say("ok", "login", "user installer is accepted")
    answers.say("ok", "meters", "production, 3 phases, on")
    answers.say("ok", "meters", "net-consumption, 3 phases, on")
    answers.say("ok", "meters", "what is posted (prod,cons,net) is measured")
    answers.say("ok", "reading", "production 147 W (ph-a 55, ph-b 50, ph-c 42)", "total-consumption 2192 W", "2045 W")
    watts = sum(unit["lastReportWatts"] for unit in envoy.inverters)
    answers.say("ok", "inverters", f" 12 with {watts} W; newest report", "oldest 5 min ago")
    answers.say("ok", "EmonCMS", "EmonCMS 11.16.8")
    answers.say("ok", "key", "may write")
    answers.say("ok", "inputs", "1 in node Envoy-S,", "1 in node Envoy-S-inverters,")
    answers.say("ok", "clocks", "the gateway's is the same, EmonCMS's is the same")
    answers.say("ok", "backlog", "no saved rows wait")
    answers.say("ok", "units", "systemd does not run here")
    assert [len(inputs) for inputs in emoncms.account.nodes.values()] == [1, 1]
    assert emoncms.account.applied == 2
    envoy.wait_for(lambda: envoy.open_streams == 0)


def test_reader_that_has_seen_enough(check: Check) -> None:
    """`envoy2emon check | head -1` leaves no traceback, and the exit status still counts."""
    env_file = write_settings(check.directory, check.settings | {"ENVOY_PASSWORD": "wrong-password"})
    script = f"set -o pipefail; {sys.executable} -m envoy2emon check --env-file {env_file} | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=30)
    assert (len(done.stdout.splitlines()), done.stderr, done.returncode) == (1, "", 1)


def test_beside_a_daemon(check: Check, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A running daemon keeps its one stream; check finds its rows and changes nothing in its directory."""
    with Daemon("stream", check.directory / "check", check.settings) as stream:
        emoncms.wait_for(lambda: len(emoncms.rows) > 0)
        before = {path: path.stat().st_mtime_ns for path in [check.state, *check.state.iterdir()]}
        check().say("warn", "inputs", "36 in node Envoy-S,", "systemctl status envoy2emon_inv")
        assert {path: path.stat().st_mtime_ns for path in [check.state, *check.state.iterdir()]} == before
        envoy.wait_for(lambda: envoy.open_streams == 1)
        seen = len(emoncms.rows)
        emoncms.wait_for(lambda: len(emoncms.rows) > seen)
        assert stream.terminate() == 0
    assert sum(request.path == "/stream/meter" and request.status == 200 for request in envoy.requests) == 2
    assert not [line for line in stream.lines if "WARNING" in line or "ERROR" in line]


def test_settings_with_problems(check: Check) -> None:
    """Every problem with the settings is named, and questions that no wrong setting affects are still asked."""
    answers = check(EMONCMS_APIKEY=None, LOG_LEVEL="LOUD")
    answers.say("FAIL", "settings", "EMONCMS_APIKEY is not set", "Setup, My Account", "/check/.env")
    answers.say("FAIL", "settings", "LOG_LEVEL is 'LOUD'")
    answers.say("ok", "reading")
    answers.say("ok", "EmonCMS")
    assert "key" not in answers.subjects()
    answers = check(ENVOY_HOST="http://me:hunter22@envoy", ENVOY_HOTS="envoy")
    answers.say("FAIL", "settings", "ENVOY_HOST is", "a name, an address, host:port")
    answers.say("warn", "settings", "ENVOY_HOTS is not a setting", "ENVOY_HOST")
    answers.say("ok", "key")
    assert "hunter22" not in str(answers.lines)
    assert not {"name", "firmware"} & set(answers.subjects().split())


def test_settings_of_the_environment(check: Check, emoncms: StandInEmonCMS) -> None:
    """Settings that the environment overrides are named."""
    answers = check({"EMONCMS_APIKEY": emoncms.key}, EMONCMS_APIKEY="another")
    answers.say("ok", "settings", "the environment overrides EMONCMS_APIKEY")
    answers.say("ok", "key")


def test_where_the_gateway_is_not(check: Check, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A wrong name, a closed port and another device are told apart, without advice to switch anything off."""
    answers = check(ENVOY_HOST="no-such-envoy.local")
    answers.say("FAIL", "name", "no-such-envoy.local cannot be resolved", "address", "ENVOY_HOST", "avahi-daemon")
    assert "ports" not in answers.subjects()
    answers.say("ok", "key")
    answers = check(ENVOY_HOST="127.92.34.1")
    answers.say("FAIL", "ports", "443 is closed, 80 is closed: is the gateway on and in this network")
    host = emoncms.url.split("/")[2]
    answers = check(ENVOY_HOST=host)
    answers.say("FAIL", "firmware", f"{host}/info answers 404", "Is ENVOY_HOST the gateway?")
    assert "off and on" not in str(answers.lines)
    check(ENVOY_HOST=f"https://{host}").say("FAIL", "firmware", "Leave http:// and https:// out of ENVOY_HOST")
    envoy.stop()
    answers = check(ENVOY_HOST=f"http://{envoy.host}")
    answers.say("FAIL", "ports", f"{envoy.address[1]} is closed", "firmware 8.3 has closed 80")
    assert "firmware" not in answers.subjects()
    envoy.start()


def test_another_gateway(check: Check) -> None:
    """A gateway that the settings do not allow is a FAIL, and gets no password."""
    answers = check(ENVOY_SERIAL="122012345679")
    answers.say("FAIL", "firmware", "...5678", "ENVOY_SERIAL is ...5679")
    assert "login" not in answers.subjects()


@pytest.mark.parametrize(
    ("setting", "subject", "other", "cure"),
    [
        ("ENVOY_PASSWORD", "login", "inverters", "are ENVOY_USER and ENVOY_PASSWORD right?"),
        ("ENVOY_INVERTERS_PASSWORD", "inverters", "login", "are ENVOY_INVERTERS_USER and"),
    ],
)
def test_digest_refused(check: Check, setting: str, subject: str, other: str, cure: str) -> None:
    """Below firmware 7, check says which of the two users fails to log in, and still tries the other one."""
    answers = check(**{setting: "wrong-password"})
    answers.say("FAIL", subject, cure)
    answers.say("ok", other)


def test_owner_without_stream(check: Check, gateway7: SimulatedEnvoy) -> None:
    """An owner's token that may not read the stream is ok, with the days left: the meter reports are read instead."""
    answers = check(**at(gateway7))
    answers.say("ok", "login", "token is accepted", "364 d 23 h left")
    answers.say("ok", "stream", "D7.6.175 refuses /stream/meter to this token (401)", "reports")
    answers.say("ok", "reading", "from the meter reports: production 147 W (ph-a 55, ph-b 50, ph-c 42)")
    answers.say("ok", "inverters", "12 with")
    assert sum(request.path == "/auth/check_jwt" for request in gateway7.requests) == 1
    check(**at(gateway7, STREAM_SOURCE="stream")).say("FAIL", "stream", "Set STREAM_SOURCE=auto")
    check(**at(gateway7, STREAM_SOURCE="reports")).say("ok", "reading", "from the meter reports")


def test_bad_token(check: Check, gateway7: SimulatedEnvoy) -> None:
    """A token that cannot be used is one FAIL with the cure, although the inverters need it too."""
    answers = check(**at(gateway7, ENVOY_TOKEN=make_token("999988887777", time.time() + YEAR)))
    answers.say("FAIL", "login", "for the gateway ...7777, this one is ...5678", "ENPHASE_EMAIL", "/check/.env")
    assert sum(line.startswith("FAIL") for line in answers.lines) == 1


@pytest.mark.parametrize(
    ("user", "left", "more"),
    [("owner", 20 * 86_400, ", or get a new ENVOY_TOKEN before then"), ("installer", 43_000, "")],
)
def test_token_that_ends_soon(check: Check, gateway7: SimulatedEnvoy, user: str, left: float, more: str) -> None:
    """A pasted token that expires soon is a warning that names the settings to renew it."""
    token = make_token(gateway7.serial, time.time() + left, user)
    answers = check(**at(gateway7, ENVOY_TOKEN=token))
    answers.say("warn", "login", f"Nothing renews it: set ENPHASE_EMAIL and ENPHASE_PASSWORD{more}")


def test_what_a_daemon_keeps_of_enphase(check: Check, gateway7: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """Check uses what a daemon has saved, and asks Enphase no sooner than a daemon would."""
    check.state.mkdir(parents=True)
    kept = {"token": "", "login_at": time.time() - 60, "trouble": "the account is blocked"}
    (check.state / "token.json").write_text(json.dumps(kept))
    answers = check(**{"ENVOY_HOST": gateway7.host} | enlighten.settings())
    answers.say("FAIL", "login", "the account is blocked (Enphase was asked")
    assert enlighten.logins == []


WATCH = """
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = "chmod chown link mkdir remove rename rmdir symlink truncate utime".split()
def watch(event, args):
    opens = event == "open" and isinstance(args[2], int) and args[2] & WRITES or event == "sqlite3.connect"
    if opens or event.removeprefix("os.") in CHANGES:
        if args[0] != ":memory:" and ".coverage" not in str(args[0]):
            os.write(2, f"CHANGES {event} {args}\\n".encode())
sys.addaudithook(watch)
"""


def test_nothing_is_changed(
    daemon: StartDaemon, gateway7: SimulatedEnvoy, enlighten: Enlighten, tmp_path: Path
) -> None:
    """Check opens no file for writing, and names links, which the service's user may have made, but follows none."""
    state, target = tmp_path / "check" / "state", tmp_path / "shadow"
    state.mkdir(parents=True)
    token = make_token(gateway7.serial, time.time() + YEAR)
    target.write_text(json.dumps({"token": token, "login_at": 0, "trouble": ""}))
    for name in ("token.json", "stream.sqlite"):
        (state / name).symlink_to(target)
    watched = altered(tmp_path / "watched", WATCH) | {"PYTHONDONTWRITEBYTECODE": "1"}
    settings = {"ENVOY_HOST": gateway7.host, "LOG_FILE": tmp_path / "log"} | enlighten.settings()
    process = daemon("check", watched, **settings)
    process.wait(30)
    assert enlighten.logins == [200]  # the target's token was not read
    process.wait_for_line("ok +login .*renewed in time")
    for name in ("token.json", "stream.sqlite"):
        process.wait_for_line(f"warn  backlog    {name} in .* is a symbolic link, which is not followed")
    assert not [line for line in process.lines if line.startswith("CHANGES")]


NO_METERS = ("warn", "meters", "this gateway has none", "sudo systemctl disable --now envoy2emon")
SAID: dict[str, list[tuple[str, ...]]] = {
    "ac_battery": [
        NO_METERS,
        ("ok", "inverters", "1 with 112 W", "AC batteries, posted beside them but not summed: ...0728"),
    ],
    "all_silent": [NO_METERS, ("warn", "inverters", "newest report 8 d 0 h ago (...0311)", "heard from none of them")],
    "empty_reports": [NO_METERS, ("ok", "inverters", "1 with 112 W")],
    "legacy": [NO_METERS, ("ok", "inverters", "1 with 112 W")],
    "load_only": [("ok", "meters", "total-consumption, 3 phases, on"), ("warn", "meters", "set STREAM_NET=calculated")],
    "meters_off": [
        ("ok", "meters", "production, off"),
        ("warn", "meters", "production and consumption are off", "noise", "sudo systemctl disable --now envoy2emon"),
    ],
    "net_off": [("warn", "meters", "consumption meter is off", "only a copy of production", "STREAM_SECTIONS=prod")],
    "net_off_noise": [("warn", "meters", "the consumption meter is off", "STREAM_SECTIONS=prod")],
    "net_only": [
        ("warn", "meters", "the production meter is off", "STREAM_SECTIONS=net"),
        ("warn", "meters", "the inverters report", "W, but the production meter measures -1 W"),
    ],
    "no_inverters": [NO_METERS, ("warn", "inverters", "lists none", "by day")],
    "no_inverters_page": [NO_METERS, ("warn", "inverters", "does not list its inverters", "--now envoy2emon_inv")],
    "one_line": [("ok", "meters", "production, 1 phase, on"), ("ok", "meters", "what is posted (prod,cons,net)")],
    "total_is_net": [("warn", "meters", "the same watts as consumption and as net", "STREAM_SECTIONS=prod,net")],
}


@pytest.mark.parametrize("name", SITES)
def test_sites(check: Check, gateway7: SimulatedEnvoy, name: str) -> None:
    """An unusual site is no failure: check says what it has and what to set, and gives no other advice."""
    load_site(gateway7, name)
    gateway7.source = lambda: gateway7.event
    answers = check(**at(gateway7, ENVOY_PASSWORD=gateway7.password))
    for said in SAID[name]:
        answers.say(*said)
    assert answers.code == 0
    assert "off and on" not in str(answers.lines)
    inputs = next(line for line in answers.lines if line.split()[1] == "inputs")
    assert ("node Envoy-S yet" in inputs) == (NO_METERS not in SAID[name])
    assert ("node Envoy-S-inverters yet" in inputs) == (not name.startswith("no_inverters"))


def test_what_is_not_posted(check: Check, envoy: SimulatedEnvoy) -> None:
    """A section that the gateway sends and the owner does not post is named, with the setting that posts it."""
    event = json.loads(THREE_PHASE_EVENT)
    envoy.source = lambda: json.dumps(event | {"storage": event["production"]})
    answers = check()
    answers.say("ok", "meters", "also sends storage, which you do not post: STREAM_SECTIONS=prod,cons,net,storage")
    answers = check(STREAM_SECTIONS="prod,cons,net,storage")
    assert "also sends" not in str(answers.lines)


def test_sections_without_transformers(check: Check, envoy: SimulatedEnvoy) -> None:
    """A section that is all zeros or missing is a warning with the setting that omits it; production at night is ok."""
    event = json.loads(THREE_PHASE_EVENT)
    night = {phase: values | {"p": -0.0} for phase, values in event["production"].items()}
    zeros = {phase: values | {"p": 0.0, "q": 0.0, "s": 0.0, "i": 0.0} for phase, values in night.items()}
    envoy.inverters = []
    envoy.source = lambda: json.dumps(event | {"production": night})
    assert check().words("meters") == {"ok"}
    envoy.source = lambda: json.dumps(event | {"production": zeros})
    check().say("warn", "meters", "production is all zeros", "(CTs)", "STREAM_SECTIONS=cons,net")
    assert check(STREAM_SECTIONS="cons,net").words("meters") == {"ok"}
    del event["production"]
    envoy.meters = Answer(404)
    envoy.answers["/ivp/meters"] = Answer(404)
    envoy.source = lambda: json.dumps(event)
    check().say("warn", "meters", "production is missing", "STREAM_SECTIONS=cons,net")


def test_gateway_that_fails(check: Check, envoy: SimulatedEnvoy) -> None:
    """If a gateway identifies itself and then fails, the advice is to switch it off and on."""
    envoy.answers["/stream/meter"] = Answer(503)
    check().say("FAIL", "reading", "/stream/meter answers 503", "switch the gateway off and on")


def test_inverters(check: Check, envoy: SimulatedEnvoy) -> None:
    """Inverters that are removed and some that never reported are told apart."""
    units = envoy.inverters
    old = int(time.time()) - 30 * 86_400
    removed = [{**unit, "serialNumber": f"9{unit['serialNumber']}"[:12], "lastReportDate": old} for unit in units]
    envoy.inverters = [*units, *removed, {**units[0], "serialNumber": "122099990000", "lastReportDate": 0}]
    check().say("ok", "inverters", "12 with", "12 treated as removed", "1 not posted, for lack of a serial")
    envoy.inverters = [{**unit, "lastReportDate": 0} for unit in units]
    check().say("warn", "inverters", "none of them has ever reported", "12 not posted, for lack of a serial")
    envoy.inverters = "<html>"
    check().say("FAIL", "inverters", "an HTML page", "check again")


def test_stream_without_readings(check: Check, envoy: SimulatedEnvoy) -> None:
    """If a stream opens but brings no reading, the login is ok, the reading is a FAIL, and the stream is closed."""
    envoy.source = lambda: '{"production":{}}'
    check.patience = 2.0
    answers = check()
    answers.say("ok", "login")
    answers.say("FAIL", "reading", "no reading within 2 s; what it sends is no reading", "off and on")
    envoy.wait_for(lambda: envoy.open_streams == 0)


@pytest.mark.parametrize("neighbour", ["gateway", "EmonCMS"])
def test_neighbour_that_hangs(check: Check, neighbour: str) -> None:
    """Check gives up on a gateway or EmonCMS that accepts the connection but drips, and still asks the other one."""
    setting = "ENVOY_HOST" if neighbour == "gateway" else "EMONCMS_URL"
    given = str(check.settings[setting])
    host, port = given.removeprefix("http://").split("/")[0].split(":")
    with FaultProxy(host, int(port)) as proxy:
        proxy.drip()
        start = time.monotonic()
        check.patience = 0.5
        answers = check(**{setting: given.replace(f":{port}", f":{proxy.port}")})
    assert time.monotonic() - start < 4
    answers.say("FAIL", neighbour, "no answer within 1 s", "?")
    answers.say("ok", "key" if neighbour == "gateway" else "reading")
    assert answers.subjects().endswith("backlog units")


def test_a_bug_is_no_answer(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is one FAIL line that gives its place and calls it a bug; the rest is still asked."""

    def broken(*_: object) -> Iterator[Any]:
        yield ok("EmonCMS", "begins")
        raise LookupError("in http://me:hunter22@emonpi\n")

    monkeypatch.setattr(check_emoncms, "ask", broken)
    code, lines = check.run()
    assert code == 1
    assert any("LookupError: in http://***@emonpi (" in line for line in lines)
    assert any("this is a bug in envoy2emon: please report it with this line" in line for line in lines)
    assert "units" in lines[-1]


def test_what_is_printed_can_be_posted(capsys: pytest.CaptureFixture[str]) -> None:
    """No line shows an e-mail address, a password or key in a URL, or more of a serial number than four digits."""
    report = Report()
    report.env_file = "/etc/envoy2emon/.env"
    report.say(ok("note", "pi@example.org, http://me:hunter22@envoy and ?apikey=0123456789abcdef at 122112345678,"))
    report.say(ok("note", "put it into .env: not .env.example; \x1b[31mred\nsecond line"))
    report.say(fail("settings", "ENPHASE_EMAIL is 'me at example': expected an e-mail address"))
    report.say(fail("settings", "ENVOY_SERIAL is '1220-1234-5678': expected the digits"))
    assert capsys.readouterr().out.splitlines() == [
        "ok    note       ***, http://***@envoy and ?apikey=*** at ...5678,",
        "ok    note       put it into /etc/envoy2emon/.env: not .env.example; ?[31mred second line",
        "FAIL  settings   ENPHASE_EMAIL is '***': expected an e-mail address",
        "FAIL  settings   ENVOY_SERIAL is '***': expected the digits",
    ]
