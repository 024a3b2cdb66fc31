"""The settings: `.env` and the environment -> one frozen Settings, or every problem at once.

What load() returns is valid. Names and defaults are those of `.env.example`. No problem or warning contains a secret.
"""

import io
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv.parser import Binding, parse_stream

from envoy2emon.gateway.readings import PHASES
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES
from envoy2emon.words import clean, keep_secret

# The units pass the daemons a copy of this file as a credential. The owner knows it by this path.
INSTALLED_ENV_FILE = Path("/etc/envoy2emon/.env")
PREFIXES = ("ENVOY_", "ENPHASE_", "STREAM_", "INVERTERS_", "EMONCMS_", "BACKLOG_", "LIVE_", "LOG_")
_COPY = "copy .env.example there and edit it"
_QUOTE = r"put the value in single quotes, with a \ before each ' or \ in it, such as 'it\'s #1'"
# An invalid URL may contain a password, or the key, which the forum scripts had there.
_IN_URL = re.compile(r"^(\w+://).*@|^[^@]*:.*@|\?.+|apikey=.*", re.DOTALL | re.IGNORECASE)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that repr() and str() do not show."""

    value: str = field(repr=False)


class NotValid(ValueError):
    """The value of one setting is not valid; the text says what is expected, `cure` is a value that may be meant."""

    def __init__(self, expected: str, cure: str = "") -> None:
        super().__init__(expected)
        self.cure = cure


class ConfigError(Exception):
    """The settings are not valid. problems: whole sentences. warnings: may explain the problems.

    wrong: the names of the settings that have a problem. partial: the Settings, with defaults (None if there is none)
    for values that could not be read, so that `check` can still ask what does not depend on `wrong`.
    """

    def __init__(self, problems: list[str], warnings: list[str], partial: "Settings", wrong: set[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.warnings = warnings
        self.partial = partial
        self.wrong = wrong


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


def _url(text: str, *, bare: bool = False) -> bool:
    """Return whether this is an http(s) URL without user, query and fragment; `bare` also allows host or host:port."""
    try:
        parts = urlsplit(text if "://" in text or not bare else f"//{text}")
        # parts.hostname would not do, because it is "::" for "x[::]y" (Python 3.11.7).
        named = bool(re.fullmatch(r"(\[[\w.:%]+\]|[\w.-]+)(:[0-9]*)?", parts.netloc)) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https", *[""] * bare) and not re.search(r"[@?#\s]", text)


def _lower_scheme(text: str) -> str:
    """Return a URL with its scheme in lower case, as other code expects it, and without a slash at the end."""
    scheme, separator, rest = text.partition("://")
    return (scheme.lower() + separator + rest if separator else text).rstrip("/")


def _host(text: str) -> str:
    """Read ENVOY_HOST, and put brackets around an IPv6 address that has none."""
    try:
        return f"[{ipaddress.IPv6Address(text)}]"
    except ValueError:
        base = re.sub(r"(?<![:/])/.*", "", text)
        good = _url(base, bare=True)
        if not good or text.rstrip("/") != base.rstrip("/"):
            expected = "a name, an address, host:port, or http(s)://host (IPv6 with a port: [address]:port)"
            raise NotValid(expected, base if good else "") from None
        return _lower_scheme(base)


def _link(text: str) -> str:
    if not _url(text):
        raise NotValid("an http(s) URL")
    return _lower_scheme(text)


def _emoncms_url(text: str) -> str:
    """Read EMONCMS_URL. It may not end with a page: /input/post? in the forum scripts, /app/view in a browser."""
    base = re.split(r"[?#]|/(?:input|feed|\w+/(?:view|list|login))(?![\w-])", text, maxsplit=1)[0].rstrip("/")
    if base == text.rstrip("/") and _url(text):
        return _lower_scheme(text)
    expected = "http(s)://host/path as in the browser, without user, query and /input"
    if re.search("[?&]apikey=", text, re.IGNORECASE):
        expected += " (the key belongs in EMONCMS_APIKEY)"
    base = base if ":/" in base else f"http://{base}"  # nothing is put in front of http:/emonpi
    raise NotValid(expected, base if _url(base) else "")


def _fingerprint(text: str) -> str:
    return _text("[0-9a-f]{64}", "64 hexadecimal digits, colons allowed")(text.replace(":", "").lower())


def listen(text: str) -> str:
    """Read HOST:PORT. Raises NotValid."""
    expected = "HOST:PORT, such as 0.0.0.0:8080"
    _text(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):[0-9]{1,5}", expected)(text)
    if int(text.rpartition(":")[2]) > 65535:  # noqa: PLR2004 - the greatest port
        raise NotValid(expected)
    return text


def setting(default: str | None, read: Callable[[str], Any]) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Declare a setting: its default as the owner would write it (None for none), and the function that reads it."""
    return field(metadata={"default": default, "read": read})


