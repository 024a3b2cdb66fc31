"""`.env` and environment -> Settings, or every problem with its cure."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envoy2emon import settings, words
from envoy2emon.settings import Secret, Settings
from tests.daemons import PROJECT

KEY = {"EMONCMS_APIKEY": "0123456789abcdef0123456789abcdef"}
SECRETS = ("ENVOY_PASSWORD", "ENVOY_INVERTERS_PASSWORD", "ENVOY_TOKEN", "ENPHASE_PASSWORD", "EMONCMS_APIKEY")
LONG_NODE = "drops nodes whose names have more than 16 characters"
SHORT_NODE = "in FILE set EMONCMS_INVERTERS_NODE=Envoy-inverters"
QUOTE = r"put the value in single quotes, with a \ before each ' or \ in it, such as 'it\'s #1'"


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """Return the path of a `.env` in a directory of its own."""
    return tmp_path / ".env"


def read(path: Path, text: str | bytes = "", environ: Mapping[str, str] = KEY) -> tuple[Settings, list[str]]:
    """Write a `.env` that only its owner may read, and load it."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    return settings.load(path, environ, required=True)


def error(path: Path, text: str | bytes = "", environ: Mapping[str, str] = KEY) -> settings.ConfigError:
    """Return the error that this `.env` causes."""
    with pytest.raises(settings.ConfigError) as caught:
        read(path, text, environ)
    return caught.value


DEFAULTS = settings.load(Path("no such file"), KEY, required=False)[0]


def test_the_defaults(env: Path) -> None:
    """The write key is enough: all else has a default, and `.env.example` changes none of them."""
    chosen, warnings = read(env)
    assert (chosen.envoy_host, chosen.emoncms_interval_s, chosen.live_listen) == ("envoy.local", Decimal(0), None)
    assert (chosen.stream_sections, chosen.emoncms_apikey) == (("prod", "cons", "net"), Secret(KEY["EMONCMS_APIKEY"]))
    assert warnings == []
    assert read(env, (PROJECT / ".env.example").read_bytes()) == (chosen, [])


VALID: list[tuple[str, str, Any]] = [
    ("ENVOY_HOST", "192.168.1.20", "192.168.1.20"),
    ("ENVOY_HOST", "HTTPS://Envoy.local/", "https://Envoy.local"),
    ("ENVOY_HOST", "http://[fe80::1]:80", "http://[fe80::1]:80"),
    ("ENVOY_HOST", "fe80::20%eth0", "[fe80::20%eth0]"),
    ("ENVOY_CERT_SHA256", "AB:" * 31 + "AB", "ab" * 32),
    ("STREAM_SOURCE", "Reports", "reports"),
    (
        "STREAM_SECTIONS",
        " net , prod ,prod,storage,backfeed,load,evse,pv3p,",
        ("net", "prod", "storage", "backfeed", "load", "evse", "pv3p"),
    ),
    ("INVERTERS_INTERVAL_S", "0300.5", Decimal("300.5")),
    ("EMONCMS_URL", "Http://emon-pi.local:8080/a/inputs/", "http://emon-pi.local:8080/a/inputs"),
    ("EMONCMS_NODE", "My Envoy_2.1-b", "My Envoy_2.1-b"),
    ("BACKLOG_HOURS", "168", Decimal(168)),
    ("LIVE_LISTEN", "[::]:8080", "[::]:8080"),
    ("LOG_LEVEL", "debug", "DEBUG"),
]


@pytest.mark.parametrize(("name", "text", "value"), VALID)
def test_what_is_valid(env: Path, name: str, text: str, value: object) -> None:
    """A valid value is taken, from the file and from the environment alike, without a warning."""
    for chosen, warnings in (read(env, f"{name}={text}\n"), read(env, "", KEY | {name: text})):
        changed: dict[str, Any] = {name.lower(): value}
        assert chosen == replace(DEFAULTS, **changed)
        assert warnings == []


