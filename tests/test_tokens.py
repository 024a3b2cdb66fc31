"""Tokens: which one does, where it comes from, when it is renewed, and what the owner reads when there is none."""

import errno
import fcntl
import json
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy2emon import config
from envoy2emon.gateway.enphase import NoToken
from envoy2emon.settings import Config
from envoy2emon.demo.gateway import make_token
from envoy2emon.gateway.token_file import Kept, TokenFile
from envoy2emon.gateway.tokens import LOGIN_EVERY_S, Token, Tokens
from tests.enlighten import LOGIN_PATH, TOKEN_PATH, Enlighten

SERIAL = "122112345678"
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def enlighten() -> Iterator[Enlighten]:
    """Serve Enphase."""
    with Enlighten() as enlighten:
        yield enlighten


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """Return epoch seconds."""
        return self.now


def settings(enlighten: Enlighten | None = None, token: str = "", **changes: str) -> Config:
    """Return a Config with an account at Enphase, a pasted token, both or none."""
    environ = {"EMONCMS_APIKEY": "key", "ENVOY_TOKEN": token}
    if enlighten:
        environ |= {
            "ENPHASE_EMAIL": enlighten.email,
            "ENPHASE_PASSWORD": enlighten.password,
            "ENPHASE_LOGIN_URL": enlighten.login_url,
            "ENPHASE_TOKEN_URL": enlighten.token_url,
        }
    return config.load(Path("/nonexistent"), environ | changes, required=False)[0]


def trouble(tokens: Tokens) -> str:
    """Return why there is no token."""
    with pytest.raises(NoToken) as raised:
        tokens.token(SERIAL)
    return str(raised.value)


def test_pasted() -> None:
    """A pasted token is used; its expiry is known, its text does not print."""
    text = make_token(SERIAL, 1_800_000_000)
    tokens = Tokens(settings(token=text), None, lambda: 1_799_999_999.0)
    token = tokens.token(SERIAL)
    assert (token.text, token.expiry, tokens.current) == (text, "2027-01-15", token)
    assert text not in repr(token)
    assert Token.parse(make_token(SERIAL, 1_800_000_000, "installer")).expiry == "2027-01-15 08:00 UTC"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (make_token(SERIAL, 1_700_000_000), "ENVOY_TOKEN expired on 2023-11-14"),
        (
            make_token("122199999999", 2_000_000_000),
            f"ENVOY_TOKEN is for the gateway 122199999999, this one is {SERIAL}",
        ),
        ("a.b.c", "ENVOY_TOKEN is no token"),
        ("eyJ9.bnVsbA.", "ENVOY_TOKEN is no token"),
        ("", "this firmware wants a token"),
    ],
)
def test_bad_pasted(enlighten: Enlighten, text: str, words: str) -> None:
    """A pasted token that does not do is named so, with the cure; with an account a fetched one takes its place."""
    cure = "put ENPHASE_EMAIL and ENPHASE_PASSWORD into .env, or an ENVOY_TOKEN from https://entrez.enphaseenergy.com"
    assert trouble(Tokens(settings(token=text), None)) == f"{words}: {cure}"
    assert Tokens(settings(enlighten, text), None).token(SERIAL).text == enlighten.tokens[0]


def test_pasted_refused() -> None:
    """A pasted token that the gateway refuses is named so."""
    tokens = Tokens(settings(token=make_token(SERIAL, 2_000_000_000)), None)
    tokens.refused(tokens.token(SERIAL))
    assert trouble(tokens).startswith("the gateway refuses ENVOY_TOKEN: put ")


