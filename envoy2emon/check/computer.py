"""The questions to this computer: its clock, the saved backlog, the units.

The law of this file: nothing is written, and a daemon at work is not disturbed.
"""

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from envoy2emon.check.verdict import Verdict, fail, ok, warn
from envoy2emon.config import INSTALLED_ENV_FILE
from envoy2emon.outage import duration

CLOCKS_APART_S = 60.0
# 24 hours of readings take 13 MB.
LEAST_FREE = 50 * 1024 * 1024
DAEMONS = {"envoy2emon": "stream", "envoy2emon_inv": "inverters"}
_TOOL_TIMEOUT_S = 5.0
# Bundles go as a whole when all of their rows are delivered.
_WAITING = "SELECT sum(count) FROM rows"
_PROPERTIES = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,StatusText,NRestarts,ExecMainStatus"


def ask(clocks: Mapping[str, float], state: Path | None) -> Iterator[Verdict]:
    """Ask all of it; `clocks` holds the seconds by which the neighbours' clocks are ahead."""
    if clocks:
        yield _clocks(clocks)
    yield from _backlog(state)
    yield from _units()


def _clocks(clocks: Mapping[str, float]) -> Verdict:
    told = ", ".join(f"{name}'s is {_apart(seconds)}" for name, seconds in clocks.items())
    text = f"against this computer's clock {told}"
    seconds = list(clocks.values())
    if max(map(abs, seconds)) <= CLOCKS_APART_S:
        return ok("clocks", text)
    if max(seconds) - min(seconds) <= CLOCKS_APART_S:
        cure = "this computer's clock is the wrong one, unless it is theirs: see timedatectl"
    elif abs(clocks["Envoy"]) > CLOCKS_APART_S:
        cure = "the inverters' reports are dated by the Envoy's clock, which Enphase sets: has the Envoy Internet?"
    else:
        cure = "EmonCMS dates the meters' readings: see timedatectl on its computer"
    return warn("clocks", f"{text}: {cure}")


def _apart(seconds: float) -> str:
    if abs(seconds) < 3:  # noqa: PLR2004 - both sides tell whole seconds
        return "the same"
    return f"{duration(abs(seconds))} {'ahead' if seconds > 0 else 'behind'}"


def _backlog(state: Path | None) -> Iterator[Verdict]:
    if state is None:
        yield warn("backlog", "there is no HOME or STATE_DIRECTORY to save it in: it is kept in memory only")
        return
    try:
        folder = next(path for path in (state, *state.parents) if path.exists())
        disk = os.statvfs(folder)
        damaged = sorted(path.name for path in state.glob("*.damaged-*"))
        waiting = {name: _waiting(state / f"{name}.sqlite") for name in DAEMONS.values()}
    except OSError as error:
        yield warn("backlog", f"{state} cannot be looked into ({error.strerror}): use sudo")
        return
    except sqlite3.Error as error:
        cure = "if it stays so, restart the daemons, which set aside what is damaged"
        yield warn("backlog", f"the saved rows in {state} cannot be read ({error}). Check again; {cure}")
        return
    free = disk.f_bavail * disk.f_frsize
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        cure = "is the disk read-only? See mount. Is STATE_DIRECTORY right?"
        yield fail("backlog", f"{folder} cannot be written, so nothing can be saved there: {cure}")
    elif free < LEAST_FREE:
        yield fail("backlog", f"{folder} has only {free // 1024**2} MB left: make room, df -h shows where")
    if damaged:
        yield warn("backlog", f"{', '.join(damaged)} in {state}: saved rows that could not be read; remove at will")
    if told := ", ".join(f"up to {rows} rows of the {name}" for name, rows in waiting.items() if rows):
        yield warn("backlog", f"{told} wait in {state}; they go out, oldest first, when EmonCMS answers")
    else:
        yield ok("backlog", f"nothing saved waits in {state}")


def _waiting(path: Path) -> int:
    """Count a daemon's saved rows; the file is read-only to us, and locked for no longer than this takes."""
    if not path.exists():
        return 0
    file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TOOL_TIMEOUT_S)
    try:
        return file.execute(_WAITING).fetchone()[0] or 0
    finally:
        file.close()


def _units() -> Iterator[Verdict]:
    units = [f"{name}.service" for name in DAEMONS]
    shown = _output("systemctl", "show", "--timestamp=unix", f"--property={_PROPERTIES},ActiveEnterTimestamp", *units)
    if not shown:
        yield ok("units", "no systemd runs here")
    for block in shown.strip().split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("LoadState") == "loaded":
            yield _unit(unit, unit["Id"].removesuffix(".service"))
        elif unit:
            yield warn("units", f"{unit.get('Id')} is not installed: sudo systemd/install.sh does it")


def _unit(unit: Mapping[str, str], name: str) -> Verdict:
    trouble = _last_trouble(name)
    if unit["ActiveState"] != "active":
        return _not_running(unit, name, trouble)
    text = f"{name} runs: {unit['StatusText'] or 'no status yet'}{trouble}"
    if unit["UnitFileState"] != "enabled":
        return warn("units", f"{text}. It will not start with the computer: sudo systemctl enable {name}")
    if _changed_since(unit.get("ActiveEnterTimestamp", "")):
        return warn("units", f"{text}. The settings changed since it started: sudo systemctl restart {name}")
    return ok("units", text)


def _not_running(unit: Mapping[str, str], name: str, trouble: str) -> Verdict:
    if unit["ActiveState"] == "failed":
        how = f"{unit['Result']}, exit status {unit['ExecMainStatus']}"
        return fail("units", f"{name} has failed ({how}){trouble}. Mend that, then: sudo systemctl restart {name}")
    if unit["SubState"] == "auto-restart":
        restarts = f"{unit['NRestarts']} times so far"
        return fail("units", f"{name} ends and starts again, {restarts}{trouble}. See sudo journalctl -u {name}")
    if unit["ActiveState"] == "activating":
        return warn("units", f"{name} is just starting")
    if unit["UnitFileState"] == "enabled":
        return fail("units", f"{name} does not run{trouble}. Start it: sudo systemctl start {name}")
    return warn("units", f"{name} is off. If that is not meant: sudo systemctl enable --now {name}")


def _changed_since(started: str) -> bool:
    """Tell whether the file that the units read, whichever is read here, is newer than a unit's start."""
    try:
        # systemd tells whole seconds.
        return INSTALLED_ENV_FILE.stat().st_mtime >= float(started.removeprefix("@")) + 1
    except (OSError, ValueError):
        return False


def _last_trouble(name: str) -> str:
    """Tell the last warning or error that the daemon itself wrote since the boot."""
    options = ("--priority=warning", "--lines=1", "--output=json", "--boot", "--quiet", "--no-pager")
    lines = _output("journalctl", f"--identifier={name}", *options).splitlines()
    try:
        entry = json.loads(lines[-1])
        age = time.time() - int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        return f"; last trouble, {duration(age)} ago: {entry['MESSAGE']}"
    except (LookupError, ValueError, TypeError):
        return ""


def _output(*command: str) -> str:
    """Return what a command prints, "" if it fails or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=True, text=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
