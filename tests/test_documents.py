"""What the documents say is what the code does."""

import ast
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy, make_token
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.gateway.readings import PHASES
from envoy2emon.inverters import DEAD_AFTER_S
from envoy2emon.live import http as live_http
from envoy2emon.rows import KEY_NAMES
from envoy2emon.settings import Settings
from tests.certificates import Certificate
from tests.checks import Check
from tests.conftest import StartDaemon
from tests.daemons import PROJECT
from tests.enlighten import Enlighten
from tests.readme import README, code, commands, rows, section

RELIABILITY = (PROJECT / ".github" / "RELIABILITY.md").read_text("utf-8")
READERS = {each.name.upper(): each.metadata["read"] for each in fields(Settings)}
DEFAULTS = {each.name.upper(): each.metadata["default"] or "" for each in fields(Settings)}
SYMPTOMS = rows(section("When something does not work"))
FIRMWARE = rows(section("Which firmware do I have, and what do I need?"))
YEAR = 365 * 86_400
# Each README section with lines to copy, and the file that runs these lines or compares them with what runs them.
RUN_BY = {
    "Try it": "tests/test_install.py",
    "Try the tests": ".ci/run",
    "Install it on the Pi": "tests/test_install.py",
    "Two gateways": "tests/test_systemd.py",
}


def test_the_readmes_table_has_every_setting_and_its_default() -> None:
    """The table in the README's section Settings has a row for each setting: its name, its default, its meaning."""
    table = rows(section("Settings"))
    assert table, "README.md has no table `| name | default | meaning |` under Settings"
    assert {name.strip("`"): default for name, default, _ in table} == DEFAULTS
    assert len(table) == len(DEFAULTS)
    assert all(meaning for _, _, meaning in table)


def test_the_example_has_every_setting_its_default_and_a_word_on_it() -> None:
    """`.env.example` explains each setting, once, and gives its default, commented out except for the key."""
    lines = (PROJECT / ".env.example").read_text("utf-8").splitlines()
    found = {}
    for before, line in zip(["", *lines], lines, strict=False):
        if named := re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(.*)", line):
            mark, name, default = named.groups()
            assert name not in found
            assert bool(mark) == (name != "EMONCMS_APIKEY")
            assert re.match(r"# [\w-].*\.$", before), f"{name} has no explanation above it"
            found[name] = default
    assert found == DEFAULTS


