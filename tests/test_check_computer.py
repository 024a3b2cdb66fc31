"""What `envoy2emon check` says of this computer: clocks, saved backlog, live page, the units of a fake systemd."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from envoy2emon.check import computer
from envoy2emon.check.verdict import Found
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.live.server import Live
from tests.checks import Check

NOW = 1_700_000_000


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 without meters, because check asks such a gateway least."""
    with SimulatedEnvoy(metered=False, source=lambda: THREE_PHASE_EVENT, interval=0.05) as envoy:
        yield envoy


@pytest.mark.parametrize(
    ("gateway", "emoncms", "word", "words"),
    [
        (2, -2, "ok", "the gateway's is the same, EmonCMS's is the same"),
        (None, -7200, "warn", "EmonCMS's is 2 h 0 min behind. This computer's clock is wrong, unless that is"),
        (7200, 7200, "warn", "EmonCMS's is 2 h 0 min ahead. This computer's clock is wrong, unless both are"),
        (0, 7200, "warn", "EmonCMS's is 2 h 0 min ahead. EmonCMS's clock dates the meters' readings: see timedatectl"),
        (-7200, 0, "warn", "It dates the inverters' reports, and is set over the Internet: does the gateway have"),
    ],
)
def test_clocks(gateway: float | None, emoncms: float, word: str, words: str) -> None:
    """Of the three clocks, the one that differs from the other two is reported as wrong."""
    verdict = next(computer.ask(None, None, Found(gateway_ahead=gateway, emoncms_ahead=emoncms)))
    assert (verdict.word, verdict.subject) == (word, "clocks")
    assert words in verdict.text


def test_backlog(check: Check) -> None:
    """Saved rows are reported and left unchanged; so are files that are set aside, and links."""
    saved = check.state / "stream.sqlite"
    check.state.mkdir(parents=True)
    saved.write_bytes(b"rows")
    check().say("warn", "backlog", "rows of the stream wait in ", "when EmonCMS answers")
    (check.state / "inverters.sqlite.set-aside-1").touch()
    (check.state / "inverters.sqlite").symlink_to(saved)
    answers = check()
    answers.say("warn", "backlog", "inverters.sqlite.set-aside-1 in ", "could not be read")
    answers.say("warn", "backlog", "inverters.sqlite in ", "is a symbolic link, which is not followed")
    assert "rows of the stream and" not in str(answers.lines)
    assert saved.read_bytes() == b"rows"


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


def test_what_only_root_may_read(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may not read the settings, the state or the journal is advised to run check as root."""

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    systemd(check, {})
    check.tool("journalctl", "echo 'No journal files were opened due to insufficient permissions.' >&2")
    check.state.mkdir(parents=True)
    # Root, who runs these tests in CI, may read everything.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    answers = check()
    assert answers.subjects() == "settings backlog units"
    answers.say("FAIL", "settings", "may not be read by this user: use sudo")
    for subject in ("settings", "backlog", "units"):
        answers.say("warn", subject, "this user", "run: sudo envoy2emon check")


def test_live_page(check: Check, envoy: SimulatedEnvoy) -> None:
    """A live page that is set up but not served is a warning, and so is another program on its port."""
    check(LIVE_LISTEN="127.0.0.1:1").say("warn", "live", "refuses the connection", "sudo systemctl status envoy2emon")
    check(LIVE_LISTEN=envoy.host).say("warn", "live", "another program answers at http://" + envoy.host)
    page = Live("0.0.0.0:0", None)
    page.start()
    check(LIVE_LISTEN=f"0.0.0.0:{page.port}").say("ok", "live", f"http://127.0.0.1:{page.port}")
    page.close()
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


def systemd(check: Check, changes: dict[str, str]) -> None:
    """Install a fake systemctl and journalctl that report one unit, and trouble in its run."""
    shown = "\n".join(f"{name}={value}" for name, value in (UNIT | changes).items())
    trouble = {"__REALTIME_TIMESTAMP": f"{int(time.time() - 120)}000000", "MESSAGE": TROUBLE}
    check.tool("systemctl", f"/bin/cat <<'END'\n{shown}\nEND")
    check.tool("journalctl", f"/bin/cat <<'END'\n{json.dumps(trouble)}\nEND")


@pytest.mark.parametrize(
    ("changes", "word", "words"),
    [
        (
            {},
            "ok",
            "runs: 147 W generating; last trouble, 2 min ago: gateway: it is ...5678, ***, http://***@envoy, ***",
        ),
        ({"UnitFileState": "disabled"}, "warn", "sudo systemctl enable envoy2emon_inv"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "41"},
            "FAIL",
            "keeps stopping and restarting, 41 times so far",
        ),
        ({"ActiveState": "activating", "SubState": "start"}, "warn", "just starting"),
        ({"ActiveState": "inactive"}, "FAIL", "does not run; last trouble, 2 min ago"),
        (
            {"ActiveState": "inactive", "UnitFileState": "disabled"},
            "warn",
            "sudo systemctl enable --now envoy2emon_inv",
        ),
        ({"LoadState": "not-found"}, "warn", "sudo systemd/install.sh"),
        # A daemon that has nothing to do at this gateway may be off.
        ({"Id": "envoy2emon.service", "ActiveState": "inactive", "UnitFileState": "disabled"}, "ok", "nothing to do"),
    ],
)
def test_units(check: Check, changes: dict[str, str], word: str, words: str) -> None:
    """Each state of a unit has its own message."""
    systemd(check, changes)
    answers = check(ENVOY_INVERTERS_PASSWORD="installer-password", ENVOY_INVERTERS_USER="installer")
    answers.say(word, "units", words)


def test_trouble_that_lasts(check: Check) -> None:
    """Trouble that a running unit's status already shows is not repeated as its last trouble."""
    reason = TROUBLE.removeprefix("gateway: ")
    systemd(check, {"StatusText": f"no reading yet; gateway failing for 2 min: {reason}"})
    answers = check()
    answers.say(
        "warn", "units", "gateway failing for 2 min: it is ...5678", "at once: sudo systemctl restart envoy2emon"
    )
    assert "last trouble" not in str(answers.lines)
    systemd(check, {"StatusText": f"gateway failing for 2 min: {reason}", "ActiveState": "failed"})
    check().say("FAIL", "units", "has failed", "last trouble, 2 min ago: gateway: it is ...5678")