HOST = "expected a name, an address, host:port, or http(s)://host (IPv6 with a port: [address]:port)"
URL = "expected http(s)://host/path as in the browser, without user, query and /input"
INVALID = [
    ("ENVOY_HOST", ["ftp://envoy", "a b", "envoy:99999", "envoy:0", "[::1"], HOST),
    ("ENVOY_HOST", ["http://envoy/stream/meter"], f"{HOST}: set ENVOY_HOST=http://envoy "),
    ("ENVOY_SERIAL", ["12345", "1220 1234 5678"], "expected the digits of the serial"),
    ("ENPHASE_EMAIL", ["me"], "expected an e-mail address"),
    ("ENPHASE_LOGIN_URL", ["enlighten.enphaseenergy.com"], "expected an http(s) URL"),
    ("ENVOY_CERT_SHA256", ["ab" * 31], "expected 64 hexadecimal digits"),
    ("STREAM_SOURCE", ["meter"], "expected one of auto, stream, reports"),
    ("STREAM_SECTIONS", ["production", ","], "expected one or more of prod,cons,net,storage"),
    ("STREAM_KEYS", ["wnow"], "expected one or more of wNow,"),
    ("STREAM_PHASES", ["a"], "expected one or more of ph-a,ph-b,ph-c"),
    ("STREAM_MIN_PRODUCTION_W", ["-1", "5 W", "10001", "NaN"], "expected watts, a number from 0 to 10000"),
    ("STREAM_TIMEOUT_S", ["0.5", "3601"], "expected seconds, a number from 1 to 3600"),
    ("INVERTERS_INTERVAL_S", ["0"], "expected seconds, a number from 1 to 3600"),
    ("EMONCMS_INTERVAL_S", ["3601"], "expected seconds, a number from 0 to 3600"),
    ("EMONCMS_URL", ["http://emon pi/", "ftp://emon-pi", "http:/emon-pi"], f"{URL} (in "),
    (
        "EMONCMS_URL",
        # The second is that of the forum scripts, the third that of an app in the browser.
        ["emon-pi/emoncms", "http://emon-pi/emoncms/input/post?", "http://emon-pi/emoncms/app/view"],
        f"{URL}: set EMONCMS_URL=http://emon-pi/emoncms ",
    ),
    ("EMONCMS_NODE", ["Envoy/S"], "expected letters, digits, space, '_', '-' and '.'"),
    ("BACKLOG_HOURS", ["0", "169"], "expected hours, a number from 0.001 to 168"),
    ("LIVE_LISTEN", ["8080", "0.0.0.0:65536"], "such as 0.0.0.0:8080"),
    ("LOG_FILE", ["\x1b[2J"], "expected one line of UTF-8 text without control characters"),
]


@pytest.mark.parametrize(
    ("name", "text", "expected"), [(name, text, expected) for name, texts, expected in INVALID for text in texts]
)
def test_what_is_not_valid(env: Path, name: str, text: str, expected: str) -> None:
    """A problem names the variable, its value, what is expected and where; `check` can use all other settings."""
    caught = error(env, f"{name}='{text}'\n", KEY | {"ENVOY_USER": "me"})
    problem = next(each for each in caught.problems if each.startswith(f"{name} is {text!r}: "))
    assert expected in problem
    assert problem.endswith(f" (in {env}, line 1)")
    assert name in caught.wrong
    assert caught.partial == replace(DEFAULTS, envoy_user="me")
    assert error(env, "", KEY | {name: text}).problems[0].endswith(" (in the environment)")


