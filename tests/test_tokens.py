"""Tokens: which is used, where it comes from, when it is renewed, and what the owner reads when there is none."""

import base64
import errno
import fcntl
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from envoy2emon import words
from envoy2emon.demo.gateway import make_token
from envoy2emon.gateway.enphase import NoToken
from envoy2emon.gateway.tokens import LOGIN_EVERY_S, Token, Tokens
from envoy2emon.settings import Settings
from tests.clocks import Time
from tests.enlighten import LOGIN_PATH, TOKEN_PATH, Enlighten
from tests.gateways import settings_of

SERIAL = "122112345678"
HOUR, DAY = 3600.0, 86400.0
CURE = "set ENPHASE_EMAIL and ENPHASE_PASSWORD in .env, or an ENVOY_TOKEN from https://entrez.enphaseenergy.com"
BUSY = (503, "<html>")


def account(enlighten: Enlighten) -> Settings:
    """Return the settings of an owner with an account."""
    return settings_of(**enlighten.settings())


def trouble(tokens: Tokens) -> str:
    """Return why there is no token."""
    with pytest.raises(NoToken) as raised:
        tokens.token(SERIAL)
    return str(raised.value)


def jwt(claims: str) -> str:
    """Make a token that holds this text in place of its claims."""
    return f"e30.{base64.urlsafe_b64encode(claims.encode()).decode().rstrip('=')}.c2ln"


def test_pasted() -> None:
    """A pasted token is used; its expiry is known, and repr() does not show its text."""
    text = make_token(SERIAL, 1_800_000_000)
    tokens = Tokens(settings_of(ENVOY_TOKEN=text), None, lambda: 1_799_999_999.0)
    token = tokens.token(SERIAL)
    assert (token.text, token.expiry, tokens.current) == (text, "2027-01-15", token)
    assert tokens.status() == "; token until 2027-01-15"
    assert text not in repr(token)
    assert Token.parse(make_token(SERIAL, 1_800_000_000, "installer")).expiry == "2027-01-15 08:00 UTC"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (make_token("122199999999", 2e9), f"ENVOY_TOKEN is for the gateway 122199999999, this one is {SERIAL}"),
        ("a.b.c", "ENVOY_TOKEN is not a token"),
        ("", "this firmware needs a token"),
    ],
)
def test_bad_pasted(enlighten: Enlighten, text: str, words: str) -> None:
    """The reason why a pasted token is unusable is given with the cure; with an account a fetched token replaces it."""
    said = trouble(Tokens(settings_of(ENVOY_TOKEN=text), None))
    assert said.startswith(words)
    assert said.endswith(f": {CURE}")
    fetched = Tokens(settings_of(ENVOY_TOKEN=text, **enlighten.settings()), None).token(SERIAL)
    assert [fetched.text] == enlighten.tokens


@pytest.mark.parametrize(
    ("expires", "words"), [(2e9, "the gateway refuses ENVOY_TOKEN"), (1.7e9, "ENVOY_TOKEN expired on 2023-11-14")]
)
def test_pasted_is_tried(expires: float, words: str) -> None:
    """An expired token is tried until the gateway refuses it, because our clock may be wrong."""
    tokens = Tokens(settings_of(ENVOY_TOKEN=make_token(SERIAL, expires)), None)
    for _ in range(2):
        tokens.refused(tokens.token(SERIAL))
        assert trouble(tokens) == f"{words}: {CURE}"


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c",
        jwt('{"exp":2e9}') + "\r\nX: y",
        jwt("null"),
        jwt("{}"),
        jwt("[" * 5000),
        jwt('{"exp":' + "9" * 400 + "}"),
        jwt('{"exp":1e17}'),
        jwt('{"exp":NaN}'),
        jwt('{"exp":2e9,"iat":NaN}'),
        jwt('{"exp":2e9,"aud":["1"]}'),
        jwt('{"exp":2e9}') + "x" * 9000,
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_what_is_no_token_is_a_value_error(text: str) -> None:
    """A text of the wrong form or size, or whose dates are none, is not a token."""
    with pytest.raises(ValueError, match="it is not a token"):
        Token.parse(text)


def test_an_answer_that_is_no_token(enlighten: Enlighten, tmp_path: Path) -> None:
    """An answer of Enphase that is not a token is reported and not kept."""
    enlighten.answers[TOKEN_PATH] = (200, "a.b.c")
    said = trouble(Tokens(account(enlighten), tmp_path))
    assert said == "Enphase's token service answers with something that is not a token: envoy2emon will try again later"
    assert json.loads((tmp_path / "token.json").read_text())["token"] == ""


