"""What the documents say is what the code does."""

import ast
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy, make_token
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.gateway.readings import PHASES
from envoy2emon.inverters import DEAD_AFTER_S
from envoy2emon.live import http as live_http
from envoy2emon.rows import KEY_NAMES
from envoy2emon.settings import INSTALLED_ENV_FILE, Settings
from tests.benchmark import TABLE, Size
from tests.certificates import Certificate
from tests.conftest import StartDaemon
from tests.daemons import PROJECT
from tests.enlighten import Enlighten
from tests.ledger import Verdict
from tests.readme import README, code, commands, rows, section

RELIABILITY = (PROJECT / ".github" / "RELIABILITY.md").read_text("utf-8")
DOCUMENTS = [README, RELIABILITY, *((PROJECT / name).read_text("utf-8") for name in (".env.example", "CHANGELOG.md"))]
READERS = {each.name.upper(): each.metadata["read"] for each in fields(Settings)}
DEFAULTS = {each.name.upper(): each.metadata["default"] or "" for each in fields(Settings)}
SYMPTOMS = rows(section("When something does not work"))
FIRMWARE = rows(section("Which firmware do I have, and what do I need?"))
UNITS = {path.stem for path in (PROJECT / "systemd").glob("*.service")}
YEAR = 365 * 86_400
DIALECT = r"\b(couriers?|knocks?|mends?|flights?|inquiry|heels?|machines?|an envoy|the envoy)\b"
# Each README section with lines to copy, and the test that runs these lines or compares them with what runs them.
RUN_BY = {
    "Try it": "test_install.py::test_from_install_to_purge",
    "Try the tests": "test_documents.py::test_ci_runs_the_readmes_own_command",
    "Install it on the Pi": "test_install.py::test_from_install_to_purge",
    "Two gateways": "test_systemd.py::test_two_gateways",
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


def test_the_files_that_are_named_are_there() -> None:
    """The modules and packages that the README's section How it works names exist."""
    names = [name for name in code(section("How it works")) if name.endswith((".py", "/"))]
    found = {path.relative_to(PROJECT / "envoy2emon").as_posix() for path in (PROJECT / "envoy2emon").rglob("*.py")}
    assert len(names) > 15
    for name in names:
        assert any(path.endswith(name) or path.startswith(name) for path in found), name


def test_ci_runs_the_readmes_own_command() -> None:
    """`.ci/run` takes its test command from the README's section Try the tests, where there is exactly one."""
    assert len(commands("Try the tests")) == 1
    assert commands("Try the tests")[0].startswith("python3 ")
    assert 'bash -euc "$command"' in (PROJECT / ".ci/run").read_text("utf-8")


def test_every_line_to_copy_is_run_by_a_test() -> None:
    """No indented line of the README is outside the sections whose lines are run, and the tests that run them exist."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    assert sorted(lines) == sorted(line for heading in RUN_BY for line in commands(heading))
    for place in RUN_BY.values():
        file, test = place.split("::")
        assert f"def {test}(" in (PROJECT / "tests" / file).read_text("utf-8")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(python -m [^`]+)`", README + RELIABILITY))))
def test_the_commands_for_figures_exist(command: str) -> None:
    """Each `python -m` command that the README or RELIABILITY.md gives exists and knows its options."""
    _, _, module, *options = command.replace(" N", " 7").split()
    done = subprocess.run(
        [sys.executable, "-m", module, *options, "--help"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module} " in done.stdout
    assert all(f"\n  {option} " in done.stdout for option in options if option.startswith("--"))


def test_every_setting_that_is_named_is_one() -> None:
    """Each setting that the README names exists, and a value given with it is valid."""
    named = re.findall(r"`?\b([A-Z]+_[A-Z0-9_]+)(?:=([^\s`]+))?", README.replace("SERIAL_w", ""))
    for name, value in named:
        assert name in READERS or name in {"EMONCMS_TEST_URL", "EMONCMS_TEST_APIKEY"}
        if value and "..." not in value:
            READERS[name](value)
    assert {"LIVE_LISTEN", "STREAM_PHASES"} <= {name for name, value in named if value}


def test_every_command_that_is_named_exists() -> None:
    """The units, the commands of envoy2emon, the options and the files that the README names exist."""
    usage, demo = (
        subprocess.run([sys.executable, "-m", "envoy2emon", *words], capture_output=True, text=True, check=True).stdout
        for words in (["--help"], ["demo", "--help"])
    )
    script = (PROJECT / "systemd" / "install.sh").read_text("utf-8")
    for text in [*code(README), *(line for heading in RUN_BY for line in commands(heading))]:
        words = text.removeprefix("sudo ").split()
        if words[0] in ("systemctl", "journalctl"):
            named = {word.removesuffix("-second") for word in words if word.startswith("envoy2emon")}
            assert named <= UNITS, text
        elif words[0] == "envoy2emon" and words[1:]:
            assert f"\n    {words[1]} " in usage, text
        elif words[0] == "nano":
            assert Path(words[1]).parent == INSTALLED_ENV_FILE.parent
        elif words[0] == "systemd/install.sh" or text.startswith("--"):
            options = {word for word in words if word.startswith("--")}
            assert all(f"    {option}" in script or f" {option} " in demo for option in options), text
        elif re.fullmatch(r"(tests|systemd|\.ci|\.github)/[\w./-]+", text):
            assert (PROJECT / text).exists(), text


def test_every_reference_within_the_readme_leads_somewhere() -> None:
    """Each section that the README refers to by its heading exists, and so does each file that it links or shows."""
    for start in re.findall(r'see "([^"]+)"', README):
        assert re.search(rf"^## {re.escape(start)}", README, re.MULTILINE), start
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (PROJECT / target).is_file(), target


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
            "this gateway has no meters": {"ENVOY_HOST": bare.host, "ENVOY_PASSWORD": bare.password},
        }[phrase]
        stream = daemon("stream", **situation)
        if not any(name.startswith("ENVOY") for name in situation):
            envoy.wait_for_stream()
            envoy.emit(envoy.event)
        stream.wait_for_line(".*".join(re.escape(part) for part in phrase.split("...")))


def test_exit_code_78_is_a_setting(daemon: StartDaemon) -> None:
    """The exit code in the symptoms table is that of a wrong or missing setting."""
    assert "exit code 78" in SYMPTOMS[0][0]
    stream = daemon("stream", EMONCMS_APIKEY=None)
    assert stream.wait() == 78


def test_the_symptoms_table_is_complete() -> None:
    """Each symptom has a likely cause and what to do."""
    assert len(SYMPTOMS) > 5
    assert all(len(row) == 3 and all(row) for row in SYMPTOMS)


@pytest.mark.parametrize(("words", "names"), [row[:2] for row in FIRMWARE])
def test_the_firmware_table(daemon: StartDaemon, certificate: Certificate, words: str, names: str) -> None:
    """The settings in a row are enough to read a gateway of that firmware; those for other firmware are not."""
    old = {"below 7": True, "7 and later": False}[words.partition(",")[0]]
    tls = None if old else certificate.context
    firmware = "D5.0.62" if old else "D7.0.88"
    with (
        SimulatedEnvoy(firmware, tls=tls, source=lambda: THREE_PHASE_EVENT, interval=0.05) as gateway,
        Enlighten() as enphase,
    ):
        values = {
            "ENVOY_PASSWORD": gateway.password,
            "ENPHASE_EMAIL": enphase.email,
            "ENPHASE_PASSWORD": enphase.password,
            "ENVOY_TOKEN": make_token(gateway.serial, time.time() + YEAR),
        }
        nothing = {
            "ENVOY_HOST": gateway.host,
            "ENVOY_PASSWORD": None,
            "ENPHASE_LOGIN_URL": enphase.login_url,
            "ENPHASE_TOKEN_URL": enphase.token_url,
        }
        check = daemon("check", **nothing | {name: values[name] for name in code(names)})
        assert check.wait(30) == 0, check.lines
        said = [line.split()[1] for line in check.lines if line.startswith("ok")]
        assert {"login", "reading", "inverters"} <= set(said), check.lines
        other = "ENVOY_TOKEN" if old else "ENVOY_PASSWORD"
        check = daemon("check", **nothing | {other: values[other]})
        assert check.wait(30) == 1
        (refused,) = [line for line in check.lines if line.startswith("FAIL")]
        assert all(name in refused for name in code(names))


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
    assert "a week older than the newest" in " ".join(text.split())
    assert DEAD_AFTER_S == 7 * 86_400


def test_the_live_pages_figures() -> None:
    """The live page allows as many viewers as the README says."""
    assert f"up to {live_http.MAX_VIEWERS} viewers" in " ".join(section("The live page").split())


def test_the_figures_are_those_that_the_commands_print() -> None:
    """Each row in a table of figures has the label that `python -m tests.soak` or `tests.benchmark` prints."""
    counts = {name: f"{value:,}".replace(",", " ") for name, value in vars(Size()).items()}
    faults = [*(name.replace("_", " ") for name in asdict(Verdict())), "kWh error", "largest memory"]
    costs = [label.format(**counts) for label, _, _ in TABLE.values()]
    told, shortly = (
        [[row[0] for row in rows(table)] for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
        for text in (RELIABILITY, section("Reliability and cost"))
    )
    assert [label for labels in told for label in labels] == [*faults, *costs]
    assert set(shortly[-1]) < set(costs)


def test_one_term_for_one_thing() -> None:
    """Nothing that a person reads has a word of the project's old dialect; the device is called gateway."""
    package = [path for path in (PROJECT / "envoy2emon").rglob("*.py") if "demo" not in path.parts]
    strings = [
        node.value
        for path in package
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    files = [*(PROJECT / "systemd").glob("*.s*"), PROJECT / "envoy2emon" / "live" / "page.html"]
    for text in [*strings, *DOCUMENTS, *(file.read_text("utf-8") for file in files)]:
        assert not re.search(DIALECT, text, re.IGNORECASE), text[:200]
        assert not re.search(rf"{re.escape(str(PROJECT))}\b|{re.escape(str(Path.home()))}/|localhost:\d{{5}}", text)
    assert not re.search(r"\bNett\b", README.partition("## The live page")[0].replace("consuming and nett", ""))


def test_what_check_finds_of_the_symptoms() -> None:
    """The symptoms that `check` does not find come last, and the README says how many it does find."""
    assert "what is in the first seven rows" in section("When something does not work")
    assert all("`STREAM_" in cure or cure.startswith("nothing") for *_, cure in SYMPTOMS[7:])
