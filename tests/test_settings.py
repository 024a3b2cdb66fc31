"""`.env` and environment -> Config, or every problem."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envoy2emon import settings as config
from envoy2emon.settings import Settings as Config, Secret

KEY = {"EMONCMS_APIKEY": "0123456789abcdef"}
SECRETS = ("ENVOY_PASSWORD", "ENVOY_INVERTERS_PASSWORD", "ENVOY_TOKEN", "ENPHASE_PASSWORD", "EMONCMS_APIKEY")


def read(path: Path, text: str | bytes = "", environ: Mapping[str, str] = KEY) -> tuple[Config, list[str]]:
    """Write a `.env` that only its owner may read, and load it."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    return config.load(path, environ, required=True)


def problems(path: Path, text: str | bytes = "", environ: Mapping[str, str] = KEY) -> list[str]:
    """Return what is wrong with this `.env`."""
    with pytest.raises(config.ConfigError) as caught:
        read(path, text, environ)
    return caught.value.problems


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """Name a `.env` in a directory of its own."""
    return tmp_path / ".env"


def test_the_defaults(env: Path) -> None:
    """With the write key alone, each setting has the default of the contract."""
    key = Secret(KEY["EMONCMS_APIKEY"])
    assert read(env) == (
        Config(
            envoy_host="envoy.local",
            envoy_user="installer",
            envoy_password=None,
            envoy_inverters_user="envoy",
            envoy_inverters_password=None,
            envoy_serial=None,
            envoy_token=None,
            enphase_email=None,
            enphase_password=None,
            enphase_login_url="https://enlighten.enphaseenergy.com/login/login.json",
            enphase_token_url="https://entrez.enphaseenergy.com/tokens",
            envoy_cert_sha256=None,
            stream_source="auto",
            stream_sections=("prod", "cons", "net"),
            stream_keys=("wNow", "rmsVoltage", "rmsCurrent", "pwrFactor"),
            stream_phases=("ph-a", "ph-b", "ph-c"),
            stream_min_production_w=Decimal(0),
            stream_net="measured",
            stream_timeout_s=Decimal(60),
            inverters_interval_s=Decimal(20),
            emoncms_url="http://emon-pi.local/emoncms",
            emoncms_apikey=key,
            emoncms_node="Envoy-S",
            emoncms_inverters_node="Envoy-S-inverters",
            backlog_hours=Decimal(24),
            live_listen=None,
            log_level="INFO",
            log_file=None,
        ),
        [],
    )


SHA = "ab" * 32
VALID: list[tuple[str, str, Any]] = [
    ("ENVOY_HOST", "192.168.1.20", "192.168.1.20"),
    ("ENVOY_HOST", "envoy:8443", "envoy:8443"),
    ("ENVOY_HOST", "https://envoy.local/", "https://envoy.local"),
    ("ENVOY_HOST", "http://[fe80::1]:80", "http://[fe80::1]:80"),
    ("ENVOY_HOST", "HTTPS://Envoy.local", "https://Envoy.local"),
    ("ENVOY_USER", "envoy", "envoy"),
    ("ENVOY_SERIAL", "122012345678", "122012345678"),
    ("ENVOY_PASSWORD", "pa$s${HOME}w#rd=", Secret("pa$s${HOME}w#rd=")),
    ("ENVOY_TOKEN", "eyJ.eyJ-_9.sig", Secret("eyJ.eyJ-_9.sig")),
    ("ENVOY_CERT_SHA256", "AB:" * 31 + "AB", SHA),
    ("ENVOY_CERT_SHA256", SHA, SHA),
    ("ENPHASE_LOGIN_URL", "http://127.0.0.1:8000/login", "http://127.0.0.1:8000/login"),
    ("STREAM_SOURCE", "Reports", "reports"),
    ("STREAM_SECTIONS", " net , prod ,prod,", ("net", "prod")),
    ("STREAM_KEYS", "frequency,reactPower,apprntPwr", ("frequency", "reactPower", "apprntPwr")),
    ("STREAM_PHASES", "ph-c", ("ph-c",)),
    ("STREAM_MIN_PRODUCTION_W", "5", Decimal(5)),
    ("STREAM_NET", "calculated", "calculated"),
    ("STREAM_TIMEOUT_S", "1", Decimal(1)),
    ("INVERTERS_INTERVAL_S", "0300.5", Decimal("300.5")),
    ("EMONCMS_URL", "https://emoncms.org/", "https://emoncms.org"),
    ("EMONCMS_URL", "http://emon-pi.local:8080/a/b", "http://emon-pi.local:8080/a/b"),
    ("EMONCMS_URL", "Http://emon-pi.local/Emon://Cms", "http://emon-pi.local/Emon://Cms"),
    ("EMONCMS_NODE", "My Envoy_2.1-b", "My Envoy_2.1-b"),
    ("BACKLOG_HOURS", "168", Decimal(168)),
    ("LIVE_LISTEN", "0.0.0.0:8080", "0.0.0.0:8080"),
    ("LIVE_LISTEN", "[::]:8080", "[::]:8080"),
    ("LOG_LEVEL", "debug", "DEBUG"),
    ("LOG_FILE", "/var/log/envoy2emon/stream.log", Path("/var/log/envoy2emon/stream.log")),
]


