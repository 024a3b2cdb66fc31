"""The commands: `envoy2emon stream`, `inverters`, `check` and `demo`. The one room that knows all others.

The law of this file: a command imports what it needs and no more, for imports are what a start costs.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envoy2emon import __version__, config, log

if TYPE_CHECKING:
    from collections.abc import Callable

    from envoy2emon.emoncms.backlog import Backlog
    from envoy2emon.emoncms.courier import Courier
    from envoy2emon.emoncms.dates import Dating
    from envoy2emon.gateway.readings import MeterReading
    from envoy2emon.settings import Config
    from envoy2emon.gateway.tokens import Tokens

EX_CONFIG = 78  # sysexits.h; the units do not restart on it
# A post that is under way at SIGTERM may end in peace for so long, before all that waits is saved; then the stop
# stays below 2 s.
LAST_POST_S = 1.0

_log = logging.getLogger(__name__)


def main() -> int:
    """Run the command that the arguments name and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C leaves no traceback, whatever is being imported
    arguments = _arguments()
    log.setup(os.environ)
    if arguments.command == "check":
        from envoy2emon.check import questions as check

        return check.run(arguments.env_file, os.environ)
    if arguments.command == "demo":
        from envoy2emon.demo import run as demo

        return demo.run(arguments.seconds, arguments.listen)
    return _daemon(arguments)


def _daemon(arguments: argparse.Namespace) -> int:
    path = config.find(arguments.env_file, os.environ)
    required = bool(arguments.env_file or os.environ.get("ENVOY2EMON_ENV_FILE"))
    try:
        settings, warnings = config.load(path, os.environ, required=required)
    except config.ConfigError as error:
        for problem in error.problems:
            _log.error(problem)
        for warning in error.warnings:
            _log.warning(warning)
        return EX_CONFIG
    log.setup(os.environ, settings.log_level, settings.log_file, settings.secrets())
    for warning in warnings:
        _log.warning(warning)
    return (_stream if arguments.command == "stream" else _inverters)(settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="envoy2emon", description="Carries an Enphase Envoy's readings into EmonCMS.")
    parser.add_argument("--version", action="version", version=f"envoy2emon {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "stream": "run the daemon that follows the meters, in the foreground",
        "inverters": "run the daemon that polls the microinverters, in the foreground",
        "check": "ask every question that matters when something does not work",
        "demo": "show it all without an Envoy, an EmonCMS or settings",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        env_file = "the settings (default: $ENVOY2EMON_ENV_FILE, else ./.env)"
        if name == "demo":
            env_file = argparse.SUPPRESS  # it has settings of its own
            command.add_argument("--seconds", type=float, metavar="N", help="end after N seconds (default: Ctrl-C)")
            page = "where the live page is (default: 127.0.0.1:8080, or another port if that is taken)"
            command.add_argument("--listen", metavar="HOST:PORT", help=page)
        command.add_argument("--env-file", type=Path, metavar="PATH", help=env_file)
    return parser.parse_args()


def _stream(settings: Config) -> int:
    from envoy2emon.emoncms.dates import ByAge
    from envoy2emon.gateway.client import Envoy
    from envoy2emon.rows import Selection
    from envoy2emon.outage import REFUSED_WAIT_S, default_jitter
    from envoy2emon.gateway.reader import Reader
    from envoy2emon.systemd import Service, boot_id
    from envoy2emon.stream import Stream

    service = Service()
    tokens = _tokens(settings)
    envoy = Envoy(settings, tokens)
    _say_start("the meters", settings, settings.emoncms_node)
    backlog, courier = _courier(settings, "stream", ByAge(), boot_id(os.environ))
    selection = Selection(
        settings.stream_sections,
        settings.stream_phases,
        settings.stream_keys,
        settings.stream_min_production_w,
        settings.stream_net == "calculated",
    )
    silence = float(settings.stream_timeout_s)
    stream = Stream(settings.emoncms_node, selection, courier, _live(settings), service.wake, time.monotonic)
    reader = Reader(envoy, stream.take, settings.stream_source, silence, time.monotonic, default_jitter)
    service.start("reader", reader.run, patience=silence + REFUSED_WAIT_S)
    service.start("delivery", courier.run, patience=REFUSED_WAIT_S)
    status = service.run(stream.look, lambda: stream.status(reader) + _expiry(tokens))
    courier.finish(LAST_POST_S)
    stream.close()
    backlog.close()
    return status


def _inverters(settings: Config) -> int:
    from envoy2emon.emoncms.dates import ByDate
    from envoy2emon.gateway.client import Envoy
    from envoy2emon.inverters import Inverters, Poller
    from envoy2emon.outage import REFUSED_WAIT_S, default_jitter
    from envoy2emon.systemd import Service

    service = Service()
    tokens = _tokens(settings)
    envoy = Envoy(settings, tokens, inverters=True)
    _say_start("the inverters", settings, settings.emoncms_inverters_node)
    backlog, courier = _courier(settings, "inverters", ByDate(), None)
    inverters = Inverters(settings.emoncms_inverters_node, courier, left=backlog)
    interval = float(settings.inverters_interval_s)
    poller = Poller(envoy, inverters.take, interval, time.monotonic, default_jitter)
    service.start("poller", poller.run, patience=interval + REFUSED_WAIT_S)
    service.start("delivery", courier.run, patience=REFUSED_WAIT_S)
    status = service.run(courier.look, lambda: inverters.status(poller) + _expiry(tokens))
    courier.finish(LAST_POST_S)
    backlog.close()
    return status


def _say_start(what: str, settings: Config, node: str) -> None:
    _log.info(
        "envoy2emon %s: reads %s of the Envoy at %s, posts to %s as node %s",
        __version__,
        what,
        settings.envoy_host,
        settings.emoncms_url,
        node,
    )


def _tokens(settings: Config) -> Tokens:
    from envoy2emon.systemd import state_directory
    from envoy2emon.gateway.tokens import Tokens

    return Tokens(settings, state_directory(os.environ))


def _expiry(tokens: Tokens) -> str:
    return f"; token until {tokens.current.expiry}" if tokens.current else ""


def _courier(settings: Config, name: str, dating: Dating, boot: str | None) -> tuple[Backlog, Courier]:
    """Build the way to EmonCMS, with what an earlier run left in the spool."""
    from envoy2emon.emoncms.backlog import Backlog
    from envoy2emon.emoncms.courier import Courier
    from envoy2emon.emoncms.delivery import Delivery
    from envoy2emon.emoncms.client import EmonCMS
    from envoy2emon.outage import default_jitter
    from envoy2emon.systemd import state_directory
    from envoy2emon.emoncms.spool import Spool

    state = state_directory(os.environ)
    spool = Spool(state and state / f"{name}.sqlite", boot, lambda: time.time() - time.monotonic())
    backlog = Backlog(round(float(settings.backlog_hours) * 3600), spool, time.monotonic)
    if len(backlog):
        _log.info("%d rows of an earlier run wait to be delivered", len(backlog))
    emoncms = EmonCMS(settings.emoncms_url, settings.emoncms_apikey)
    delivery = Delivery(backlog, emoncms, dating, time.monotonic, default_jitter)
    return backlog, Courier(backlog, delivery, time.monotonic)


def _live(settings: Config) -> Callable[[MeterReading], None] | None:
    if not settings.live_listen:
        return None
    from envoy2emon.live.server import Live

    live = Live(settings.live_listen)
    live.start()
    return live.show


if __name__ == "__main__":
    sys.exit(main())