def test_every_line_to_copy_is_run() -> None:
    """No indented line of the README is outside the sections whose lines a test or the CI runs."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    assert sorted(lines) == sorted(line for heading in RUN_BY for line in commands(heading))
    for heading, file in RUN_BY.items():
        assert heading in (PROJECT / file).read_text("utf-8")


def test_every_setting_that_is_named_is_one() -> None:
    """Each setting that the README names exists, and a value given with it is valid."""
    named = re.findall(r"`?\b([A-Z]+_[A-Z0-9_]+)(?:=([^\s`]+))?", README.replace("SERIAL_w", ""))
    for name, value in named:
        assert name in READERS or name in {"EMONCMS_TEST_URL", "EMONCMS_TEST_APIKEY"}
        if value and "..." not in value:
            READERS[name](value)
    assert {"LIVE_LISTEN", "STREAM_PHASES"} <= {name for name, value in named if value}


def test_what_the_readme_refers_to_is_there() -> None:
    """Each section, file, module and package that the README refers to exists."""
    for start in re.findall(r'see "([^"]+)"', README):
        assert re.search(rf"^## {re.escape(start)}", README, re.MULTILINE), start
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (PROJECT / target).is_file(), target
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", section("How it works")):
        assert (PROJECT / "envoy2emon" / name).exists(), name


@pytest.mark.parametrize("phrase", [phrase for symptom, *_ in SYMPTOMS for phrase in re.findall(r'"([^"]+)"', symptom)])
def test_the_daemon_says_what_the_symptoms_table_quotes(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, certificate: Certificate, phrase: str
) -> None:
    """A real daemon writes each phrase in double quotes when in that situation; "..." stands for any words."""
    with SimulatedEnvoy("D8.3.5433", tls=certificate.context) as gateway, SimulatedEnvoy(metered=False) as bare:
        situation = {
            "refuses user installer (401)": {"ENVOY_PASSWORD": "wrong-password"},
            "this firmware needs a token": {"ENVOY_HOST": gateway.host},
            "cannot be resolved": {"ENVOY_HOST": "no-such-gateway.invalid"},
            "is EMONCMS_APIKEY the write key": {"EMONCMS_APIKEY": emoncms.read_key},
            "there is no EmonCMS at ... (404)": {"EMONCMS_URL": emoncms.url.removesuffix("cms")},
            "this gateway has no meters": bare.settings(),
        }[phrase]
        stream = daemon("stream", **situation)
        if not any(name.startswith("ENVOY") for name in situation):
            envoy.wait_for_stream()
            envoy.emit(envoy.event)
        stream.wait_for_line(".*".join(re.escape(part) for part in phrase.split("...")))


@pytest.mark.parametrize(("words", "names"), [row[:2] for row in FIRMWARE])
def test_the_firmware_table(
    tmp_path: Path, emoncms: StandInEmonCMS, enlighten: Enlighten, certificate: Certificate, words: str, names: str
) -> None:
    """The settings in a row are enough to read a gateway of that firmware."""
    old = {"below 7": True, "7 and later": False}[words.partition(",")[0]]
    firmware, tls = ("D5.0.62", None) if old else ("D7.0.88", certificate.context)
    with SimulatedEnvoy(firmware, tls=tls, source=lambda: THREE_PHASE_EVENT, interval=0.05) as gateway:
        settings = enlighten.settings() | {
            "ENVOY_PASSWORD": gateway.password,
            "ENVOY_TOKEN": make_token(gateway.serial, time.time() + YEAR),
        }
        for login in ("ENVOY_PASSWORD", "ENVOY_TOKEN", "ENPHASE_EMAIL", "ENPHASE_PASSWORD"):
            if login not in code(names):
                del settings[login]
        answers = Check(tmp_path, gateway, emoncms)(**{"ENVOY_PASSWORD": None} | settings)
    assert answers.code == 0, answers.lines
    for subject in ("login", "reading", "inverters"):
        answers.say("ok", subject)


def test_the_inputs_table() -> None:
    """The table of what arrives in EmonCMS lists all parts of the inputs' names, and no others."""
    text = section("What arrives in EmonCMS")
    sections, phases, *keys = [code(row[0]) for row in rows(text)]
    assert sections == DEFAULTS["STREAM_SECTIONS"].split(",")
    assert phases == list(PHASES)
    defaults = DEFAULTS["STREAM_KEYS"].split(",")
    assert [key for names in keys[:-1] for key in names] == defaults
    assert set(keys[-1]) == KEY_NAMES.keys() - set(defaults)
    names = {f"{one}_{phase}_{key}" for one in sections for phase in phases for key in defaults}
    assert f"{len(names)} inputs for" in text
    assert {name for name in code(text) if re.fullmatch(r"[a-z]+_ph-[abc]_\w+", name)} <= names
    assert {DEFAULTS["EMONCMS_NODE"], DEFAULTS["EMONCMS_INVERTERS_NODE"], "SERIAL_wNow", "SERIAL_wMax"} <= set(
        code(text)
    )


def test_the_figures_in_the_text() -> None:
    """The numbers of viewers and of days, and the benchmark's figures, are those of the code and of RELIABILITY.md."""
    assert f"up to {live_http.MAX_VIEWERS} viewers" in " ".join(section("The live page").split())
    assert "a week older than the newest" in " ".join(section("What arrives in EmonCMS").split())
    assert DEAD_AFTER_S == 7 * 86_400
    shown = re.findall(r"^\|.*\| \d\.\d\d \|$", section("Reliability and cost"), re.MULTILINE)
    assert len(shown) == 3
    assert set(shown) <= set(RELIABILITY.splitlines())


@pytest.mark.parametrize("command", re.findall(r"`python -m ([^`]+)`", RELIABILITY))
def test_the_commands_for_figures_exist(command: str) -> None:
    """Each command that RELIABILITY.md gives exists and knows its options."""
    done = subprocess.run(
        [sys.executable, "-m", *command.replace(" N", " 7").split(), "--help"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )
    assert all(option in done.stdout.decode() for option in re.findall(r"--\w+", command))


def test_one_term_for_one_thing() -> None:
    """What a person reads calls the device gateway and the Pi computer, and says "nett" only of the live page."""
    files = (PROJECT / ".env.example", PROJECT / "envoy2emon" / "live" / "page.html")
    texts = [path.read_text("utf-8") for path in (*files, *PROJECT.glob("*.md"), *PROJECT.glob("systemd/*.s*"))]
    for path in (PROJECT / "envoy2emon").rglob("*.py"):
        if "demo" not in path.parts:
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    dialect = re.compile(r"\b(couriers?|knocks?|mends?|machines?|an envoy|the envoy)\b", re.IGNORECASE)
    assert [text[:200] for text in (*texts, RELIABILITY) if dialect.search(text)] == []
    assert not re.search(r"\bNett\b", README.partition("## The live page")[0].replace("consuming and nett", ""))