# Mistakes that people make: the whole file, and the problems that it causes. FILE stands for its path.
MISTAKES = {
    "the URL of the forum scripts with the key": (
        "\nEMONCMS_URL=https://emonpi/input/post.json?node=1&apikey=hunter2hunter2\n",
        ["EMONCMS_URL is 'https://emonpi/input/post.json***': " + URL
         + " (the key belongs in EMONCMS_APIKEY): set EMONCMS_URL=https://emonpi (in FILE, line 2)"],
    ),
    "a user in a URL": (
        "EMONCMS_URL=http://me:hunter2/@emonpi/emoncms\nENVOY_HOST=me:hunter2@envoy\n",
        ["ENVOY_HOST is '***envoy': " + HOST + " (in FILE, line 2)",
         "EMONCMS_URL is 'http://***emonpi/emoncms': " + URL + " (in FILE, line 1)"],
    ),
    "a quote that is not closed": (
        "ENVOY_USER=me\r\n\r\n\r\nENVOY_PASSWORD='hunter2\r\nENVOY_HOST=envoy\r\n",
        [f"FILE, line 4: the quote before ENVOY_PASSWORD's value is not closed: close it, or {QUOTE}"],
    ),
    "a quote that the next one closes": (
        'export ENPHASE_PASSWORD="hunter2\nENPHASE_EMAIL=me@home\nENVOY_PASSWORD="\n',
        [f"FILE, line 1: the quote before ENPHASE_PASSWORD's value is not closed: close it, or {QUOTE}"],
    ),
    "an apostrophe": (
        "ENVOY_PASSWORD='it's hunter2'\n",
        [f"FILE, line 1: ENVOY_PASSWORD's value continues after its closing quote: {QUOTE}"],
    ),
    "no equals sign": (
        "# comment\n\n  \n\nENVOY_USER\nENVOY_HOST: envoy\njust words\nENVOY_PASSWORD:pa=hunter2\n",
        ["FILE, line 5: expected ENVOY_USER=value", "FILE, line 6: expected ENVOY_HOST=value",
         "FILE, line 7: expected NAME=value", "FILE, line 8: expected ENVOY_PASSWORD=value"],
    ),
    "half of an account": (
        "ENPHASE_PASSWORD=hunter2\n#ENPHASE_EMAIL=\n",
        ["ENPHASE_EMAIL is not set, and ENPHASE_PASSWORD is: put it into FILE, or remove ENPHASE_PASSWORD"],
    ),
    "the other half still begins with #": (
        "ENPHASE_EMAIL=me@home\n# ENPHASE_PASSWORD = hunter2\n",
        ["ENPHASE_PASSWORD is not set, and ENPHASE_EMAIL is: remove the # in front of it in FILE, line 2"],
    ),
    "emoncms.org": (
        "EMONCMS_URL=http://emoncms.org\n",
        ["EMONCMS_URL is 'http://emoncms.org': emoncms.org takes https only: in FILE set EMONCMS_URL=https://emoncms.org",
         "EMONCMS_INTERVAL_S is '0': emoncms.org takes one post in 10 s: in FILE set EMONCMS_INTERVAL_S=10",
         f"EMONCMS_INVERTERS_NODE is 'Envoy-S-inverters': emoncms.org {LONG_NODE}: {SHORT_NODE}"],
    ),
    "UTF-16": (
        "\ufeffENVOY_USER=a\n".encode("utf-16-le"),
        ['FILE is UTF-16 text: save it as UTF-8 (in Notepad: "Save as", "Encoding: UTF-8")'],
    ),
    "Latin-1": (
        "ENVOY_USER=ä\n".encode("latin-1"),
        ['FILE is not UTF-8 text: save it as UTF-8 (in Notepad: "Save as", "Encoding: UTF-8")'],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_their_cure(env: Path, content: str | bytes, expected: list[str]) -> None:
    """Mistakes of new and migrating users are named with what to write where, and never with the value of a secret."""
    caught = error(env, content)
    assert caught.problems == [problem.replace("FILE", str(env)) for problem in expected]
    assert "hunter2" not in str([*caught.problems, *caught.warnings, caught])


def test_settings_that_emoncms_org_takes(env: Path) -> None:
    """With https, an interval of 10 s and short nodes emoncms.org is accepted; its rules apply to no other host."""
    text = "EMONCMS_URL=https://emoncms.org/\nEMONCMS_INTERVAL_S=10\nEMONCMS_INVERTERS_NODE=Envoy-inverters\n"
    assert read(env, text)[0].emoncms_url == "https://emoncms.org"
    assert read(env, "EMONCMS_URL=http://notemoncms.org\n")[1] == []


NO_KEY = "in FILE set it to the write key, found in EmonCMS under Setup, My Account"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nothing\n", ["FILE is missing or holds no setting: copy .env.example there and edit it", NO_KEY]),
        ("EMONCMS_APIKEY=\n", [NO_KEY]),
        ("ENVOY_USER=me\n\n  #EMONCMS_APIKEY=abc\n", ["remove the # in front of it in FILE, line 3"]),
        ("EMONCMS_APIKEY: abc\n", ["FILE, line 1: expected EMONCMS_APIKEY=value"]),
    ],
)
def test_no_write_key(env: Path, text: str, expected: list[str]) -> None:
    """Without a write key the problem says where to find it or, if it is in a line that cannot be used, which line."""
    caught = error(env, text, {})
    assert len(caught.problems) == len(expected)
    for problem, words_of_it in zip(caught.problems, expected, strict=True):
        assert words_of_it.replace("FILE", str(env)) in problem
    assert "EMONCMS_APIKEY" in caught.wrong
    assert caught.partial.envoy_host == "envoy.local"