def test_shared(enlighten: Enlighten, tmp_path: Path) -> None:
    """A fetched token is kept in the state directory, for its owner alone, and both daemons use it."""
    first, second = (Tokens(settings(enlighten), tmp_path / "state") for _ in range(2))
    assert first.token(SERIAL) == second.token(SERIAL) == Token.parse(enlighten.tokens[0])
    assert enlighten.logins == [200]
    (file,) = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_both_at_once(enlighten: Enlighten, tmp_path: Path) -> None:
    """Daemons that ask at the same time log in once: one waits for the other's token."""
    got: list[Token] = []
    threads = [
        threading.Thread(target=lambda: got.append(Tokens(settings(enlighten), tmp_path).token(SERIAL)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.text for token in got} == set(enlighten.tokens)
    assert (len(got), enlighten.logins) == (8, [200])


FAILURES = {
    "mfa": "two-factor login (MFA): switch it off, or paste ENVOY_TOKEN",
    "password": "does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD",
    "blocked": "has blocked the account ENPHASE_EMAIL",
    "406": "token service answers 406: is this gateway registered to the account ENPHASE_EMAIL?",
    "503": "login is overloaded or under repair (503): it is tried again later",
    "500": "token service answers 500: it is tried again later",
    "page": "answers something that is no login",
    "no token": "answers something that is no token",
    "away": "login cannot be reached (ConnectionError): has the Pi Internet?",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failures(enlighten: Enlighten, tmp_path: Path, failure: str) -> None:
    """Each way in which a login fails has its own words; they last until the next one is allowed, in both daemons."""
    changes = {}
    enlighten.mfa, enlighten.blocked = failure == "mfa", failure == "blocked"
    match failure:
        case "password":
            changes["ENPHASE_PASSWORD"] = "wrong-password"
        case "406" | "500":
            enlighten.statuses[TOKEN_PATH] = int(failure)
        case "503":
            enlighten.statuses[LOGIN_PATH] = 503
        case "page":
            enlighten.statuses[LOGIN_PATH] = 200
        case "no token":
            enlighten.statuses[TOKEN_PATH] = 200
        case "away":
            changes["ENPHASE_LOGIN_URL"] = "http://127.0.0.1:9/login"
    wall = Wall()
    tokens, other = (Tokens(settings(enlighten, **changes), tmp_path, wall) for _ in range(2))
    said = trouble(tokens)
    assert FAILURES[failure] in said
    assert not {enlighten.password, "wrong-password"} & set(said.split())
    logins = list(enlighten.logins)
    wall.now += LOGIN_EVERY_S / 2
    assert trouble(tokens) == trouble(other) == f"{said} (Enphase was asked 5 min ago)"
    assert enlighten.logins == logins
    enlighten.mfa = enlighten.blocked = False
    enlighten.statuses.clear()
    wall.now += LOGIN_EVERY_S / 2
    good = Tokens(settings(enlighten), tmp_path, wall)
    assert good.token(SERIAL).text == enlighten.tokens[0]


@pytest.mark.parametrize("state", [True, False])
def test_one_login_in_ten_minutes(enlighten: Enlighten, tmp_path: Path, *, state: bool) -> None:
    """A gateway that refuses every token costs one login in ten minutes, with and without a state directory."""
    wall = Wall()
    tokens = Tokens(settings(enlighten), tmp_path if state else None, wall)
    for minute in range(30):
        for _ in range(2 if minute in (10, 20) else 1):  # the one that is kept, and a fresh one
            tokens.refused(tokens.token(SERIAL))
        words = "the gateway refuses the token that Enphase gave (Enphase was asked "
        assert trouble(tokens).startswith(words)
        assert len(enlighten.logins) == minute // 10 + 1
        wall.now += 60


def test_restart_and_clock(enlighten: Enlighten, tmp_path: Path) -> None:
    """A restart does not bring the next login forward; a clock that was hours ahead does not put it off."""
    wall = Wall()
    for _ in range(3):
        tokens = Tokens(settings(enlighten), tmp_path, wall)
        tokens.refused(tokens.token(SERIAL))
        trouble(tokens)
    assert len(enlighten.logins) == 1
    wall.now -= 5 * HOUR
    tokens.refused(tokens.token(SERIAL))
    tokens.token(SERIAL)
    assert len(enlighten.logins) == 2


@pytest.mark.parametrize(("user", "before"), [("owner", 30 * DAY), ("installer", HOUR)])
def test_renewed(enlighten: Enlighten, tmp_path: Path, user: str, before: float) -> None:
    """An owner token is renewed 30 days before its end, an installer token, which lives 12 hours, one hour before."""
    enlighten.user, enlighten.lifetime = user, {"owner": 365 * DAY, "installer": 12 * HOUR}[user]
    wall = Wall()
    tokens = Tokens(settings(enlighten), tmp_path, wall)
    token = tokens.token(SERIAL)
    wall.now = token.expires_at - before - 1
    assert not tokens.due(token)
    assert tokens.token(SERIAL) == token
    wall.now += 1
    enlighten.lifetime *= 2
    assert tokens.due(token)
    assert tokens.token(SERIAL).text == enlighten.tokens[1]


def test_renewal_fails(enlighten: Enlighten, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While a renewal fails, tried every ten minutes, the old token is used to its end; the WARNING comes once."""
    wall = Wall()
    tokens = Tokens(settings(enlighten), tmp_path, wall)
    token = tokens.token(SERIAL)
    enlighten.statuses[LOGIN_PATH] = 503
    wall.now = token.renew_at
    for _ in range(12):
        if tokens.due(token):
            assert tokens.token(SERIAL) == token
        wall.now += 60
    assert enlighten.logins == [200, 503, 503]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    words = "cannot be renewed: Enphase's login is overloaded or under repair (503): it is tried again later"
    assert warnings == [f"the token, good until {token.expiry}, {words}"]
    wall.now = token.expires_at
    assert "503" in trouble(tokens)


def test_other_gateway(enlighten: Enlighten, tmp_path: Path) -> None:
    """A kept token for another gateway is not used."""
    wall = Wall()
    tokens = Tokens(settings(enlighten), tmp_path, wall)
    tokens.token("122199999999")
    wall.now += LOGIN_EVERY_S
    assert tokens.token(SERIAL).serial == SERIAL
    assert len(enlighten.logins) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token":"a.b.c"}', '{"token":1,"login_at":"x","trouble":null}'])
def test_spoiled_file(enlighten: Enlighten, tmp_path: Path, content: str) -> None:
    """A file that a power cut spoiled is as good as none: a token is fetched and kept."""
    (tmp_path / "token.json").write_text(content)
    assert Tokens(settings(enlighten), tmp_path).token(SERIAL).text == enlighten.tokens[0]
    assert json.loads((tmp_path / "token.json").read_text())["token"] == enlighten.tokens[0]


def test_a_file_that_fails_later_costs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that the disk does not have (NFS) is as good as no file, however often it is tried."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    file, before = TokenFile(tmp_path), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(9):
        with file.held():
            file.keep(Kept("a.b.c"))
    with file.held() as kept:
        assert kept == Kept("a.b.c")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_state(enlighten: Enlighten, tmp_path: Path) -> None:
    """Where nothing can be written, or there is no room, the token is kept in memory."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "token.json").symlink_to("/dev/full")
    for state in (tmp_path / "file", tmp_path / "full", None):
        tokens = Tokens(settings(enlighten), state)
        assert tokens.token(SERIAL) == tokens.token(SERIAL)
    assert len(enlighten.logins) == 3
