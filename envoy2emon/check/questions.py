"""`envoy2emon check`: every question that a puzzled owner has, in the order in which a person would ask.

Each answer comes within a bounded time, and no question changes anything. A question is left out if it depends on an
earlier one that went badly. Trouble with the gateway, EmonCMS or this computer does not stop questions to the others.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from queue import Empty, SimpleQueue

from envoy2emon import settings
from envoy2emon.check import computer, emoncms, gateway
from envoy2emon.check.verdict import Found, Report, Verdict, fail, ok, warn
from envoy2emon.gateway.tokens import Tokens
from envoy2emon.settings import Settings
from envoy2emon.systemd import state_directory

# D7.0.88 sends its events in bursts 21 to 23 s apart (Matthew1471/Enphase-API).
PATIENCE_S = 35.0
_OUR_FILES = Path(__file__).parent.parent


def run(env_file: Path | None, environ: Mapping[str, str], *, patience: float = PATIENCE_S) -> int:
    """Ask everything, print one line per answer, and return 1 if a line says FAIL, else 0.

    patience: the longest wait for a reading, in seconds; the longest wait for any answer is twice that.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    report, found, state = Report(), Found(), state_directory(environ)
    logging.basicConfig(handlers=[_Troubles(report)], level=logging.WARNING, force=True)
    chosen, wrong = _settings(report, env_file, environ)
    within = 2 * patience
    slow = f"no answer within {within:.0f} s:"
    if not any(name.startswith(("ENVOY_", "ENPHASE_")) for name in wrong):
        asked = gateway.ask(chosen, Tokens(chosen, state, readonly=True), found, patience)
        late = fail("gateway", f"{slow} is it restarting or overloaded? Wait five minutes and check again")
        _say(report, asked, within, late)
    if not wrong & {"EMONCMS_URL", "EMONCMS_CERT_SHA256"}:
        cure = "is its computer overloaded, or its database down? Look at it in the browser"
        _say(report, emoncms.ask(chosen, found), within, fail("EmonCMS", f"{slow} {cure}"))
    late = warn("computer", f"{slow} is its disk or systemd in trouble?")
    _say(report, computer.ask(chosen.live_listen, state, found), within, late)
    return 1 if report.failed else 0


def _settings(report: Report, env_file: Path | None, environ: Mapping[str, str]) -> tuple[Settings, set[str]]:
    """Report on the settings; return them, with defaults in place of wrong ones, and the names of the wrong ones."""
    path = settings.find(env_file, environ)
    shown = settings.display(path.absolute(), environ)
    report.env_file = str(shown)
    try:
        chosen, warnings = settings.load(path, environ, required=bool(env_file or environ.get("ENVOY2EMON_ENV_FILE")))
        wrong = set()
    except settings.ConfigError as error:
        chosen, wrong, warnings = error.partial, error.wrong, error.warnings
        for problem in error.problems:
            report.say(fail("settings", problem))
        if _denied(path):
            report.say(warn("settings", f"this user may not read {shown}: {computer.SUDO}"))
    else:
        source = f"read from {shown}" if path.exists() else f"there is no {shown}: defaults and environment are used"
        if named := sorted(environ.keys() & {setting.name.upper() for setting in fields(Settings)}):
            source += f"; the environment overrides {', '.join(named)}"
        report.say(ok("settings", source))
    for warning in warnings:
        report.say(warn("settings", warning))
    return chosen, wrong


def _denied(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK)


class _Troubles(logging.Handler):
    """Prints as answers the warnings that the daemons' modules would log."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.say(warn("note", record.getMessage()))


def _say(report: Report, verdicts: Iterator[Verdict], within: float, late: Verdict) -> None:
    """Report verdicts; if the next one takes longer than `within` s, report `late` and abandon the hanging thread.

    An unforeseen exception becomes a FAIL, which ends these questions but not the others.
    """
    answers: SimpleQueue[Verdict | None] = SimpleQueue()

    def ask() -> None:
        try:
            for verdict in verdicts:
                answers.put(verdict)
        except Exception as error:  # noqa: BLE001 - it is reported, with its place
            places = [(Path(at.filename), at.lineno) for at in traceback.extract_tb(error.__traceback__)]
            file, line = [place for place in places if place[0].is_relative_to(_OUR_FILES)][-1]
            what = f"{type(error).__name__}: {error} ({file.name}, line {line})"
            answers.put(fail(late.subject, f"{what}: this is a bug in envoy2emon: please report it with this line"))
        finally:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()
    while True:
        try:
            verdict = answers.get(timeout=within)
        except Empty:
            verdict = late
        if verdict is None:
            return
        report.say(verdict)
        if verdict is late:
            return
