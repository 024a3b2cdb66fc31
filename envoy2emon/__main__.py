"""The commands: `envoy2emon stream`, `inverters`, `check` and `demo`.

Each command imports only what it needs, because imports are the slowest part of a start.
"""

import os
import signal

# Set before the imports, the slowest part of a start, so that SIGTERM during them exits with status 0.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during an import leaves no traceback

import argparse
import logging
import sys
from pathlib import Path

from envoy2emon import __version__, log, settings

EX_CONFIG = 78  # sysexits.h; the units do not restart on it

_log = logging.getLogger(__name__)


def main() -> int:
    """Run the command that the arguments name and return the exit status."""
    arguments = _arguments()
    log.setup(os.environ)
    if arguments.command == "check":
        from envoy2emon.check.questions import run

        return run(arguments.env_file, os.environ)
    if arguments.command == "demo":
        from envoy2emon.demo.run import run as show

        return show(arguments.seconds, arguments.listen)
    return _daemon(arguments)


def _daemon(arguments: argparse.Namespace) -> int:
    path = settings.find(arguments.env_file, os.environ)
    required = bool(arguments.env_file or os.environ.get("ENVOY2EMON_ENV_FILE"))
    try:
        chosen, warnings = settings.load(path, os.environ, required=required)
    except settings.ConfigError as error:
        for problem in error.problems:
            _log.error(problem)
        for warning in error.warnings:
            _log.warning(warning)
        return EX_CONFIG
    from envoy2emon import inverters, stream
    from envoy2emon.systemd import AlreadyRuns, claim, state_directory

    try:
        claim(arguments.command, state_directory(os.environ))
    except AlreadyRuns as trouble:
        _log.error("%s", trouble)
        return EX_CONFIG
    log.setup(os.environ, chosen.log_level, chosen.log_file)
    for warning in warnings:
        _log.warning(warning)
    return {"stream": stream.run, "inverters": inverters.run}[arguments.command](chosen, os.environ)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="envoy2emon", description="Carries an Enphase gateway's readings to EmonCMS.")
    parser.add_argument("--version", action="version", version=f"envoy2emon {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "stream": "run the daemon that follows the meters, in the foreground",
        "inverters": "run the daemon that polls the microinverters, in the foreground",
        "check": "ask every question that matters when something does not work",
        "demo": "show it all without a gateway, an EmonCMS or settings",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        env_file = "the settings (default: $ENVOY2EMON_ENV_FILE, else ./.env)"
        if name == "demo":
            env_file = argparse.SUPPRESS  # the demo has its own settings
            command.add_argument("--seconds", type=float, metavar="N", help="end after N seconds (default: Ctrl-C)")
            page = "where the live page is (default: 127.0.0.1:8080, or another port if that is taken)"
            command.add_argument("--listen", metavar="HOST:PORT", help=page)
        command.add_argument("--env-file", type=Path, metavar="PATH", help=env_file)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
