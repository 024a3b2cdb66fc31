"""The settings: `.env` and the environment -> one frozen Settings, or every problem at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv.parser import Binding, parse_stream

from envoy2emon.gateway.readings import PHASES
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES
from envoy2emon.words import keep_secret


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that does not print."""

    value: str = field(repr=False)


class NotValid(ValueError):
    """Raised by a reader of one setting; the text is what is expected."""


def _text(pattern: str, expected: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise NotValid(expected)
        return text

    return read


def _secret(pattern: str, expected: str) -> Callable[[str], Secret]:
    read = _text(pattern, expected)
    return lambda text: Secret(read(text))


def _number(low: str, high: str, what: str) -> Callable[[str], Decimal]:
    def read(text: str) -> Decimal:
        try:
            number = Decimal(text)
            valid = Decimal(low) <= number <= Decimal(high)
        except InvalidOperation:
            valid = False
        if not valid:
            raise NotValid(f"{what}, a number from {low} to {high}")
        return number

    return read


def _choice(*names: str, fold: Callable[[str], str] = str.lower) -> Callable[[str], str]:
    return lambda text: _text("|".join(names), f"one of {', '.join(names)}")(fold(text))


def _some_of(names: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(name for part in text.split(",") if (name := part.strip()))
        if not chosen or not set(chosen) <= set(names):
            raise NotValid(f"one or more of {','.join(names)}, separated by commas")
        return tuple(dict.fromkeys(chosen))

    return read


def _url(expected: str, *, path: bool, bare: bool = False) -> Callable[[str], str]:
    """Read a URL without user, query and fragment; `bare`: host or host:port will do."""

    def read(text: str) -> str:
        try:
            parts = urlsplit(text if "://" in text or not bare else f"//{text}")
            valid = bool(parts.hostname and re.fullmatch(r"[\w.:%-]+", parts.hostname)) and parts.port != 0
        except ValueError:
            valid = False
        if not (
            valid
            and parts.scheme in (("http", "https", "") if bare else ("http", "https"))
            and not re.search(r"[@?#\s]", text)
            and (path or parts.path in ("", "/"))
        ):
            raise NotValid(expected)
        return parts.scheme + text[len(parts.scheme) :].rstrip("/")  # which is compared elsewhere: HTTPS:// will do

    return read


def _fingerprint(text: str) -> str:
    return _text("[0-9a-f]{64}", "64 hexadecimal digits, colons allowed")(text.replace(":", "").lower())


def listen(text: str) -> str:
    """Read HOST:PORT. Raises NotValid."""
    expected = "HOST:PORT, such as 0.0.0.0:8080"
    _text(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", expected)(text)
    if int(text.rpartition(":")[2]) > 65535:  # noqa: PLR2004 - the greatest port
        raise NotValid(expected)
    return text


def setting(default: str | None, read: Callable[[str], Any]) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Declare a setting: its default as the owner would write it, None for none, and its reader."""
    return field(metadata={"default": default, "read": read})


_LINE = ".+"
_PASSWORD = _secret(_LINE, "a password on one line, and a quote in front of it closed behind it")
_NODE = _text(r"[\w. -]+", "letters, digits, space, '_', '-' and '.': EmonCMS deletes all else")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, each by its name in lower case; None where the owner left one without default open."""

    envoy_host: str = setting(
        "envoy.local", _url("a name, an address, host:port, or http(s)://host", path=False, bare=True)
    )
    envoy_user: str = setting("installer", _text(_LINE, "a user name"))
    envoy_password: Secret | None = setting(None, _PASSWORD)
    envoy_inverters_user: str = setting("envoy", _text(_LINE, "a user name"))
    envoy_inverters_password: Secret | None = setting(None, _PASSWORD)
    envoy_serial: str | None = setting(None, _text(r"\d{6,16}", "the digits of the serial number"))
    envoy_token: Secret | None = setting(
        None, _secret(r"[\w-]+\.[\w-]+\.[\w-]*", "a token: three parts, separated by dots, without spaces")
    )
    enphase_email: str | None = setting(None, _text(r"[^@\s]+@[^@\s]+", "an e-mail address"))
    enphase_password: Secret | None = setting(None, _PASSWORD)
    enphase_login_url: str = setting(
        "https://enlighten.enphaseenergy.com/login/login.json", _url("an http(s) URL", path=True)
    )
    enphase_token_url: str = setting("https://entrez.enphaseenergy.com/tokens", _url("an http(s) URL", path=True))
    envoy_cert_sha256: str | None = setting(None, _fingerprint)
    stream_source: str = setting("auto", _choice("auto", "stream", "reports"))
    stream_sections: tuple[str, ...] = setting("prod,cons,net", _some_of(tuple(SECTION_NAMES)))
    stream_keys: tuple[str, ...] = setting("wNow,rmsVoltage,rmsCurrent,pwrFactor", _some_of(tuple(KEY_NAMES)))
    stream_phases: tuple[str, ...] = setting("ph-a,ph-b,ph-c", _some_of(PHASES))
    stream_min_production_w: Decimal = setting("0", _number("0", "10000", "watts"))
    stream_net: str = setting("measured", _choice("measured", "calculated"))
    stream_timeout_s: Decimal = setting("60", _number("1", "3600", "seconds"))
    inverters_interval_s: Decimal = setting("20", _number("1", "3600", "seconds"))
    emoncms_url: str = setting(
        "http://emon-pi.local/emoncms", _url("http(s)://host/path, without user and query", path=True)
    )
    emoncms_apikey: Secret = setting(None, _secret(r"[!-~]+", "the write key: letters and digits, no space"))
    emoncms_node: str = setting("Envoy-S", _NODE)
    emoncms_inverters_node: str = setting("Envoy-S-inverters", _NODE)
    emoncms_interval_s: Decimal = setting("0", _number("0", "3600", "seconds"))
    emoncms_cert_sha256: str | None = setting(None, _fingerprint)
    backlog_hours: Decimal = setting("24", _number("0.001", "168", "hours"))
    live_listen: str | None = setting(None, listen)
    log_level: str = setting("INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR", fold=str.upper))
    log_file: Path | None = setting(None, Path)

    def secrets(self) -> list[str]:
        """Return what must never be printed."""
        values = (getattr(self, each.name) for each in fields(self))
        return [value.value for value in values if isinstance(value, Secret)]


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


def load(path: Path, environ: Mapping[str, str], *, required: bool) -> tuple[Settings, list[str]]:
    """Read `path` and `environ`, which wins, into the Settings and warnings for the log.

    required: `path` was asked for by name, so it has to exist. Raises ConfigError with every problem.
    """
    shown = display(path, environ)
    texts, problems, warnings = _read(path, shown, required=required)
    by_name = {setting.name.upper(): setting for setting in fields(Settings)}
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
    settings = Settings(**values)
    for value in settings.secrets():
        keep_secret(value)
    return settings, warnings


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
