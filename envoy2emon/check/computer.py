"""The questions to this computer: its clock, the saved backlog, the live page, the units.

Nothing is opened for writing, and a running daemon is not disturbed. No link in the state directory is followed,
because the check may run as root while the service's user may have made the link.
"""

import json
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from envoy2emon import web
from envoy2emon.check.verdict import Found, Verdict, fail, ok, warn
from envoy2emon.inverters import CLOCK_OFF_S
from envoy2emon.outage import duration
from envoy2emon.settings import INSTALLED_ENV_FILE

CLOCKS_APART_S = 60.0
# A day's rows of 36 inputs take 13 MB, and the daemons save 31 MB at most (emoncms/backlog.py).
LEAST_FREE = 50 * 1024 * 1024
DAEMONS = {"envoy2emon": "stream", "envoy2emon_inv": "inverters"}
SUDO = "run: sudo envoy2emon check"
_TOOL_TIMEOUT_S = 5.0
_PROPERTIES = (
    "Id,LoadState,UnitFileState,ActiveState,SubState,Result,StatusText,NRestarts,ExecMainStatus,InvocationID,"
    "ActiveEnterTimestamp"
)


def ask(live_listen: str | None, state: Path | None, found: Found) -> Iterator[Verdict]:
    """Ask this computer all questions."""
    yield from _clocks(found)
    yield from _backlog(state)
    if live_listen:
        yield _live(live_listen)
    idle = {"envoy2emon"} if found.meters is False else set()
    yield from _units(idle | ({"envoy2emon_inv"} if found.newest_report == 0 else set()))


def _clocks(found: Found) -> Iterator[Verdict]:
    clocks = {"the gateway's": found.gateway_ahead, "EmonCMS's": found.emoncms_ahead}
    known = {whose: ahead for whose, ahead in clocks.items() if ahead is not None}
    if not known:
        return
    told = ", ".join(f"{whose} is {_apart(ahead)}" for whose, ahead in known.items())
    text = f"compared with this computer's clock, {told}"
    gateway, emoncms = found.gateway_ahead or 0.0, found.emoncms_ahead or 0.0
    if abs(gateway) <= CLOCK_OFF_S and abs(emoncms) <= CLOCKS_APART_S:
        yield ok("clocks", text)
    elif max(known.values()) - min(known.values()) <= CLOCKS_APART_S:
        yield warn(
            "clocks",
            f"{text}. This computer's clock is wrong, unless {'both are' if gateway else 'that is'}: see timedatectl",
        )
    elif abs(gateway) > CLOCK_OFF_S:
        cure = "It dates the inverters' reports, and is set over the Internet: does the gateway have Internet access?"
        yield warn("clocks", f"{text}. {cure}")
    else:
        yield warn("clocks", f"{text}. EmonCMS's clock dates the meters' readings: see timedatectl on its computer")


def _apart(seconds: float) -> str:
    if abs(seconds) < 3:  # noqa: PLR2004 - the other clocks report whole seconds
        return "the same"
    return f"{duration(abs(seconds))} {'ahead' if seconds > 0 else 'behind'}"


def _backlog(state: Path | None) -> Iterator[Verdict]:
    if state is None:
        yield warn("backlog", "there is no HOME or STATE_DIRECTORY to save it in, so it is kept in memory only")
        return
    try:
        folder = next(path for path in (state, *state.parents) if path.exists())
        disk = os.statvfs(folder)
        entries = list(os.scandir(state)) if state == folder else []
    except NotADirectoryError:
        yield fail("backlog", f"{state} is not a directory, so nothing can be saved there: is STATE_DIRECTORY right?")
        return
    except OSError:
        yield warn("backlog", f"{state} may not be read by this user: {SUDO}")
        return
    free = disk.f_bavail * disk.f_frsize
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        cure = "is the disk read-only (see mount), and STATE_DIRECTORY right?"
        yield fail("backlog", f"{folder} cannot be written, so nothing can be saved there: {cure}")
    elif free < LEAST_FREE:
        yield fail("backlog", f"{folder} has only {free // 1024**2} MB left: free some space, df -h shows where")
    for link in sorted(entry.name for entry in entries if entry.is_symlink()):
        yield warn(
            "backlog",
            f"{link} in {state} is a symbolic link, which is not followed. Find out who made it and remove it",
        )
    if aside := sorted(entry.name for entry in entries if ".set-aside-" in entry.name or ".damaged-" in entry.name):
        yield warn("backlog", f"{', '.join(aside)} in {state} could not be read as a backlog; remove it if you like")
    files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    if waiting := [name for name in DAEMONS.values() if f"{name}.sqlite" in files]:
        rows = f"rows of the {' and the '.join(waiting)} wait in {state}"
        yield warn("backlog", f"{rows}; they go out, oldest first, when EmonCMS answers")
    else:
        yield ok("backlog", f"no saved rows wait in {state}")