def test_shared(enlighten: Enlighten, tmp_path: Path) -> None:
    """A fetched token is kept in the state directory, private, for both daemons, and clean() hides it."""
    for _ in range(2):
        words.secrets.clear()
        token = Tokens(account(enlighten), tmp_path / "state").token(SERIAL)
        assert token == Token.parse(enlighten.tokens[0])
        assert words.clean(f"refused {token.text}") == "refused ***"
    assert enlighten.logins == [200]
    (file,) = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_both_at_once(enlighten: Enlighten, tmp_path: Path) -> None:
    """Daemons that ask at the same time log in only once; the others wait, and the file is not locked meanwhile."""
    enlighten.hangs = True
    got: list[Token] = []
    threads = [
        threading.Thread(target=lambda: got.append(Tokens(account(enlighten), tmp_path).token(SERIAL)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert enlighten.asked.wait(10)
    assert Tokens(account(enlighten), tmp_path).swap_serial(SERIAL) == ""
    enlighten.release.set()
    for thread in threads:
        thread.join()
    assert {token.text for token in got} == set(enlighten.tokens)
    assert (len(got), enlighten.logins) == (6, [200])


def test_trouble_lasts(enlighten: Enlighten, tmp_path: Path) -> None:
    """Both daemons report Enphase's failure until the next login is allowed."""
    enlighten.answers[LOGIN_PATH] = BUSY
    wall = Time(time.time())
    tokens, other = (Tokens(account(enlighten), tmp_path, wall) for _ in range(2))
    said = trouble(tokens)
    wall.now += LOGIN_EVERY_S / 2
    assert trouble(tokens) == trouble(other) == f"{said} (Enphase was asked 5 min ago)"
    assert enlighten.logins == [503]
    enlighten.answers.clear()
    wall.now += LOGIN_EVERY_S / 2
    assert other.token(SERIAL).text == enlighten.tokens[0]


def test_a_daemon_killed_during_a_login(enlighten: Enlighten, tmp_path: Path) -> None:
    """A daemon that was killed before it saved Enphase's answer delays the next login by ten minutes at most."""
    kept = {"token": "", "login_at": time.time() - 70, "trouble": "Enphase has not answered"}
    (tmp_path / "token.json").write_text(json.dumps(kept))
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), tmp_path, wall)
    assert trouble(tokens) == "Enphase has not answered (Enphase was asked 70 s ago)"
    wall.now += LOGIN_EVERY_S
    assert tokens.token(SERIAL).text == enlighten.tokens[0]


@pytest.mark.parametrize("state", [True, False])
def test_one_login_in_ten_minutes(enlighten: Enlighten, tmp_path: Path, *, state: bool) -> None:
    """A gateway that refuses every token costs one login in ten minutes, also if the state survives a restart."""
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), None, wall)
    for minute in range(30):
        if state:
            tokens = Tokens(account(enlighten), tmp_path, wall)
        for _ in range(2 if minute in (10, 20) else 1):  # the kept token, and a fresh one
            tokens.refused(tokens.token(SERIAL))
        assert trouble(tokens).startswith(
            "the gateway refuses the token that Enphase gave: does ENPHASE_EMAIL own this gateway? (Enphase was asked "
        )
        assert len(enlighten.logins) == minute // 10 + 1
        wall.now += 60


def test_a_clock_that_was_ahead(enlighten: Enlighten, tmp_path: Path) -> None:
    """A clock that was hours ahead at the last login does not delay the next one."""
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), tmp_path, wall)
    tokens.refused(tokens.token(SERIAL))
    wall.now -= 5 * HOUR
    tokens.token(SERIAL)
    assert len(enlighten.logins) == 2


@pytest.mark.parametrize(("user", "before"), [("owner", 30 * DAY), ("installer", HOUR)])
def test_renewed(enlighten: Enlighten, tmp_path: Path, user: str, before: float) -> None:
    """An owner token is renewed 30 days before its end, an installer token, which lives 12 hours, one hour before."""
    enlighten.user, enlighten.lifetime = user, {"owner": 365 * DAY, "installer": 12 * HOUR}[user]
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), tmp_path, wall)
    token = tokens.token(SERIAL)
    wall.now = token.expires_at - before - 1
    assert not tokens.due(token)
    assert tokens.token(SERIAL) == token
    wall.now += 1
    enlighten.lifetime *= 2
    assert tokens.due(token)
    assert tokens.token(SERIAL).text == enlighten.tokens[1]