def test_every_problem_at_once(env: Path) -> None:
    """All problems of the file and the environment are reported together, also in the exception's own text."""
    caught = error(env, "LOG_LEVEL=LOUD\nSTREAM_NET\nENVOY_TOKEN=x\nENVOY_HOS=a\n", {"STREAM_TIMEOUT_S": "soon"})
    token = "expected a token: three parts, separated by dots, without spaces"
    assert caught.problems == [
        f"{env}, line 2: expected STREAM_NET=value",
        f"ENVOY_TOKEN is not valid: {token} (in {env}, line 3)",
        "STREAM_TIMEOUT_S is 'soon': expected seconds, a number from 1 to 3600 (in the environment)",
        f"LOG_LEVEL is 'LOUD': expected one of DEBUG, INFO, WARNING, ERROR (in {env}, line 1)",
        f"EMONCMS_APIKEY is not set: {NO_KEY.replace('FILE', str(env))}",
    ]
    assert caught.wrong == {"STREAM_NET", "ENVOY_TOKEN", "STREAM_TIMEOUT_S", "LOG_LEVEL", "EMONCMS_APIKEY"}
    assert caught.warnings == ["ENVOY_HOS is not a setting of envoy2emon and is ignored: did you mean ENVOY_HOST?"]
    assert str(caught) == "; ".join(caught.problems)


CUT = f"ends before the #, because a space and # begin a comment: if it is part of the value, {QUOTE}"
UNKNOWN = "is not a setting of envoy2emon and is ignored: did you mean"
LEFT = "remove the # in front of it in FILE, line"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ENVOY_PASSWORD=hunter2 #1\n", [f"ENVOY_PASSWORD in FILE, line 1 {CUT}"]),
        ("ENPHASE_PASSWORD='hunter2 #1' # mine\nENPHASE_EMAIL=me@home # mine\n", []),
        ("#ENVOY_HOST=192.168.1.20\n#ENVOY_PASSWORD=hunter2\n",
         [f"ENVOY_HOST is not set: {LEFT} 1 if you meant to set it",
          f"ENVOY_PASSWORD is not set: {LEFT} 2 if you meant to set it"]),
        ("#ENVOY_HOST=envoy.local\n#ENVOY_PASSWORD=hunter2\nENVOY_TOKEN=a.b.c\n#STREAM_KEYS=wNow\n", []),
        ("ENVOY_USER=hunter1\nENVOY_USER=hunter2\nENVOY_SERIAL=1234567\nENVOY_SERIAL=1234567\n",
         ["ENVOY_USER is in FILE more than once: line 2 is used"]),
        ("ENVOY_HOSTNAME=hunter2\nEMONCSM_NODE=hunter2\nenvoy_host=hunter2\n",
         [f"EMONCSM_NODE {UNKNOWN} EMONCMS_NODE?", f"ENVOY_HOSTNAME {UNKNOWN} ENVOY_HOST?",
          f"envoy_host {UNKNOWN} ENVOY_HOST?"]),
        ("PATH=/bin\nTZ=Europe/Berlin\nexport HOME=/\nA-B=c\nKEY='two\nlines'\n", []),
    ],
)  # fmt: skip
def test_warnings(env: Path, text: str, expected: list[str]) -> None:
    """A likely mistake gives a warning with line and cure but without the value; other programs' names do not."""
    assert read(env, text)[1] == [warning.replace("FILE", str(env)) for warning in expected]


def test_the_environment_wins(env: Path) -> None:
    """A variable of the environment overrides the file's; an empty one counts as not set."""
    text = "ENVOY_HOST=file\nENVOY_USER=file\nENVOY_SERIAL=\n"
    chosen = read(env, text, KEY | {"ENVOY_HOST": "environment", "ENVOY_USER": ""})[0]
    assert (chosen.envoy_host, chosen.envoy_user, chosen.envoy_serial) == ("environment", "file", None)
    assert len(read(env, "", KEY | {"STREAM_TIMEOUT": "5", "SHELL": "sh"})[1]) == 1


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("  export ENVOY_PASSWORD = exported", "exported"),
        ("ENVOY_PASSWORD=a#b=c'd\"e", "a#b=c'd\"e"),
        ("ENVOY_PASSWORD=$HOME${HOME}$$`id`\\", "$HOME${HOME}$$`id`\\"),
        ("ENVOY_PASSWORD='my #1 ${HOME} '", "my #1 ${HOME} "),
        ('ENVOY_PASSWORD=" a\'b # ${HOME}"', " a'b # ${HOME}"),
        (r"""ENVOY_PASSWORD='it\'s "so\\so"'""", 'it\'s "so\\so"'),
        ("ENVOY_PASSWORD=pässwörd€", "pässwörd€"),
    ],
)
def test_passwords_of_every_kind(env: Path, text: str, password: str) -> None:
    """A password is read as written, or as its quotes say; Windows line ends and a byte order mark do not matter."""
    for end in ("\n", "\r\n", ""):
        chosen, warnings = read(env, f"\ufeffENVOY_USER=me\r\n{text}{end}")
        assert (chosen.envoy_user, chosen.envoy_password, warnings) == ("me", Secret(password), [])