@pytest.mark.parametrize(("name", "text", "value"), VALID)
def test_what_is_valid(env: Path, name: str, text: str, value: object) -> None:
    """A valid value is taken, from the file and from the environment alike, without a warning."""
    for settings_and_warnings in (read(env, f"{name}={text}\n"), read(env, "", KEY | {name: text})):
        assert getattr(settings_and_warnings[0], name.lower()) == value
        assert settings_and_warnings[1] == []


INVALID = {
    "ENVOY_HOST": [
        "ftp://envoy",
        "http://",
        "envoy/home",
        "http://envoy/home",
        "a b",
        "envoy:99999",
        "envoy:0",
        "[::1",
    ],
    "ENVOY_SERIAL": ["12345", "12202345678x", "1220 1234 5678"],
    "ENPHASE_EMAIL": ["me", "me@", "a b@c"],
    "ENPHASE_LOGIN_URL": ["enlighten.enphaseenergy.com", "ftp://a/b"],
    "ENPHASE_TOKEN_URL": ["tokens", "https:///tokens"],
    "ENVOY_CERT_SHA256": ["ab" * 31, "xy" * 32],
    "STREAM_SOURCE": ["meter", "auto,stream"],
    "STREAM_SECTIONS": ["production", "prod;cons", "prod,wNow", ","],
    "STREAM_KEYS": ["wnow", "p"],
    "STREAM_PHASES": ["a", "ph-d"],
    "STREAM_MIN_PRODUCTION_W": ["-1", "five", "5 W", "10001", "NaN", "sNaN", "Infinity", "1e99999999999999999999"],
    "STREAM_NET": ["yes"],
    "STREAM_TIMEOUT_S": ["0", "0.5", "3601", "60s"],
    "INVERTERS_INTERVAL_S": ["0", "-20", "20,5"],
    "EMONCMS_URL": ["emon-pi.local/emoncms", "http://", "http://emon pi/", "http://emon-pi/emoncms#"],
    "EMONCMS_NODE": ["Envoy/S", 'a"b', "a,b", "a\\b"],
    "EMONCMS_INVERTERS_NODE": ["<inverters>"],
    "BACKLOG_HOURS": ["0", "169", "a day"],
    "LIVE_LISTEN": ["8080", "0.0.0.0", "0.0.0.0:http", "0.0.0.0:65536", ":8080", "http://0.0.0.0:80"],
    "LOG_LEVEL": ["LOUD", "10"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in INVALID.items() for text in texts])
def test_what_is_not_valid(env: Path, name: str, text: str) -> None:
    """A problem names the variable, what it holds, and what is expected."""
    (problem,) = [
        each for each in problems(env, f"{name}='{text}'\n") if each.startswith(name) and "go tog" not in each
    ]
    assert problem.startswith(f"{name} is {text!r}: expected ")
    assert len(problem) > len(f"{name} is {text!r}: expected ")