_USER = _text(".+", "a user name")
_PASSWORD = _secret(".+", "a password")
_NODE = _text(r"[\w. -]+", "letters, digits, space, '_', '-' and '.': EmonCMS removes all other characters")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, each by its name in lower case; None for one without default that the owner did not set."""

    envoy_host: str = setting("envoy.local", _host)
    envoy_user: str = setting("installer", _USER)
    envoy_password: Secret | None = setting(None, _PASSWORD)
    envoy_inverters_user: str = setting("envoy", _USER)
    envoy_inverters_password: Secret | None = setting(None, _PASSWORD)
    envoy_serial: str | None = setting(None, _text("[0-9]{6,16}", "the digits of the serial number"))
    envoy_token: Secret | None = setting(
        None, _secret(r"[\w-]+\.[\w-]+\.[\w-]*", "a token: three parts, separated by dots, without spaces")
    )
    enphase_email: str | None = setting(None, _text(r"[^@\s]+@[^@\s]+", "an e-mail address"))
    enphase_password: Secret | None = setting(None, _PASSWORD)
    enphase_login_url: str = setting("https://enlighten.enphaseenergy.com/login/login.json", _link)
    enphase_token_url: str = setting("https://entrez.enphaseenergy.com/tokens", _link)
    envoy_cert_sha256: str | None = setting(None, _fingerprint)
    stream_source: str = setting("auto", _choice("auto", "stream", "reports"))
    stream_sections: tuple[str, ...] = setting("prod,cons,net", _some_of(tuple(SECTION_NAMES)))
    stream_keys: tuple[str, ...] = setting("wNow,rmsVoltage,rmsCurrent,pwrFactor", _some_of(tuple(KEY_NAMES)))
    stream_phases: tuple[str, ...] = setting("ph-a,ph-b,ph-c", _some_of(PHASES))
    stream_min_production_w: Decimal = setting("0", _number("0", "10000", "watts"))
    stream_net: str = setting("measured", _choice("measured", "calculated"))
    stream_timeout_s: Decimal = setting("60", _number("1", "3600", "seconds"))
    inverters_interval_s: Decimal = setting("20", _number("1", "3600", "seconds"))
    emoncms_url: str = setting("http://emon-pi.local/emoncms", _emoncms_url)
    emoncms_apikey: Secret = setting(None, _secret(r"[!-~]+", "the write key: letters and digits, no space"))
    emoncms_node: str = setting("Envoy-S", _NODE)
    emoncms_inverters_node: str = setting("Envoy-S-inverters", _NODE)
    emoncms_interval_s: Decimal = setting("0", _number("0", "3600", "seconds"))
    emoncms_cert_sha256: str | None = setting(None, _fingerprint)
    backlog_hours: Decimal = setting("24", _number("0.001", "168", "hours"))
    live_listen: str | None = setting(None, listen)
    log_level: str = setting("INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR", fold=str.upper))
    log_file: Path | None = setting(None, Path)


_BY_NAME = {each.name.upper(): each for each in fields(Settings)}
_SECRETS = {name for name, each in _BY_NAME.items() if "Secret" in str(each.type)}
_LOGINS = ("ENVOY_PASSWORD", "ENVOY_TOKEN", "ENPHASE_EMAIL", "ENPHASE_PASSWORD")


def find(option: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file to read: the option, else $ENVOY2EMON_ENV_FILE, else ./.env."""
    return option or Path(environ.get("ENVOY2EMON_ENV_FILE") or ".env")


