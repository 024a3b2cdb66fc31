"""`envoy2emon check`, the real command, against everything that can be wrong at home."""

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from envoy2emon.check import questions as room
from envoy2emon.check import emoncms as check_emoncms
from envoy2emon.check import computer as check_machine
from envoy2emon.emoncms.dates import Progress
from envoy2emon.emoncms.group import Group
from envoy2emon.rows import Row
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy, make_token
from envoy2emon.demo.site import THREE_PHASE_EVENT, info
from envoy2emon.emoncms.spool import Spool
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.certificates import self_signed
from tests.daemons import PROJECT, Daemon
from tests.emoncms import bulk
from tests.enlighten import LOGIN_PATH, Enlighten
from tests.faultproxy import FaultProxy

Check = Callable[..., "Answers"]
YEAR = 365 * 86_400
ORDER = "settings name ports firmware login reading meters inverters EmonCMS key inputs clocks backlog units"
SECRETS = ("installer-password", "writekey", "readkey", "enlighten-password", "owner@example.org", "wrong-password")


class Answers:
    """What one run said: its exit code and its lines, which hold no secret, e-mail address or whole serial number."""

    def __init__(self, code: int, lines: list[str], *secrets: str) -> None:
        self.code = code
        self.lines = lines
        text = "\n".join(lines)
        assert not [secret for secret in (*SECRETS, *secrets) if secret in text], text
        assert not re.search(r"(?<![^\W_])\d{10,}(?![^\W_])", text), text

    def subjects(self) -> str:
        """Name the subjects in their order."""
        return " ".join(line.split()[1] for line in self.lines)

    def say(self, word: str, subject: str, *parts: str) -> None:
        """Assert that a line has this word and subject, and all parts in it."""
        texts = [line for line in self.lines if line.split()[:2] == [word, subject]]
        assert any(all(part in line for part in parts) for line in texts), (word, subject, parts, self.lines)
        assert self.code == (1 if any(line.startswith("FAIL") for line in self.lines) else 0)


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 whose meters tell twenty events a second."""
    with SimulatedEnvoy(source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


@pytest.fixture
def gateway7(tmp_path: Path) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway that wants a token and keeps the stream from owners."""
    tls = self_signed("122112345678", tmp_path).context
    with SimulatedEnvoy("D7.6.175", tls=tls, source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


@pytest.fixture
def settings(emoncms: StandInEmonCMS, envoy: SimulatedEnvoy) -> dict[str, object]:
    """Lead to both simulators."""
    return {
        "ENVOY_HOST": envoy.host,
        "ENVOY_PASSWORD": envoy.password,
        "EMONCMS_URL": emoncms.url,
        "EMONCMS_APIKEY": emoncms.key,
    }


@pytest.fixture
def command(settings: dict[str, object], tmp_path: Path) -> Check:
    """Run the command as its own process; what it prints, whatever it is asked, can be posted in a forum."""

    def run(environment: dict[str, str] | None = None, **changes: object) -> Answers:
        process = Daemon("check", tmp_path / "check", settings | changes)
        process.environment = environment or {}
        with process:
            return Answers(process.wait(30), process.lines)

    return run


@pytest.fixture
def check(
    settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Check]:
    """Run what the command runs, in this process, with the settings in the environment."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(environment: dict[str, str] | None = None, patience: float = 10.0, **changes: object) -> Answers:
        named = {name: str(value) for name, value in (settings | changes).items() if value is not None}
        environ = {"STATE_DIRECTORY": str(tmp_path / "state")} | named | (environment or {})
        code = room.run(None, environ, patience=patience)
        return Answers(code, capsys.readouterr().out.splitlines(), str(changes.get("ENVOY_TOKEN") or SECRETS[0]))

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def test_all_is_well(command: Check, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Where nothing is wrong each question is answered by ok, in order, and neither neighbour keeps a trace."""
    bulk(emoncms, [[0, "Envoy-S", {"prod_ph-a_wNow": 1}], [0, "Envoy-S-inverters", {"1_wNow": 1}]])
    answers = command()
    assert answers.subjects() == ORDER
    assert {line.split()[0] for line in answers.lines} == {"ok"}
    answers.say("ok", "settings", "/check/.env")
    answers.say("ok", "name", "127.0.0.1")
    answers.say("ok", "ports", f"{envoy.address[1]} is open")
    answers.say("ok", "firmware", "D5.0.62", "...5678", "ENVOY_PASSWORD")
    answers.say("ok", "login", "user installer is accepted")
    answers.say("ok", "reading", "production 147 W (ph-a 55, ph-b 50, ph-c 42)", "consumption 2192 W", "net 2045 W")
    answers.say("ok", "inverters", "12; newest report", "oldest 5 min ago")
    answers.say("ok", "EmonCMS", "EmonCMS 11.16.8")
    answers.say("ok", "key", "may write")
    answers.say("ok", "inputs", "1 in node Envoy-S,", "1 in node Envoy-S-inverters,")
    answers.say("ok", "clocks", "Envoy's is the same, EmonCMS's is the same")
    answers.say("ok", "backlog", "nothing saved waits")
    assert [len(inputs) for inputs in emoncms.account.nodes.values()] == [1, 1]
    assert emoncms.account.applied == 2
    envoy.wait_for(lambda: envoy.open_streams == 0)


def test_reader_that_has_seen_enough(settings: dict[str, object], tmp_path: Path) -> None:
    """`envoy2emon check | head -1` leaves no traceback, and the exit status still counts."""
    settings["ENVOY_PASSWORD"] = "wrong-password"
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    env_file.chmod(0o600)
    command = f"{sys.executable} -m envoy2emon check --env-file {env_file} 2>{tmp_path}/errors"
    script = f"set -o pipefail; {command} | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=30)
    assert len(done.stdout.splitlines()) == 1
    assert done.returncode == 1
    assert (tmp_path / "errors").read_text() == ""


def test_beside_a_daemon(
    command: Check, settings: dict[str, object], envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path
) -> None:
    """The daemon that runs keeps its one stream, and check finds its rows."""
    with Daemon("stream", tmp_path / "check", settings) as stream:
        emoncms.wait_for(lambda: len(emoncms.rows) > 0)
        command().say("ok", "inputs", "36 in node Envoy-S,")
        envoy.wait_for(lambda: envoy.open_streams == 1)
        seen = len(emoncms.rows)
        emoncms.wait_for(lambda: len(emoncms.rows) > seen)
        assert stream.terminate()[0] == 0
    assert sum(request.path == "/stream/meter" and request.status == 200 for request in envoy.requests) == 2
    assert not [line for line in stream.lines if "WARNING" in line or "ERROR" in line]


def test_settings_with_problems(command: Check, envoy: SimulatedEnvoy) -> None:
    """Every problem of the settings is named, and nobody is asked anything before they are mended."""
    answers = command(EMONCMS_APIKEY=None, STREAM_KEYS="watts", ENVOY_HOST="http://me:hunter22@envoy", LOG_LEVEL="LOUD")
    answers.say("FAIL", "settings", "EMONCMS_APIKEY is not set", "Setup, My Account")
    answers.say("FAIL", "settings", "STREAM_KEYS is 'watts'", "wNow")
    answers.say("FAIL", "settings", "ENVOY_HOST is", "a name, an address, host:port")
    answers.say("FAIL", "settings", "LOG_LEVEL is 'LOUD'")
    answers.say("FAIL", "settings", "/check/.env comes first: mend it and check again")
    assert "hunter22" not in str(answers.lines)
    assert envoy.connections == 0
    command(ENPHASE_EMAIL="me at example").say("FAIL", "settings", "ENPHASE_EMAIL is '***'", "an e-mail address")
    command(ENVOY_SERIAL="1220-1234-5678").say("FAIL", "settings", "ENVOY_SERIAL is '***': expected the digits")


def test_settings_that_are_unknown(command: Check) -> None:
    """A misspelt setting is a warning with the name that is meant."""
    command(ENVOY_HOTS="envoy").say("warn", "settings", "ENVOY_HOTS is no setting", "ENVOY_HOST")


def test_environment_wins(command: Check, emoncms: StandInEmonCMS) -> None:
    """A setting that the environment overrides is named: the .env is not to blame for it."""
    answers = command({"EMONCMS_APIKEY": emoncms.key}, EMONCMS_APIKEY="another")
    answers.say("ok", "settings", "the environment decides on EMONCMS_APIKEY")
    answers.say("ok", "key")


def test_no_settings_at_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A .env that was asked for and is not there is named, with what to do."""
    code = room.run(tmp_path / "nowhere", {})
    answers = Answers(code, capsys.readouterr().out.splitlines())
    answers.say("FAIL", "settings", "nowhere does not exist", "copy .env.example")


def test_name_without_address(check: Check) -> None:
    """A name that nobody knows sends the owner to the router, and one in .local to avahi."""
    answers = check(ENVOY_HOST="no-such-envoy.local")
    answers.say("FAIL", "name", "no-such-envoy.local cannot be resolved", "address", "ENVOY_HOST", "avahi-daemon")
    assert "ports" not in answers.subjects()
    answers.say("ok", "key")


def test_ports_closed(check: Check, envoy: SimulatedEnvoy) -> None:
    """A closed port is told apart from a wrong name; whoever fixed the port hears that it may be the fault."""
    envoy.stop()
    answers = check(ENVOY_HOST=f"http://{envoy.host}")
    answers.say("FAIL", "ports", f"{envoy.address[1]} is closed", "is the Envoy on", "8.3 has closed 80")
    assert "firmware" not in answers.subjects()
    answers = check(ENVOY_HOST="127.92.34.1")
    answers.say("FAIL", "ports", "443 is closed, 80 is closed: is the Envoy on and in this network")
    envoy.start()


def test_another_device(check: Check, emoncms: StandInEmonCMS) -> None:
    """A device that is no Envoy is named as such."""
    host = emoncms.url.split("/")[2]
    check(ENVOY_HOST=host).say("FAIL", "firmware", f"{host}/info answers 404", "Is ENVOY_HOST the Envoy?")
    answers = check(ENVOY_HOST=f"https://{host}")
    answers.say("FAIL", "firmware", "does not speak TLS", "Leave http:// and https:// out of ENVOY_HOST")


def test_certificate_changed(check: Check, gateway7: SimulatedEnvoy) -> None:
    """Another certificate than the pinned one is a FAIL with the line for the settings."""
    answers = check(ENVOY_HOST=gateway7.host, ENVOY_CERT_SHA256="0" * 64)
    answers.say("FAIL", "firmware", "another certificate", "set ENVOY_CERT_SHA256=")


@pytest.mark.parametrize(
    ("changes", "subject", "cure"),
    [
        ({"ENVOY_PASSWORD": "wrong-password"}, "login", "are ENVOY_USER and ENVOY_PASSWORD right?"),
        ({"ENVOY_PASSWORD": None}, "login", "put ENVOY_PASSWORD into .env"),
        ({"ENVOY_INVERTERS_PASSWORD": "wrong-password"}, "inverters", "are ENVOY_INVERTERS_USER and"),
    ],
)
def test_digest_refused(check: Check, changes: dict[str, str], subject: str, cure: str) -> None:
    """Below firmware 7 each of the two users is told apart, and the other one is still asked."""
    answers = check(**changes)
    answers.say("FAIL", subject, cure)
    answers.say("ok", "inverters" if subject == "login" else "login")


def test_owner_without_stream(check: Check, gateway7: SimulatedEnvoy) -> None:
    """An owner's token that may not read the stream is a good token: the reports are read, and its days are told."""
    token = make_token(gateway7.serial, time.time() + YEAR)
    answers = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token)
    answers.say("ok", "login", "token is accepted", "364 d 23 h left")
    answers.say("ok", "stream", "D7.6.175 does not open /stream/meter to this token (401)", "reports")
    answers.say("ok", "reading", "from the reports: production 147 W (ph-a 55, ph-b 50, ph-c 42)")
    answers.say("ok", "inverters", "12;")
    assert sum(request.path == "/auth/check_jwt" for request in gateway7.requests) <= 2
    only = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token, STREAM_SOURCE="stream")
    only.say("FAIL", "stream", "set STREAM_SOURCE=auto")
    only.say("ok", "login")
    check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token, STREAM_SOURCE="reports").say("ok", "reading", "from the reports")