def test_every_problem_is_told_at_once(env: Path) -> None:
    """All problems of file and environment come together: one a setting, the unreadable lines and the missing key."""
    text = "LOG_LEVEL=LOUD\nSTREAM_NET\nENVOY_TOKEN=x\nENPHASE_EMAIL=me@home\n"
    where = "expected the write key, found in your EmonCMS under Setup, My Account"
    assert problems(env, text, {"STREAM_TIMEOUT_S": "soon"}) == [
        f"{env}, line 2: expected NAME=value",
        "ENVOY_TOKEN is not valid: expected a token: three parts, separated by dots, without spaces",
        "STREAM_TIMEOUT_S is 'soon': expected seconds, a number from 1 to 3600",
        "LOG_LEVEL is 'LOUD': expected one of DEBUG, INFO, WARNING, ERROR",
        f"EMONCMS_APIKEY is not set: {where}; put it into {env}",
        "ENPHASE_EMAIL and ENPHASE_PASSWORD go together: only one of them is set",
    ]


def test_the_problems_are_the_errors_words(env: Path) -> None:
    """The exception's own text has every problem too."""
    with pytest.raises(config.ConfigError, match=r"STREAM_NET is 'no'.*; LOG_LEVEL is 'LOUD'") as caught:
        read(env, "LOG_LEVEL=LOUD\nSTREAM_NET=no\n", KEY)
    assert len(caught.value.problems) == 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.sampled_from(SECRETS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=5).map(
        lambda text: f"§{text}§"
    ),
)
def test_secrets_are_never_printed(env: Path, name: str, secret: str) -> None:
    """No secret is in a problem, a warning, or Config's repr and str, whatever characters it has."""
    together = {"ENPHASE_EMAIL": "me@home", "ENPHASE_PASSWORD": "other"} if name == "ENPHASE_PASSWORD" else {}
    for text, environ in ((f"{name}='{secret}'\n", {}), (f"{name}={secret}\n", {}), ("", {name: secret})):
        try:
            made, said = read(env, text, KEY | together | environ)
            said += [repr(made), str(made), f"{made.envoy_password}"]
        except config.ConfigError as error:
            said = [*error.problems, str(error), repr(error)]
        for words in said:
            assert secret not in words
            assert json.dumps(secret)[1:-1] not in words


@pytest.mark.parametrize("name", ["EMONCMS_URL", "ENVOY_HOST", "ENPHASE_TOKEN_URL"])
@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host/emoncms",
        "http://host/emoncms?apikey=hunter2",
        "http://me:hunter2/@host",
        "me:hunter2@host",
    ],
)
def test_a_secret_in_a_url_is_not_printed(env: Path, name: str, text: str) -> None:
    """A password or key that someone put into a URL is refused and does not stand in the problem."""
    (problem,) = problems(env, f"{name}={text}\n")
    assert problem.startswith(f"{name} is '")
    assert "***" in problem
    assert "hunter2" not in problem


def test_secrets_are_all_known(env: Path) -> None:
    """The log is told every secret that is set."""
    values = {name: f"a.{name}.b" for name in SECRETS} | {"ENPHASE_EMAIL": "me@home"}
    assert sorted(read(env, "", values)[0].secrets()) == sorted(values[name] for name in SECRETS)
    assert read(env)[0].secrets() == [KEY["EMONCMS_APIKEY"]]


def test_which_file_is_read() -> None:
    """--env-file goes before $ENVOY2EMON_ENV_FILE, and that before ./.env."""
    named = {"ENVOY2EMON_ENV_FILE": "/named/.env"}
    assert config.find(Path("/option/.env"), named) == Path("/option/.env")
    assert config.find(None, named) == Path("/named/.env")
    assert config.find(None, {"ENVOY2EMON_ENV_FILE": ""}) == config.find(None, {}) == Path(".env")