def _live(listen: str) -> Verdict:
    host, _, port = listen.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - nothing is bound here
    url = f"http://{host}:{port}/"
    cure = "the daemon envoy2emon serves it; sudo systemctl status envoy2emon says why it does not"
    try:
        with web.session(url) as session, web.raising_failed(_TOOL_TIMEOUT_S):
            page = web.body(session.get(url, timeout=_TOOL_TIMEOUT_S, stream=True))
    except web.Failed as failed:
        return warn("live", f"LIVE_LISTEN is {listen}, but there is no page, because {url} {failed}: {cure}")
    if "solar_data" not in page:
        return warn("live", f"LIVE_LISTEN is {listen}, but another program answers at {url}: choose another port")
    return ok("live", f"the page is there, at {url} from this computer")


def _units(idle: Collection[str]) -> Iterator[Verdict]:
    """Report on each unit; those in `idle` have nothing to do at this gateway."""
    units = [f"{name}.service" for name in DAEMONS]
    shown, _ = _output("systemctl", "show", "--timestamp=unix", f"--property={_PROPERTIES}", *units)
    if not shown:
        yield ok("units", "systemd does not run here")
        return
    may_read = True
    for block in shown.strip().split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("LoadState") == "loaded":
            name = unit["Id"].removesuffix(".service")
            trouble, complaint = _last_trouble(name, unit)
            may_read &= not complaint
            off = unit["ActiveState"] == "inactive" and name in idle
            yield (
                ok("units", f"{name} is off, as it should be, because it has nothing to do here")
                if off
                else _unit(unit, name, trouble)
            )
        elif unit:
            yield warn("units", f"{unit.get('Id')} is not installed: sudo systemd/install.sh does it")
    if not may_read and os.geteuid() != 0:
        yield warn("units", f"the daemons' messages may not be read by this user: {SUDO}")


def _unit(unit: Mapping[str, str], name: str, trouble: str) -> Verdict:
    if unit["ActiveState"] != "active":
        return _not_running(unit, name, trouble)
    text = f"{name} runs: {unit['StatusText'] or 'no status yet'}{trouble}"
    if unit["UnitFileState"] != "enabled":
        return warn("units", f"{text}. It will not start with the computer: sudo systemctl enable {name}")
    if _changed_since(unit["ActiveEnterTimestamp"]):
        return warn("units", f"{text}. The settings have changed since it started: sudo systemctl restart {name}")
    if " failing for " in unit["StatusText"]:  # Outage.status()
        return warn("units", f"{text}. It tries again by itself; to try at once: sudo systemctl restart {name}")
    return ok("units", text)


def _not_running(unit: Mapping[str, str], name: str, trouble: str) -> Verdict:
    if unit["ActiveState"] == "failed":
        how = f"{unit['Result']}, exit status {unit['ExecMainStatus']}"
        return fail("units", f"{name} has failed ({how}){trouble}. Fix that, then: sudo systemctl restart {name}")
    if unit["SubState"] == "auto-restart":
        restarts = f"{unit['NRestarts']} times so far"
        return fail(
            "units", f"{name} keeps stopping and restarting, {restarts}{trouble}. See sudo journalctl -u {name}"
        )
    if unit["ActiveState"] == "activating":
        return warn("units", f"{name} is just starting")
    if unit["UnitFileState"] == "enabled":
        return fail("units", f"{name} does not run{trouble}. Start it: sudo systemctl start {name}")
    return warn("units", f"{name} is off. If you want it on: sudo systemctl enable --now {name}")


def _changed_since(started: str) -> bool:
    """Return whether the units' settings file, even if another one is read here, has changed since a unit's start."""
    try:
        # systemd reports whole seconds.
        return INSTALLED_ENV_FILE.stat().st_mtime >= float(started.removeprefix("@")) + 1
    except (OSError, ValueError):
        return False


def _last_trouble(name: str, unit: Mapping[str, str]) -> tuple[str, str]:
    """Return the last warning or error that the daemon itself wrote in this run, and journalctl's complaints.

    The message is left out if the status of a running daemon already gives its reason.
    """
    run, status = unit["InvocationID"], unit["StatusText"] if unit["ActiveState"] == "active" else ""
    options = ("--priority=warning", "--lines=1", "--output=json", "--no-pager", f"_SYSTEMD_INVOCATION_ID={run}")
    lines, complaint = _output("journalctl", f"--identifier={name}", *options)
    try:
        entry = json.loads(lines.splitlines()[-1])
        age = time.time() - int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        message = str(entry["MESSAGE"])
        if (reason := message.partition(": ")[2]) and reason in status:
            return "", complaint
        return f"; last trouble, {duration(age)} ago: {message}", complaint
    except (LookupError, ValueError, TypeError):
        return "", complaint


def _output(*command: str) -> tuple[str, str]:
    """Return a command's stdout and stderr: no stdout if it fails, neither if it cannot run or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False, text=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return "", ""
    return done.stdout if done.returncode == 0 else "", done.stderr