def test_owner_whose_gateway_lacks_a_page(check: Check, gateway7: SimulatedEnvoy) -> None:
    """A 404 is not laid to the owner's account: the reports take the stream's place, and nothing takes theirs."""
    token = make_token(gateway7.serial, time.time() + YEAR)
    gateway7.answers["/stream/meter"] = Answer(404)
    answers = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token)
    answers.say("ok", "login")
    answers.say("ok", "stream", "/stream/meter answers 404", "reports")
    answers.say("ok", "reading", "from the reports")
    only = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token, STREAM_SOURCE="stream")
    only.say("FAIL", "stream", "/stream/meter answers 404", "set STREAM_SOURCE=auto")
    gateway7.answers["/ivp/meters/reports/"] = Answer(404)
    answers = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token)
    answers.say("FAIL", "reading", "/ivp/meters/reports/ answers 404. Wait five minutes and check again")


def test_bad_tokens(check: Check, gateway7: SimulatedEnvoy) -> None:
    """No token, one of another gateway, an expired one, and one that the gateway refuses have words of their own."""
    refused = make_token(gateway7.serial, time.time() + YEAR)
    gateway7.tokens.refused.add(refused)
    for token, words in {
        None: "this firmware wants a token",
        make_token("999988887777", time.time() + YEAR): "is for the gateway ...7777, this one is ...5678",
        make_token(gateway7.serial, time.time() - YEAR): "ENVOY_TOKEN expired on",
        refused: "the gateway refuses ENVOY_TOKEN",
    }.items():
        answers = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token)
        answers.say("FAIL", "login", words, "ENPHASE_EMAIL and ENPHASE_PASSWORD")
        assert "inverters" not in answers.subjects()