def test_renewal_fails(enlighten: Enlighten, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While a renewal fails, tried every ten minutes, the old token is used until the gateway refuses it."""
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), tmp_path, wall)
    token = tokens.token(SERIAL)
    enlighten.answers[LOGIN_PATH] = BUSY
    wall.now = token.renew_at
    for _ in range(12):
        if tokens.due(token):
            assert tokens.token(SERIAL) == token
        wall.now += 60
    assert enlighten.logins == [200, 503, 503]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"the token, good until {token.expiry}, cannot be renewed: Enphase's login is overloaded")
    wall.now = token.expires_at + DAY
    tokens.refused(tokens.token(SERIAL))
    assert "503" in trouble(tokens)


def test_other_gateway(enlighten: Enlighten, tmp_path: Path) -> None:
    """A kept token for another gateway is not used; the serial number of the last gateway is remembered."""
    wall = Time(time.time())
    tokens = Tokens(account(enlighten), tmp_path, wall)
    tokens.token("122199999999")
    assert tokens.swap_serial("122199999999") == ""
    wall.now += LOGIN_EVERY_S
    assert tokens.token(SERIAL).serial == SERIAL
    assert Tokens(account(enlighten), tmp_path).swap_serial(SERIAL) == "122199999999"
    assert tokens.swap_serial(SERIAL) == SERIAL
    assert len(enlighten.logins) == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 60_000,
        '{"token":"a.b.c"}',
        '{"token":1,"login_at":0,"trouble":""}',
        '{"token":"","login_at":NaN,"trouble":""}',
        '{"token":"a.b.c","login_at":0,"trouble":""}',
    ],
    ids=lambda text: text[:20],
)
def test_spoiled_file(enlighten: Enlighten, tmp_path: Path, content: str) -> None:
    """A file that a power cut or a person spoiled is treated as missing: a token is fetched and kept."""
    (tmp_path / "token.json").write_text(content)
    assert Tokens(account(enlighten), tmp_path).token(SERIAL).text == enlighten.tokens[0]
    assert json.loads((tmp_path / "token.json").read_text())["token"] == enlighten.tokens[0]


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("kind", ["symlink", "pipe"])
def test_what_is_no_plain_file_is_left_alone(
    enlighten: Enlighten, tmp_path: Path, kind: str, *, readonly: bool
) -> None:
    """If token.json is a link or a pipe, it is neither read nor written, and the token is kept in memory."""
    target = tmp_path / "target"
    content = json.dumps({"token": make_token(SERIAL, 2e9), "login_at": 0, "trouble": ""})
    target.write_text(content)
    if kind == "symlink":
        (tmp_path / "token.json").symlink_to(target)
    else:
        os.mkfifo(tmp_path / "token.json")
    tokens = Tokens(account(enlighten), tmp_path, readonly=readonly)
    assert tokens.token(SERIAL) == tokens.token(SERIAL)
    assert len(enlighten.logins) == 1
    assert target.read_text() == content


def test_readonly_writes_nothing(enlighten: Enlighten, tmp_path: Path) -> None:
    """`check` uses the daemons' token, respects their ten minutes between logins, and writes nothing."""
    state = tmp_path / "state"
    reading = Tokens(account(enlighten), state, readonly=True)
    assert reading.token(SERIAL) == reading.token(SERIAL)
    assert reading.swap_serial(SERIAL) == ""
    assert not state.exists()
    kept = Tokens(account(enlighten), state).token(SERIAL)
    content = (state / "token.json").read_bytes()
    reading = Tokens(account(enlighten), state, readonly=True)
    assert reading.token(SERIAL) == kept
    reading.refused(kept)
    assert (
        "the gateway refuses the token that Enphase gave: does ENPHASE_EMAIL own this gateway? (Enphase was asked"
        in trouble(reading)
    )
    assert (state / "token.json").read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_root_writes_nothing_for_another_user(enlighten: Enlighten, tmp_path: Path) -> None:
    """Root writes no file into the service's directory, because the service could not use it."""
    os.chown(tmp_path, 12345, 12345)
    tokens = Tokens(account(enlighten), tmp_path)
    assert tokens.token(SERIAL) == tokens.token(SERIAL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [(fcntl, "flock", errno.ENOLCK), (os, "ftruncate", errno.ENOSPC)])
def test_a_disk_that_fails(
    enlighten: Enlighten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str, int]
) -> None:
    """Without locks (NFS) or on a full disk the token is kept in memory, Enphase is asked once, no descriptor leaks."""
    module, name, number = call
    monkeypatch.setattr(module, name, Mock(side_effect=OSError(number, "no")))
    tokens = Tokens(account(enlighten), tmp_path)
    for _ in range(9):
        assert tokens.token(SERIAL).text == enlighten.tokens[0]
    assert len(enlighten.logins) == 1
    assert not [file for file in Path("/proc/self/fd").iterdir() if file.resolve().is_relative_to(tmp_path)]
