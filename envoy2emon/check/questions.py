"""`envoy2emon check`: every question that a puzzled owner has, in the order in which a person would ask.

The law of this file: each answer comes in bounded time, and nothing is changed or disturbed by asking. A question that
cannot be asked before an earlier one is answered well is left out.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from queue import Empty, SimpleQueue

from envoy2emon import config
from envoy2emon.check import emoncms as check_emoncms
from envoy2emon.check import gateway as check_envoy
from envoy2emon.check import computer as check_machine
from envoy2emon.check.verdict import Report, Verdict, fail, ok, warn
from envoy2emon.systemd import state_directory
from envoy2emon.settings import Config
from envoy2emon.gateway.tokens import Tokens

# D7.0.88 sends its events in bursts 21 to 23 s apart (Matthew1471/Enphase-API).
PATIENCE_S = 35.0
# A question that waits for PATIENCE_S may say so itself.
GRACE_S = 5.0


def run(env_file: Path | None, environ: Mapping[str, str], *, patience: float = PATIENCE_S) -> int:
    """Ask everything, print one line an answer, and return 1 if a line says FAIL, else 0.

    patience: the longest wait for a reading, in seconds.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    report = Report()
    logging.basicConfig(handlers=[_Troubles(report)], level=logging.WARNING, force=True)
    settings = _settings(report, env_file, environ)
    if settings is None:
        return 1
    state = state_directory(environ)
    clocks: dict[str, float] = {}
    envoy = check_envoy.ask(settings, Tokens(settings, state), clocks, patience)
    within = patience + GRACE_S
    slow = f"no answer within {within:.0f} s:"
    cure = "is it restarting or overloaded? Wait five minutes and check again, then switch it off and on"
    for verdict in _bounded(envoy, within, fail("Envoy", f"{slow} {cure}")):
        report.say(verdict)
    cure = "is its computer overloaded, or its database down? Look at it in the browser"
    for verdict in _bounded(check_emoncms.ask(settings, clocks), within, fail("EmonCMS", f"{slow} {cure}")):
        report.say(verdict)
    machine = check_machine.ask(clocks, state)
    for verdict in _bounded(machine, within, warn("computer", f"{slow} is its disk or systemd in trouble?")):
        report.say(verdict)
    return 1 if report.failed else 0


def _settings(report: Report, env_file: Path | None, environ: Mapping[str, str]) -> Config | None:
    path = config.find(env_file, environ)
    required = bool(env_file or environ.get("ENVOY2EMON_ENV_FILE"))
    shown = config.display(path.absolute(), environ)
    try:
        settings, warnings = config.load(path, environ, required=required)
    except config.ConfigError as error:
        for problem in error.problems:
            report.say(fail("settings", problem))
        for warning in error.warnings:
            report.say(warn("settings", warning))
        report.say(fail("settings", f"{shown} comes first: mend it and check again; nothing else was asked"))
        return None
    report.secrets = settings.secrets()
    source = f"read from {shown}" if path.exists() else f"there is no {shown}: defaults and environment are used"
    if named := sorted(environ.keys() & {setting.name.upper() for setting in fields(Config)}):
        source += f"; the environment decides on {', '.join(named)}"
    report.say(ok("settings", source))
    for warning in warnings:
        report.say(warn("settings", warning))
    return settings


class _Troubles(logging.Handler):
    """What the rooms would warn of in the journal is an answer too."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.say(warn("note", record.getMessage()))


def _bounded(verdicts: Iterator[Verdict], within: float, late: Verdict) -> Iterator[Verdict]:
    """Pass verdicts on; if the next one takes longer than `within` s, say `late` and leave the thread that hangs.

    What nobody foresaw becomes a FAIL: it ends these questions, not the others.
    """
    said: SimpleQueue[Verdict | None] = SimpleQueue()

    def ask() -> None:
        try:
            for verdict in verdicts:
                said.put(verdict)
        except Exception as error:  # noqa: BLE001 - it is told, with its place
            passed = [(Path(at.filename), at.lineno) for at in traceback.extract_tb(error.__traceback__)]
            file, line = [place for place in passed if place[0].is_relative_to(Path(__file__).parent.parent)][-1]  # ours
            what = f"{type(error).__name__}: {error} ({file.name}, line {line})"
            said.put(fail(late.subject, f"{what}: this is a defect of envoy2emon: report it with this line"))
        finally:
            said.put(None)

    threading.Thread(target=ask, daemon=True).start()
    while True:
        try:
            verdict = said.get(timeout=within)
        except Empty:
            verdict = late
        if verdict is None:
            return
        yield verdict
        if verdict is late:
            return