@pytest.mark.parametrize(("user", "left"), [("owner", 20 * 86_400), ("installer", 43_000)])
def test_token_that_ends_soon(check: Check, gateway7: SimulatedEnvoy, user: str, left: float) -> None:
    """A pasted token near its end is a warning with what would renew it."""
    token = make_token(gateway7.serial, time.time() + left, user)
    answers = check(ENVOY_HOST=gateway7.host, ENVOY_TOKEN=token)
    answers.say("warn", "login", "nothing renews it", "set ENPHASE_EMAIL and ENPHASE_PASSWORD")


def test_enphase_asked_once(check: Check, gateway7: SimulatedEnvoy) -> None:
    """A wrong Enphase password is named; check asked again within ten minutes does not log in again."""
    with Enlighten() as enphase:
        settings = {
            "ENVOY_HOST": gateway7.host,
            "ENPHASE_EMAIL": enphase.email,
            "ENPHASE_PASSWORD": "wrong-password",
            "ENPHASE_LOGIN_URL": enphase.login_url,
            "ENPHASE_TOKEN_URL": enphase.token_url,
        }
        check(**settings).say("FAIL", "login", "does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD")
        check(**settings).say("FAIL", "login", "Enphase was asked")
        assert enphase.logins == [401]


def test_enphase_token_kept(check: Check, gateway7: SimulatedEnvoy, tmp_path: Path) -> None:
    """A token that check fetched is kept for the daemons; one that cannot be renewed is a note beside the login."""
    with Enlighten() as enphase:
        settings = {
            "ENVOY_HOST": gateway7.host,
            "ENPHASE_EMAIL": enphase.email,
            "ENPHASE_PASSWORD": enphase.password,
            "ENPHASE_LOGIN_URL": enphase.login_url,
            "ENPHASE_TOKEN_URL": enphase.token_url,
        }
        enphase.lifetime = 20 * 86_400
        check(**settings).say("ok", "login", "renewed in time")
        kept = tmp_path / "state" / "token.json"
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"login_at": 0}))
        enphase.statuses[LOGIN_PATH] = 503
        answers = check(**settings)
        answers.say("warn", "note", "cannot be renewed", "503")
        answers.say("ok", "login")
        assert len(enphase.tokens) == 1