def display(path: Path, environ: Mapping[str, str]) -> Path:
    """Return the path that the owner knows: a systemd credential is a copy of the installed file of that name."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    return INSTALLED_ENV_FILE.with_name(path.name) if credentials and path.is_relative_to(credentials) else path


def load(path: Path, environ: Mapping[str, str], *, required: bool) -> tuple[Settings, list[str]]:
    """Read `path` and `environ`, which takes precedence, and return the Settings and warnings for the log.

    From then on clean() replaces the secrets. required: `path` was asked for by name, so it has to exist. Raises
    ConfigError with every problem.
    """
    file = _File(display(path, environ))
    file.read(path, required=required)
    given = {name: environ.get(name) or file.texts.get(name, "") for name in _BY_NAME}
    for name in _SECRETS:
        for secret in (given[name], file.texts.get(name, "")):
            keep_secret(secret)
    named = {name for name in environ if name.startswith(PREFIXES)}
    if not (file.texts or named or file.problems):
        file.problems.append(f"{file.shown} is missing or holds no setting: {_COPY}")
    file.warnings += _unknown((file.texts.keys() | named) - _BY_NAME.keys())
    wrong = {name for name in _BY_NAME if name in file.unread}
    values: dict[str, Any] = {}
    for name, each in _BY_NAME.items():
        read, default = each.metadata["read"], each.metadata["default"]
        values[each.name] = read(default) if default else None
        if text := given[name] if name in _SECRETS else given[name].strip():
            try:
                values[each.name] = _value(read, text)
            except NotValid as error:
                wrong.add(name)
                held = "not valid" if name in _SECRETS else repr(_IN_URL.sub(r"\1***", text))
                cure = f": set {name}={error.cure}" if error.cure else ""
                where = "the environment" if environ.get(name) else file.place(name)
                file.problems.append(f"{name} is {held}: expected {error}{cure} (in {where})")
    settings = Settings(**values)
    together = {**_missing(file, given), **_emoncms_org(settings, file.shown)}
    file.problems += [problem for name, problem in together.items() if name not in wrong]
    file.warnings += _left_out(file, given)
    warnings = [clean(each) for each in file.warnings]
    if file.problems:
        raise ConfigError([clean(each) for each in file.problems], warnings, settings, wrong | together.keys())
    return settings, warnings


def _value(read: Callable[[str], Any], text: str) -> Any:  # noqa: ANN401 - as Settings declares it
    if _CONTROLS.search(text):
        raise NotValid("one line of UTF-8 text without control characters")
    return read(text)


def _unknown(names: set[str]) -> Iterator[str]:
    """Warn of each unknown name that looks like one of our settings."""
    for name in sorted(names):
        import difflib  # noqa: PLC0415 - takes 1 ms and 0.1 MB, and only mistakes need it

        near = difflib.get_close_matches(name.upper(), _BY_NAME, 1, 0.8)
        if near or name.upper().startswith(PREFIXES):
            hint = difflib.get_close_matches(name.upper(), _BY_NAME, 1, 0)[0]
            yield f"{name} is not a setting of envoy2emon and is ignored: did you mean {hint}?"


def _missing(file: "_File", given: Mapping[str, str]) -> dict[str, str]:
    """Return, by name, the problem of each setting that has to be set and is not."""
    problems = {}
    if not given["EMONCMS_APIKEY"]:
        cure = f"in {file.shown} set it to the write key, found in EmonCMS under Setup, My Account"
        problems["EMONCMS_APIKEY"] = f"EMONCMS_APIKEY is not set: {file.uncomment('EMONCMS_APIKEY') or cure}"
    for name, other in (("ENPHASE_EMAIL", "ENPHASE_PASSWORD"), ("ENPHASE_PASSWORD", "ENPHASE_EMAIL")):
        if given[other] and not given[name]:
            cure = file.uncomment(name) or f"put it into {file.shown}, or remove {other}"
            problems[name] = f"{name} is not set, and {other} is: {cure}"
    return problems


def _left_out(file: "_File", given: Mapping[str, str]) -> Iterator[str]:
    """Warn of commented-out lines that hold the address of the gateway or EmonCMS, or the only login."""
    logins = () if any(given[name] for name in _LOGINS) else _LOGINS
    for name in ("EMONCMS_URL", "ENVOY_HOST", *logins):
        if not given[name] and (cure := file.uncomment(name)):
            yield f"{name} is not set: {cure} if you meant to set it"


def _emoncms_org(settings: Settings, shown: Path) -> dict[str, str]:
    """Return, by name, the problem of each setting that emoncms.org does not accept, although it answers "ok"."""
    host = urlsplit(settings.emoncms_url).hostname
    if host != "emoncms.org":
        return {}
    cures = {}
    if not settings.emoncms_url.startswith("https://"):
        cures["EMONCMS_URL"] = "takes https only", f"https{settings.emoncms_url.removeprefix('http')}"
    if settings.emoncms_interval_s < 10:  # noqa: PLR2004 - seconds
        cures["EMONCMS_INTERVAL_S"] = "takes one post in 10 s", "10"
    for name, short in (("EMONCMS_NODE", "Envoy-S"), ("EMONCMS_INVERTERS_NODE", "Envoy-inverters")):
        if len(getattr(settings, name.lower())) > 16:  # noqa: PLR2004 - characters
            cures[name] = "drops nodes whose names have more than 16 characters", short
    return {
        name: f"{name} is '{getattr(settings, name.lower())}': {host} {why}: in {shown} set {name}={cure}"
        for name, (why, cure) in cures.items()
    }


class _File:
    """A `.env` file: its values by name, and what is wrong with it. `shown` is the path that the owner knows."""

    def __init__(self, shown: Path) -> None:
        self.shown = shown
        self.texts: dict[str, str] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.unread = ""  # lines that could not be read, or all names if the file could not
        self._lines: dict[str, int] = {}
        self._comments: dict[str, int] = {}

    def place(self, name: str) -> str:
        """Return the file and the line of a setting, in words."""
        return f"{self.shown}, line {self._lines[name]}"

    def uncomment(self, name: str) -> str:
        """Return what to do about a commented-out line whose value is not the default, "" if there is none."""
        line = self._comments.get(name)
        return f"remove the # in front of it in {self.shown}, line {line}" if line else ""

    def read(self, path: Path, *, required: bool) -> None:
        """Read the file; uses dotenv's parser, because its public functions only log a line that they cannot read."""
        try:
            content = path.read_bytes()
            if 0 in content:
                raise UnicodeError("UTF-16")  # noqa: TRY301 - what decode() raises for other encodings
            for binding in parse_stream(io.StringIO(content.decode("utf-8-sig"), newline=None)):
                self._take(binding)
            if path.stat().st_mode & 0o004:
                self.warnings.append(f"{self.shown} holds passwords and everyone can read it: chmod 600 {self.shown}")
        except FileNotFoundError:
            if required:
                self._unreadable(f"does not exist: {_COPY}")
        except PermissionError:
            self._unreadable("may not be read by this user: use sudo, or --env-file PATH for another file")
        except OSError as error:
            self._unreadable(f"cannot be read: {error.strerror}")
        except UnicodeError as error:
            encoding = "UTF-16" if str(error) == "UTF-16" else "not UTF-8"
            self._unreadable(f'is {encoding} text: save it as UTF-8 (in Notepad: "Save as", "Encoding: UTF-8")')

    def _unreadable(self, why: str) -> None:
        self.unread = " ".join(_BY_NAME)
        self.problems.append(f"{self.shown} {why}")

    def _take(self, binding: Binding) -> None:
        raw = binding.original.string
        # dotenv's line number is that of the first blank line before the setting, if there is one.
        line = binding.original.line + raw[: -len(raw.lstrip())].count("\n")
        raw = raw.strip()
        name, text = binding.key or "", binding.value or ""
        if commented := re.match(r"#\s*(?:export\s+)?(\w+)\s*=\s*(.+)", raw):
            each = _BY_NAME.get(commented[1])
            if each and commented[2] != each.metadata["default"]:
                self._comments[commented[1]] = line
        elif binding.error or (name in _BY_NAME and "\n" in raw) or (name and binding.value is None):
            self.unread += raw
            self.problems.append(f"{self.shown}, line {line}: {_why_wrong(raw)}")
        elif name and not re.fullmatch(r"\w+", name):
            if name.upper().startswith(PREFIXES):
                self.problems.append(f"{self.shown}, line {line}: {_why_wrong(raw)}")
        elif name:
            if self.texts.get(name, text) != text:
                self.warnings.append(f"{name} is in {self.shown} more than once: line {line} is used")
            self.texts[name] = text
            self._lines[name] = line
            value = raw.partition("=")[2]
            if name in _SECRETS and re.search(r"\s#", value) and value.lstrip()[:1] not in ("'", '"'):
                cut = "ends before the #, because a space and # begin a comment: if it is part of the value"
                self.warnings.append(f"{name} in {self.place(name)} {cut}, {_QUOTE}")


def _why_wrong(raw: str) -> str:
    """Return what is wrong with a line, judged by its name and quotes, without showing its value."""
    found = re.match(r"(?:export\s+)?'?(\w*)'?(?:\s*=\s*(['\"])(.*))?", raw)
    assert found  # noqa: S101 - it matches anything
    name, quote, rest = found.groups()
    if not quote:
        return f"expected {name if name in _BY_NAME else 'NAME'}=value"
    if quote not in re.sub(r"\\.", "", rest):
        return f"the quote before {name}'s value is not closed: close it, or {_QUOTE}"
    return f"{name}'s value continues after its closing quote: {_QUOTE}"
