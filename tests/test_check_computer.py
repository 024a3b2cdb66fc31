"""What `envoy2emon check` says of this computer: the saved backlog, the live page, the units of a fake systemd."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from envoy2emon.check import computer
from envoy2emon.check.verdict import Found
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.emoncms.disk import Disk, Saved, pack
from envoy2emon.rows import inputs_json
from tests.checks import Answers, Check
from tests.daemons import PROJECT, Daemon

NOW = 1_700_000_000


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 without meters, because check asks such a gateway least."""
    with SimulatedEnvoy(metered=False, source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


@pytest.fixture
def check(tmp_path: Path, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> Check:
    """Return a check of the simulated gateway and EmonCMS."""
    settings = {"ENVOY_HOST": envoy.host, "ENVOY_PASSWORD": envoy.password}
    return Check(tmp_path, settings | {"EMONCMS_URL": emoncms.url, "EMONCMS_APIKEY": emoncms.key})


def test_backlog(check: Check) -> None:
    """Saved rows are counted and left unchanged; files that are set aside or damaged are reported."""
    saved = check.state / "stream.sqlite"
    for number, count in (1, 30), (2, 11):
        inputs = [inputs_json({"prod_ph-a_wNow": Decimal(each)}) for each in range(count)]
        assert Disk(saved).save([Saved(number, [NOW + each for each in range(count)], pack(inputs))])
    content, changed = saved.read_bytes(), saved.stat().st_mtime_ns
    check().say("warn", "backlog", "up to 41 rows of the stream wait in ", "when EmonCMS answers")
    assert (saved.read_bytes(), saved.stat().st_mtime_ns) == (content, changed)
    assert [path.name for path in check.state.iterdir()] == ["stream.sqlite"]
    (check.state / "inverters.sqlite.set-aside-1").touch()
    check().say("warn", "backlog", "inverters.sqlite.set-aside-1 in ", "could not be read")
    for damaged in b"garbage" * 1000, content[:3000], content.replace(b"blocks", b"blacks"):
        saved.write_bytes(damaged)
        check().say("warn", "backlog", "cannot be read", "restart the daemons")
        assert saved.read_bytes() == damaged


def test_file_that_keeps_its_reader_busy(check: Check) -> None:
    """Check gives up on a view that poses as the table and never ends."""
    check.state.mkdir(parents=True)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS dates FROM n"
    with closing(sqlite3.connect(check.state / "stream.sqlite")) as file:
        file.execute(f"CREATE VIEW blocks AS {endless}")
    start = time.monotonic()
    check().say("warn", "backlog", "cannot be read")
    assert time.monotonic() - start < 30


def test_state_directory_that_cannot_be(check: Check) -> None:
    """A state directory that cannot be written is a FAIL."""
    file = check.directory / "file"
    file.touch()
    for state in file, file / "state":
        check({"STATE_DIRECTORY": str(state)}).say(
            "FAIL", "backlog", "nothing can be saved there", "STATE_DIRECTORY right?"
        )


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without space for a day's backlog is a FAIL."""
    monkeypatch.setattr(computer, "LEAST_FREE", 2**63)
    texts = [verdict.text for verdict in computer.ask(None, tmp_path, Found()) if verdict.word == "FAIL"]
    assert len(texts) == 1
    assert "MB left: free some space" in texts[0]


def test_what_only_root_may_read(check: Check) -> None:
    """A user who may not read the settings or state is advised to run check as root; the rest is still asked."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    check.state.mkdir(parents=True)
    check.state.chmod(0)
    check().say("warn", "backlog", "may not be read by this user: run: sudo envoy2emon check")
    check.state.chmod(0o700)
    unreadable = check.directory / "settings"
    unreadable.touch(mode=0)
    done = subprocess.run(
        [sys.executable, "-m", "envoy2emon", "check", "--env-file", unreadable],
        cwd=PROJECT,
        env={"HOME": str(check.directory), "PATH": str(check.tools)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    answers = Answers(done.returncode, done.stdout.splitlines(), {})
    answers.say("FAIL", "settings", str(unreadable), "may not be read")
    answers.say("warn", "settings", "this user may not read", "run: sudo envoy2emon check")
    assert answers.subjects() == "settings backlog units"


def test_live_page(check: Check, envoy: SimulatedEnvoy) -> None:
    """A live page that is set up but not served is a warning, and so is another program on its port."""
    check(LIVE_LISTEN="127.0.0.1:1").say("warn", "live", "refuses the connection", "sudo systemctl status envoy2emon")
    host = envoy.host
    check(LIVE_LISTEN=host).say("warn", "live", "another program answers at http://" + host)
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"0.0.0.0:{free.getsockname()[1]}"
    with Daemon("stream", check.directory / "check", check.settings | {"LIVE_LISTEN": listen}) as stream:
        stream.wait_for_notify("READY=1")
        check(LIVE_LISTEN=listen).say("ok", "live", listen.replace("0.0.0.0", "http://127.0.0.1"))
    assert "live" not in check().subjects()


TROUBLE = "gateway: it is 122112345678, installer-password, http://me:hunter22@envoy, pi@example.org"
UNIT = {
    "Id": "envoy2emon_inv.service",
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "StatusText": "147 W generating",
    "NRestarts": "0",
    "ExecMainStatus": "0",
    "ActiveEnterTimestamp": f"@{int(time.time()) + 3600}",
    "InvocationID": "0123abcd",
}


def systemd(check: Check, changes: dict[str, str], run: str = "0123abcd", complaint: str = "") -> None:
    """Install a fake systemctl and journalctl that report one unit, and trouble in one run of it."""
    shown = "\n".join(f"{name}={value}" for name, value in (UNIT | changes).items())
    trouble = {"__REALTIME_TIMESTAMP": f"{int(time.time() - 120)}000000", "MESSAGE": TROUBLE}
    check.tool("systemctl", f"/bin/cat <<'END'\n{shown}\nEND")
    said = f"case \"$*\" in *_SYSTEMD_INVOCATION_ID={run}*) /bin/cat <<'END'\n{json.dumps(trouble)}\nEND\nesac"
    check.tool("journalctl", f"echo '{complaint}' >&2\n{said}")


@pytest.mark.parametrize(
    ("changes", "word", "parts"),
    [
        (
            {},
            "ok",
            [
                "envoy2emon_inv runs: 147 W generating",
                "last trouble, 2 min ago: gateway: it is ...5678, ***, http://***@envoy, ***",
            ],
        ),
        ({"UnitFileState": "disabled"}, "warn", ["sudo systemctl enable envoy2emon_inv"]),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            "FAIL",
            ["exit status 78", "restart"],
        ),
        ({"ActiveState": "inactive"}, "FAIL", ["does not run", "sudo systemctl start envoy2emon_inv"]),
        ({"ActiveState": "inactive", "UnitFileState": "disabled"}, "warn", ["systemctl enable --now envoy2emon_inv"]),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "41"},
            "FAIL",
            ["41 times", "journalctl"],
        ),
        ({"ActiveState": "activating", "SubState": "start"}, "warn", ["just starting"]),
        ({"LoadState": "not-found"}, "warn", ["sudo systemd/install.sh"]),
        # A daemon that has nothing to do at this gateway may be off.
        ({"Id": "envoy2emon.service", "ActiveState": "inactive", "UnitFileState": "disabled"}, "ok", ["nothing to do"]),
    ],
)
def test_units(check: Check, changes: dict[str, str], word: str, parts: list[str]) -> None:
    """Each state of a unit has its own message, followed by its last trouble."""
    systemd(check, changes)
    answers = check(ENVOY_INVERTERS_PASSWORD="installer-password", ENVOY_INVERTERS_USER="installer")
    answers.say(word, "units", *parts)


def test_trouble_of_an_earlier_run(check: Check) -> None:
    """Trouble from before the unit's last start is not reported."""
    systemd(check, {}, run="9999ffff")
    answers = check()
    answers.say("ok", "units", "envoy2emon_inv runs: 147 W generating")
    assert "last trouble" not in str(answers.lines)


def test_trouble_that_lasts(check: Check) -> None:
    """Trouble that a running unit's status already shows is not repeated as its last trouble."""
    reason = TROUBLE.removeprefix("gateway: ")
    systemd(check, {"StatusText": f"no reading yet; gateway failing for 2 min: {reason}"})
    answers = check()
    answers.say("ok", "units", "gateway failing for 2 min: it is ...5678")
    assert "last trouble" not in str(answers.lines)
    systemd(check, {"StatusText": f"gateway failing for 2 min: {reason}", "ActiveState": "failed"})
    check().say("FAIL", "units", "has failed", "last trouble, 2 min ago: gateway: it is ...5678")


def test_journal_that_may_not_be_read(check: Check) -> None:
    """A user who may not read the journal is advised to run check as root."""
    if os.geteuid() == 0:
        pytest.skip("root may read every journal")
    systemd(check, {}, complaint="No journal files were opened due to insufficient permissions.")
    check().say("warn", "units", "may not be read by this user: run: sudo envoy2emon check")