def test_sections_without_transformers(check: Check, envoy: SimulatedEnvoy) -> None:
    """A section of zeros and a missing one are warnings with the setting that leaves them out; night is none."""
    event = json.loads(THREE_PHASE_EVENT)
    night = {phase: values | {"p": -0.0} for phase, values in event["production"].items()}
    zeros = {phase: values | {"p": 0.0, "q": 0.0, "s": 0.0, "i": 0.0} for phase, values in night.items()}
    envoy.source = lambda: json.dumps(event | {"production": night})
    check().say("ok", "meters")
    envoy.source = lambda: json.dumps(event | {"production": zeros})
    check().say("warn", "meters", "production is all zeros", "(CTs)", "STREAM_SECTIONS=cons,net")
    check(STREAM_SECTIONS="cons,net").say("ok", "meters")
    del event["production"]
    envoy.source = lambda: json.dumps(event)
    check().say("warn", "meters", "production is missing", "STREAM_SECTIONS=cons,net")


def test_phases_in_use(check: Check, envoy: SimulatedEnvoy) -> None:
    """Phases that are all zeros, as on a site with fewer, do not clutter the reading."""
    event = json.loads(THREE_PHASE_EVENT)
    for phases in event.values():
        phases["ph-c"] = dict.fromkeys(phases["ph-c"], 0.0) | {"f": 60.0}
    envoy.source = lambda: json.dumps(event)
    check().say("ok", "reading", "production 104 W (ph-a 55, ph-b 50);")