def test_which_file_is_read(env: Path) -> None:
    """--env-file overrides $ENVOY2EMON_ENV_FILE, and that overrides ./.env; only ./.env may be missing."""
    named = {"ENVOY2EMON_ENV_FILE": "/named/.env"}
    assert settings.find(Path("/option/.env"), named) == Path("/option/.env")
    assert settings.find(None, named) == Path("/named/.env")
    assert settings.find(None, {"ENVOY2EMON_ENV_FILE": ""}) == settings.find(None, {}) == Path(".env")
    assert settings.load(env, KEY, required=False) == (DEFAULTS, [])
    with pytest.raises(settings.ConfigError, match=r"^[^;]*\.env does not exist: copy .env.example there and edit it$"):
        settings.load(env, {}, required=True)


def test_a_file_that_cannot_be_read(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is the only problem reported, with its cure, because the write key may be in it."""
    env.mkdir()
    with pytest.raises(settings.ConfigError, match=r"^[^;]*\.env cannot be read: Is a directory$"):
        settings.load(env, {}, required=True)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who runs these tests in CI, may read every file
    with pytest.raises(settings.ConfigError) as caught:
        settings.load(env, {}, required=False)
    cure = "use sudo, or --env-file PATH for another file"
    assert caught.value.problems == [f"{env} may not be read by this user: {cure}"]
    assert "ENVOY_HOST" in caught.value.wrong


@pytest.mark.parametrize(("mode", "warned"), [(0o604, True), (0o640, False)])
def test_a_file_that_everyone_can_read(env: Path, mode: int, *, warned: bool) -> None:
    """A file that everyone can read gives a warning with its cure; the group may read it, as a credential's may."""
    env.write_text("EMONCMS_APIKEY=abc\n")
    env.chmod(mode)
    warning = f"{env} holds passwords and everyone can read it: chmod 600 {env}"
    assert settings.load(env, {}, required=True)[1] == ([warning] if warned else [])


def test_a_credential_has_its_owners_name(tmp_path: Path) -> None:
    """Problems and warnings name the installed file and not the systemd credential that holds its copy."""
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    problems = error(tmp_path / "second.env", "x\nENVOY_HOST=a b\nENVOY_USER=a\nENVOY_USER=b\n", environ).problems
    assert len(problems) == 3
    assert all("/etc/envoy2emon/second.env" in problem and str(tmp_path) not in problem for problem in problems)
    assert settings.display(Path("/home/me/.env"), environ) == Path("/home/me/.env")


@given(st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(
    [*(f"{name}=" for name in KEY), "ENVOY_HOST=", "EMONCMS_URL=", "LOG_FILE=", "'", '"', "\n", " #", "\\", "\ud800",
     "http://", "[", "]", "@", ":", "?", "9" * 5000, "1e9", "\x00", "\x1b", "\u202e", "export ", "a"]
)).map(lambda parts: "".join(parts).encode(errors="surrogatepass")))  # fmt: skip
@example(b"EMONCMS_URL=http://[::1\nENVOY_HOST=//[\n")
def test_no_file_does_harm(env: Path, content: bytes) -> None:
    """Any bytes give Settings or a ConfigError, and every problem or warning is a line without control characters."""
    try:
        said = read(env, content)[1]
    except settings.ConfigError as caught:
        said = [*caught.problems, *caught.warnings]
    assert all(line.isprintable() for line in said)


@example("ENVOY_PASSWORD", "§0[::]§")  # part of it is a valid host
@given(
    st.sampled_from(SECRETS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=5).map(lambda it: f"§{it}§"),
)
def test_secrets_are_never_printed(env: Path, name: str, secret: str) -> None:
    """No secret is in a problem, a warning or the Settings' repr, nor in any text that clean() returns afterwards."""
    together = {"ENPHASE_EMAIL": "me@home", "ENPHASE_PASSWORD": "other"} if name == "ENPHASE_PASSWORD" else {}
    for text, environ in (
        (f"{name}='{secret}'\nEMONCMS_NODE='{secret}'\n", {}),
        (f"{name}={secret}\nENVOY_HOST={secret}\n", {}),
        (f"{name}={secret}{secret}\n#{name}={secret}\n", {}),
        ("", {name: secret}),
    ):
        try:
            made, said = read(env, text, KEY | together | environ)
            said += [repr(made), str(made), f"{made.envoy_password}"]
        except settings.ConfigError as caught:
            said = [*caught.problems, str(caught), repr(caught), repr(caught.partial)]
        for line in said:
            assert secret not in line
            assert json.dumps(secret)[1:-1] not in line
    assert secret not in words.clean(f"{secret} is the password")
