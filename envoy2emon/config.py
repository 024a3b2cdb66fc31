"""The owner's `.env` and the environment -> one frozen Config, or every problem at once.

The law of this file: a Config that exists is valid, and whoever reads a problem knows what to write where.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream

from envoy2emon.settings import Config, NotValid

# The units hand this file over as a credential: its owner knows it by this name.
INSTALLED_ENV_FILE = Path("/etc/envoy2emon/.env")
_COPY = "copy .env.example there and edit it"
# A URL that is not valid may hold a password or a key: someone has put it there.
_IN_URL = re.compile(r"^(\w+://)?[^@]*:.*@|\?.*", re.DOTALL)
PREFIXES = ("ENVOY_", "ENPHASE_", "STREAM_", "INVERTERS_", "EMONCMS_", "BACKLOG_", "LIVE_", "LOG_")


class ConfigError(Exception):
    """The settings do not do: `problems` are whole sentences, one a setting; `warnings` may tell why."""

    def __init__(self, problems: list[str], warnings: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.warnings = warnings


def find(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Name the file to read: the option, else $ENVOY2EMON_ENV_FILE, else ./.env."""
    return option or Path(environ.get("ENVOY2EMON_ENV_FILE") or ".env")


def display(path: Path, environ: Mapping[str, str]) -> Path:
    """Name the file as its owner knows it: a systemd credential is a copy of the installed file."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    return INSTALLED_ENV_FILE if credentials and path.is_relative_to(credentials) else path


def load(path: Path, environ: Mapping[str, str], *, required: bool) -> tuple[Config, list[str]]:
    """Read `path` and `environ`, which wins, into the Config and warnings for the log.

    required: `path` was asked for by name, so it has to exist. Raises ConfigError with every problem.
    """
    shown = display(path, environ)
    texts, problems, warnings = _read(path, shown, required=required)
    by_name = {setting.name.upper(): setting for setting in fields(Config)}
    in_environment = {name for name in environ if name.startswith(PREFIXES)}
    if not (texts or in_environment or problems):
        problems.append(f"{shown} is missing or holds no setting: {_COPY}")
    for name in sorted((texts.keys() | in_environment) - by_name.keys()):
        import difflib  # noqa: PLC0415 - 1 ms and 0.1 MB, for mistakes only

        near = difflib.get_close_matches(name.upper(), by_name, 1, 0.8)
        if near or name.upper().startswith(PREFIXES):
            hint = difflib.get_close_matches(name.upper(), by_name, 1, 0)[0]
            warnings.append(f"{name} is no setting of envoy2emon and is not used: is {hint} meant?")
    values: dict[str, Any] = {}
    for name, setting in by_name.items():
        secret = "Secret" in str(setting.type)
        given = environ.get(name) or texts.get(name) or ""
        text = (given if secret else given.strip()) or setting.metadata["default"]
        try:
            values[setting.name] = None if text is None else setting.metadata["read"](text)
        except NotValid as error:
            held = "not valid" if secret else repr(_IN_URL.sub(r"\1***", text))
            problems.append(f"{name} is {held}: expected {error}")
    unread = any(" may not be read " in problem for problem in problems)  # it may hold the key
    if values.get("emoncms_apikey", ...) is None and not unread:
        where = "in your EmonCMS under Setup, My Account"
        problems.append(f"EMONCMS_APIKEY is not set: expected the write key, found {where}; put it into {shown}")
    if (values.get("enphase_email", ...) is None) != (values.get("enphase_password", ...) is None):
        problems.append("ENPHASE_EMAIL and ENPHASE_PASSWORD go together: only one of them is set")
    if problems:
        raise ConfigError(problems, warnings)
    return Config(**values), warnings


def _read(path: Path, shown: Path, *, required: bool) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the file's names and texts, its problems and warnings."""
    problems: list[str] = []
    warnings: list[str] = []
    texts: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            # python-dotenv's own front door logs a line that it cannot read and goes on without it.
            bindings = list(parse_stream(file))
        if path.stat().st_mode & 0o004:
            warnings.append(f"{shown} holds passwords and everyone can read it: chmod 600 {shown}")
        for binding in bindings:
            name, text = binding.key, binding.value or ""
            if binding.error or (name and binding.value is None):
                problems.append(f"{shown}, line {_line(binding)}: expected NAME=value")
            elif name and texts.setdefault(name, text) != text:
                warnings.append(f"{name} stands in {shown} more than once: the last one counts")
                texts[name] = text
    except FileNotFoundError:
        if required:
            problems.append(f"{shown} does not exist: {_COPY}")
    except PermissionError:
        problems.append(f"{shown} may not be read by this user: use sudo, or --env-file PATH for another file")
    except UnicodeDecodeError:
        problems.append(f"{shown} cannot be read: it is not UTF-8 text")
    except OSError as error:
        problems.append(f"{shown} cannot be read: {error.strerror}")
    return texts, problems, warnings


def _line(binding: Binding) -> int:
    """Return the number of a binding's line: python-dotenv counts from the empty lines in front of it."""
    text = binding.original.string
    return binding.original.line + text[: -len(text.lstrip())].count("\n")