def test_envoy_without_meters(check: Check, envoy: SimulatedEnvoy) -> None:
    """An Envoy that has no meters is no failure: its inverters are what there is."""
    envoy.metered = False
    answers = check()
    answers.say("warn", "meters", "imeter false", "systemctl disable --now envoy2emon")
    answers.say("ok", "inverters")
    envoy.metered = True
    envoy.answers["/stream/meter"] = Answer(503)
    check().say("FAIL", "reading", "503", "switch the Envoy off and on")
    envoy.answers["/stream/meter"] = Answer(404)
    check().say("FAIL", "reading", "/stream/meter answers 404", "set STREAM_SOURCE=reports")


def test_inverters(check: Check, envoy: SimulatedEnvoy) -> None:
    """None listed, all dead, and all silent since yesterday are told apart."""
    units = envoy.inverters

    def aged(seconds: int) -> list[dict[str, object]]:
        return [{**unit, "lastReportDate": int(time.time()) - seconds} for unit in units]

    envoy.inverters = []
    check().say("warn", "inverters", "lists none", "check again by day")
    envoy.inverters = aged(30 * 86_400)
    check().say("warn", "inverters", "none of them reports; 12 with a last report of more than 7 days ago")
    envoy.inverters = aged(2 * 86_400)
    check().say("warn", "inverters", "12; newest report 2 d 0 h ago", "hears none of them")
    envoy.inverters = [*units, {**units[0], "serialNumber": "122099990000", "lastReportDate": 0}]
    check().say("ok", "inverters", "12; newest", "1 without serial number, date or watts")
    envoy.inverters = "<html>"
    check().say("FAIL", "inverters", "an HTML page", "check again")


def test_emoncms_away(check: Check) -> None:
    """An EmonCMS that refuses the connection, or whose name is unknown, is not asked for its key."""
    answers = check(EMONCMS_URL="http://127.0.0.1:1/emoncms")
    answers.say("FAIL", "EmonCMS", "refuses the connection: is its web server running?")
    assert "key" not in answers.subjects()
    for name, cure in {"no-such-emonpi.local": "avahi-daemon", "no-such-emonpi": "into EMONCMS_URL"}.items():
        answers = check(EMONCMS_URL=f"http://{name}/emoncms")
        answers.say("FAIL", "EmonCMS", "cannot be resolved", "Put the address of its computer into EMONCMS_URL", cure)


def test_emoncms_in_trouble(check: Check, emoncms: StandInEmonCMS) -> None:
    """An EmonCMS that is there and ill, or spoken to in the wrong way, is told apart, each with what to look at."""
    answers = check(EMONCMS_URL=emoncms.url.replace("http:", "https:"))
    answers.say("FAIL", "EmonCMS", "cannot be reached", "Does its address begin with http:// in the browser")
    for answer in ((502, "Bad Gateway"), (500, ""), (200, "<b>Fatal error</b>: the database is away")):
        emoncms.fault = Fault(answer)
        check().say("FAIL", "EmonCMS", "answers", "Is its PHP or its database down? Look at it in the browser")


def test_emoncms_base_path(check: Check, emoncms: StandInEmonCMS, envoy: SimulatedEnvoy) -> None:
    """A path that is not EmonCMS's base is named, with the right one if it is a usual one."""
    base = emoncms.url.removesuffix("/emoncms")
    for wrong in (base, f"{base}/emon", f"{base}/emoncms/input"):
        answers = check(EMONCMS_URL=wrong)
        answers.say("FAIL", "EmonCMS", f"There is one at {emoncms.url}, so set EMONCMS_URL={emoncms.url}")
    answers = check(EMONCMS_URL=f"http://{envoy.host}/emoncms")
    answers.say("FAIL", "EmonCMS", "there is no EmonCMS", "is the path in EMONCMS_URL right?")