def test_the_environment_wins(env: Path) -> None:
    """A variable of the environment goes before the file's; an empty one is as if it were not there."""
    text = "ENVOY_HOST=file\nENVOY_USER=file\nENVOY_SERIAL=\n"
    settings = read(env, text, KEY | {"ENVOY_HOST": "environment", "ENVOY_USER": ""})[0]
    assert (settings.envoy_host, settings.envoy_user, settings.envoy_serial) == ("environment", "file", None)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENVOY_HOSTNAME", "ENVOY_HOST"),
        ("EMONCMS_API_KEY", "EMONCMS_APIKEY"),
        ("ENVOY_PASWORD", "ENVOY_PASSWORD"),
        ("STREAM_TIMEOUT", "STREAM_TIMEOUT_S"),
        ("EMONCSM_NODE", "EMONCMS_NODE"),
        ("NVOY_HOST", "ENVOY_HOST"),
        ("envoy_host", "ENVOY_HOST"),
    ],
)
def test_an_unknown_name_is_a_warning_with_the_nearest(env: Path, name: str, meant: str) -> None:
    """A name that is misspelt or none of ours, but looks like ours, is named with what is meant; its value is not."""
    assert read(env, f"{name}=hunter2\n")[1] == [
        f"{name} is no setting of envoy2emon and is not used: is {meant} meant?"
    ]


def test_names_of_others_are_not_minded(env: Path) -> None:
    """A name that is not like ours is no business of ours, in the file and in the environment."""
    assert read(env, "PATH=/bin\nTZ=Europe/Berlin\nexport HOME=/\n", KEY | {"SHELL": "sh", "LANG": "C"})[1] == []
    assert len(read(env, "", KEY | {"STREAM_TIMEOUT": "5"})[1]) == 1


def test_a_name_twice_is_a_warning(env: Path) -> None:
    """Of two different values the last one counts, and that is said without the values; the same twice is no matter."""
    made, warnings = read(env, "ENVOY_USER=hunter1\nENVOY_USER=hunter2\nENVOY_SERIAL=1234567\nENVOY_SERIAL=1234567\n")
    assert made.envoy_user == "hunter2"
    assert warnings == [f"ENVOY_USER stands in {env} more than once: the last one counts"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("just words\n", 1),
        ("ENVOY_USER=me\nENVOY_HOST: envoy\n", 2),
        ("# comment\n\n  \n\nENVOY_USER\n", 5),
        ("ENVOY_USER=me\r\n\r\n\r\nENVOY_PASSWORD='hunter2\r\nENVOY_HOST=envoy\r\n", 4),
        ("\n\n'=hunter2\n", 3),
        ("ENVOY_PASSWORD='hunter2'hunter2\n", 1),
    ],
)
def test_a_line_that_cannot_be_read_is_named(env: Path, text: str, line: int) -> None:
    """A line that is not NAME=value is a problem with its number, counted as an editor does, and without its words."""
    assert problems(env, text) == [f"{env}, line {line}: expected NAME=value"]


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("ENVOY_PASSWORD=plain", "plain"),
        ("ENVOY_PASSWORD = spaced  # comment", "spaced"),
        ("  export ENVOY_PASSWORD=exported", "exported"),
        ("ENVOY_PASSWORD=a#b=c'd\"e", "a#b=c'd\"e"),
        ("ENVOY_PASSWORD=$HOME${HOME}$$`id`", "$HOME${HOME}$$`id`"),
        ("ENVOY_PASSWORD='$HOME ${HOME} #1 \"x\" '", '$HOME ${HOME} #1 "x" '),
        ('ENVOY_PASSWORD=" a\'b # ${HOME}"', " a'b # ${HOME}"),
        ("ENVOY_PASSWORD='it\\'s'", "it's"),
        ("ENVOY_PASSWORD=back\\slash", "back\\slash"),
        ("ENVOY_PASSWORD=pässwörd€", "pässwörd€"),
    ],
)
def test_passwords_of_every_kind(env: Path, text: str, password: str) -> None:
    """A password comes out as it is written, or as its quotes say: nothing is expanded, no space within is lost."""
    for end in ("\n", "\r\n", ""):
        assert read(env, f"ENVOY_USER=me\r\n{text}{end}")[0].envoy_password == Secret(password)