def test_emoncms_keys(check: Check, emoncms: StandInEmonCMS) -> None:
    """The read key and an unknown key are told apart, and no question leaves an input behind."""
    check(EMONCMS_APIKEY=emoncms.read_key).say("FAIL", "key", "is the read key", "put the write key")
    check(EMONCMS_APIKEY="unknown").say("FAIL", "key", "does not know EMONCMS_APIKEY (401)", "My Account")
    answers = check()
    answers.say("ok", "key")
    answers.say("warn", "inputs", "none of envoy2emon's in node Envoy-S yet", "are the daemons running?")
    assert emoncms.account.nodes == {}


def test_emoncms_that_tells_no_version(check: Check, emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EmonCMS without a version is known by its answer to the key; a router's login page is not taken for one."""
    emoncms.fault = Fault((401, "Unauthorized"))
    check().say("FAIL", "EmonCMS", "wants a password of its web server (401)")
    emoncms.fault = None
    answer = emoncms.answer
    page = (200, "<html>Log in</html>")
    monkeypatch.setattr(emoncms, "answer", lambda path, *rest: page if "version" in path else answer(path, *rest))
    check().say("ok", "EmonCMS", "its version it does not say")
    emoncms.fault = Fault(page)
    check().say("FAIL", "EmonCMS", "answers '<html>Log in</html>'", "Is EMONCMS_URL right?")


def test_inputs_that_stand_still(check: Check, emoncms: StandInEmonCMS) -> None:
    """Inputs of the meters that are old by EmonCMS's clock are a warning."""
    bulk(emoncms, [[-900, "Envoy-S", {"prod_ph-a_wNow": 1}]])
    check().say("warn", "inputs", "1 in node Envoy-S, the newest 15 min old", "systemctl status envoy2emon")


def test_clocks(check: Check, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Which of the three clocks is wrong is told by the other two."""
    emoncms.clock_offset = -7200
    check().say("warn", "clocks", "EmonCMS's is 2 h 0 min behind", "timedatectl on its computer")
    now = f"<time>{int(time.time())}"
    envoy.info = info(envoy.firmware, envoy.serial, metered=True).replace(
        now[:-2], f"<time>{int(time.time()) - 7200}"[:-2]
    )
    check().say("warn", "clocks", "this computer's clock is the wrong one", "timedatectl")
    emoncms.clock_offset = 0
    check().say("warn", "clocks", "Envoy's is 2 h 0 min behind", "has the Envoy Internet?")


def test_backlog(check: Check, tmp_path: Path) -> None:
    """Rows that a daemon left on the disk are counted, and they stay there."""
    spool = tmp_path / "state" / "stream.sqlite"
    rows = [Row(float(at), "Envoy-S", {"prod_ph-a_wNow": Decimal(at)}) for at in range(41)]
    Spool(spool, "this boot", time.time).save([Group.pack(0, rows)], Progress(0))
    before = spool.read_bytes()
    check().say("warn", "backlog", "41 rows of the stream wait in ", "when EmonCMS answers")
    assert spool.read_bytes() == before
    (spool.parent / "inverters.damaged-1").touch()
    check().say("warn", "backlog", "inverters.damaged-1", "remove at will")
    spool.write_bytes(b"garbage" * 1000)
    check().say("warn", "backlog", "cannot be read (file is not a database)", "restart the daemons")


def test_state_directory_that_cannot_be(check: Check, tmp_path: Path) -> None:
    """A state directory that cannot be written is a FAIL."""
    file = tmp_path / "file"
    file.touch()
    check({"STATE_DIRECTORY": f"{file}/state"}).say("FAIL", "backlog", "/file cannot be written", "STATE_DIRECTORY")


def test_full_disk(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for a day's backlog is a FAIL."""
    monkeypatch.setattr(check_machine, "LEAST_FREE", 2**63)
    check().say("FAIL", "backlog", "MB left: make room")


def test_a_bug_is_no_answer(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is one FAIL line, with its kind, its words and whose fault it is; the rest is still asked."""

    def broken(url: str) -> str:
        raise UnicodeError(f"label empty in {url}\ninstaller-password")

    monkeypatch.setattr(check_emoncms, "_version", broken)
    answers = check()
    defect = "this is a defect of envoy2emon: report it with this line"
    answers.say("FAIL", "EmonCMS", "UnicodeError: label empty in http://", " *** (check_emoncms.py, line ", defect)
    assert "key" not in answers.subjects()
    answers.say("ok", "clocks")
    assert answers.subjects().endswith("backlog units")


TROUBLE = "Envoy: it is 122112345678, installer-password, http://me:hunter22@envoy, pi@example.org"
UNIT = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "StatusText": "147 W generating",
    "NRestarts": "0",
    "ExecMainStatus": "0",
    "ActiveEnterTimestamp": f"@{int(time.time()) + 3600}",
}


@pytest.mark.parametrize(
    ("changes", "word", "parts"),
    [
        (
            {},
            "ok",
            [
                "envoy2emon runs: 147 W generating",
                "last trouble, 2 min ago: Envoy: it is ...5678, ***, http://***@envoy, ***",
            ],
        ),
        ({"UnitFileState": "disabled"}, "warn", ["sudo systemctl enable envoy2emon"]),
        ({"ActiveEnterTimestamp": "@1"}, "warn", ["settings changed", "sudo systemctl restart envoy2emon"]),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            "FAIL",
            ["exit status 78", "restart"],
        ),
        ({"ActiveState": "inactive"}, "FAIL", ["does not run", "sudo systemctl start envoy2emon"]),
        ({"ActiveState": "inactive", "UnitFileState": "disabled"}, "warn", ["systemctl enable --now envoy2emon"]),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "41"},
            "FAIL",
            ["41 times", "journalctl"],
        ),
        ({"ActiveState": "activating", "SubState": "start"}, "warn", ["just starting"]),
        ({"LoadState": "not-found"}, "warn", ["sudo systemd/install.sh"]),
    ],
)
def test_units(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], word: str, parts: list[str]
) -> None:
    """Each state of a unit has its words; the last trouble is told beside it."""
    monkeypatch.setattr(check_machine, "INSTALLED_ENV_FILE", tmp_path / "installed")
    (tmp_path / "installed").touch()
    systemd(tmp_path, monkeypatch, changes)
    check().say(word, "units", *parts)


def test_another_settings_file(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of settings that is not the installed one, however new, says nothing about the units."""
    monkeypatch.setattr(check_machine, "INSTALLED_ENV_FILE", tmp_path / "nowhere")
    systemd(tmp_path, monkeypatch, {"ActiveEnterTimestamp": "@1"})
    (tmp_path / ".env").write_text("LOG_LEVEL=INFO\n")
    check().say("ok", "units", "envoy2emon runs")


def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    """Put a systemctl and a journalctl in place that tell of one unit."""
    unit = {"Id": "envoy2emon.service"} | UNIT | changes
    shown = "\n".join(f"{name}={value}" for name, value in unit.items())
    trouble = {"__REALTIME_TIMESTAMP": f"{int(time.time() - 120)}000000", "MESSAGE": TROUBLE}
    for name, output in {"systemctl": shown, "journalctl": json.dumps(trouble)}.items():
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{output}\nEND\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_silent_stream(check: Check, envoy: SimulatedEnvoy) -> None:
    """A stream that opens but brings no reading is given up, told apart from a refused login, and closed."""
    envoy.source = lambda: '{"state":{}}'
    answers = check(patience=0.3)
    answers.say("ok", "login")
    answers.say("FAIL", "reading", "no reading within 0 s; what it sends is no section production", "off and on")
    envoy.wait_for(lambda: envoy.open_streams == 0)


def test_stream_that_falls_silent(check: Check) -> None:
    """A stream that sends nothing at all is told apart from one that cannot be opened."""
    with SimulatedEnvoy() as silent:
        answers = check(ENVOY_HOST=silent.host, patience=0.3)
    answers.say("ok", "login")
    answers.say("FAIL", "reading", "the stream opens, but then", "does not answer in time")


@pytest.mark.parametrize("neighbour", ["Envoy", "EmonCMS"])
def test_neighbour_that_hangs(
    check: Check, settings: dict[str, object], neighbour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that takes the connection and drips is given up, and the other one is still asked."""
    monkeypatch.setattr(room, "GRACE_S", 0.2)
    setting = "ENVOY_HOST" if neighbour == "Envoy" else "EMONCMS_URL"
    host, port = re.findall(r"([\d.]+):(\d+)", str(settings[setting]))[0]
    with FaultProxy(host, int(port)) as proxy:
        proxy.drip()
        start = time.monotonic()
        answers = check(patience=0.8, **{setting: str(settings[setting]).replace(f":{port}", f":{proxy.port}")})
    assert time.monotonic() - start < 3
    answers.say("FAIL", neighbour, "no answer within 1 s", "?")
    answers.say("ok", "key" if neighbour == "Envoy" else "reading")
    assert answers.subjects().endswith("backlog units")