def test_a_file_from_windows(env: Path) -> None:
    """CRLF and a byte order mark do not matter."""
    text = "\N{BYTE ORDER MARK}ENVOY_HOST=a\r\n\r\n# c\r\nENVOY_USER=b\r\nEMONCMS_APIKEY=c\r\n"
    made, warnings = read(env, text, {})
    assert (made.envoy_host, made.envoy_user, made.emoncms_apikey) == ("a", "b", Secret("c"))
    assert warnings == []


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n#ENVOY_HOST=a\n"])
def test_a_file_without_settings(env: Path, text: str) -> None:
    """A file in which nothing is set is a problem in words, unless the environment has settings."""
    missing, key = problems(env, text, {})
    assert missing == f"{env} is missing or holds no setting: copy .env.example there and edit it"
    assert key.startswith("EMONCMS_APIKEY is not set")
    assert read(env, text, KEY)[1] == []


def test_a_file_that_is_not_there(env: Path) -> None:
    """A file that was asked for by name has to be there; ./.env does not, if the environment has settings."""
    with pytest.raises(config.ConfigError) as caught:
        config.load(env, KEY, required=True)
    assert caught.value.problems == [f"{env} does not exist: copy .env.example there and edit it"]
    assert config.load(env, KEY, required=False)[0].emoncms_apikey == Secret(KEY["EMONCMS_APIKEY"])
    with pytest.raises(config.ConfigError, match=r"missing or holds no setting.*; EMONCMS_APIKEY is not set"):
        config.load(env, {}, required=False)


@pytest.mark.parametrize("data", ["ENVOY_USER=ä\n".encode("latin-1"), "ENVOY_USER=a\n".encode("utf-16")])
def test_a_file_that_is_not_utf8(env: Path, data: bytes) -> None:
    """Another encoding is a problem in words."""
    assert problems(env, data) == [f"{env} cannot be read: it is not UTF-8 text"]


def test_a_file_that_cannot_be_read(env: Path) -> None:
    """A directory in the file's place is a problem in words, and so is a file in a directory's."""
    env.mkdir()
    with pytest.raises(config.ConfigError, match=r"\.env cannot be read: Is a directory$"):
        config.load(env, KEY, required=True)
    (env / "file").touch()
    with pytest.raises(config.ConfigError, match=r"\.env cannot be read: Not a directory$"):
        config.load(env / "file" / ".env", KEY, required=True)


def test_a_file_of_another_user(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read is a problem with its cure, and no other: the key may be in it."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root, who runs these tests in CI, may read every file
    with pytest.raises(config.ConfigError) as caught:
        config.load(env, {}, required=False)
    assert caught.value.problems == [
        f"{env} may not be read by this user: use sudo, or --env-file PATH for another file"
    ]


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False)])
def test_a_file_that_everyone_can_read(env: Path, mode: int, *, warned: bool) -> None:
    """A file that everyone can read is a warning with its cure; the group may read it, as a credential's may."""
    env.write_text("EMONCMS_APIKEY=abc\n")
    env.chmod(mode)
    warning = f"{env} holds passwords and everyone can read it: chmod 600 {env}"
    assert config.load(env, {}, required=True)[1] == ([warning] if warned else [])


def test_a_credential_has_its_owners_name(tmp_path: Path) -> None:
    """A credential of systemd is called by the installed file's name in every problem and warning."""
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (problem, key) = problems(tmp_path / "env", "\n", environ)
    assert problem.startswith("/etc/envoy2emon/.env is missing or holds no setting")
    assert key.endswith("put it into /etc/envoy2emon/.env")
    assert problems(tmp_path / "env", "x\n", KEY | environ) == ["/etc/envoy2emon/.env, line 1: expected NAME=value"]
    assert config.display(Path("/home/me/.env"), environ) == Path("/home/me/.env")


@pytest.mark.parametrize("name", ["ENPHASE_EMAIL", "ENPHASE_PASSWORD"])
def test_the_enphase_account_is_whole(env: Path, name: str) -> None:
    """An e-mail address without its password, or the other way round, is a problem."""
    assert problems(env, f"{name}=me@home\n") == [
        "ENPHASE_EMAIL and ENPHASE_PASSWORD go together: only one of them is set"
    ]
