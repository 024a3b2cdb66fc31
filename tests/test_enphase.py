"""Enphase's two services: each reason why they give no token has its own message."""

import gzip
import socket
import threading
import time

import pytest

from envoy2emon.gateway import enphase
from envoy2emon.gateway.enphase import NoToken, fetch
from tests.enlighten import LOGIN_PATH, TOKEN_PATH, Enlighten
from tests.gateways import Scripted, settings_of

SERIAL = "122112345678"
PAGE = "<!DOCTYPE html><body>An error has occurred</body>"


def trouble(enlighten: Enlighten, **changes: str) -> str:
    """Return why there is no token."""
    with pytest.raises(NoToken) as raised:
        fetch(settings_of(**(enlighten.settings() | changes)), SERIAL)
    words = str(raised.value)
    assert words.isprintable()
    assert enlighten.password not in words
    return words


NO_ACCOUNT = "Enphase does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD"
NO_SESSION = "Enphase's login gives no session, and says"
BROWSER = "log in with a browser to test"
LATER = "envoy2emon will try again later"
MFA = "the account ENPHASE_EMAIL has two-factor login (MFA): switch it off, or paste ENVOY_TOKEN"
BLOCKED = "Enphase has blocked the account ENPHASE_EMAIL: log in with a browser"


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (401, '{"message":"Invalid\\nuser"}', f'{NO_ACCOUNT}, and says "Invalid user": {BROWSER} them'),
        (403, PAGE, f"{NO_ACCOUNT}: {BROWSER} them"),
        (200, '{"message":"Too many sessions."}', f'{NO_SESSION} "Too many sessions.": {BROWSER} the account'),
        (200, '{"message":"\\ud800\\u001b[31m' + "x" * 999 + '"}', f'{NO_SESSION} "??[31mx'),
        (200, '{"success":true,"isBlocked":false}', MFA),
        (200, '{"isBlocked":true,"message":"x"}', BLOCKED),
        (200, PAGE, f"Enphase's login answers with something that is not a login: {LATER}"),
        (200, "[]", "Enphase's login answers with something that is not a login"),
        (200, "[" * 100_000, "Enphase's login answers with something that is not a login"),
        (200, " " * 1_100_000, f"Enphase's login answers without end: {LATER}"),
        (302, "", f"Enphase's login answers 302: {LATER}"),
        (429, "", f"Enphase's login was asked too often (429): {LATER}"),
        (500, PAGE, f"Enphase's login is overloaded or under maintenance (500): {LATER}"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_login(enlighten: Enlighten, status: int, text: str, words: str) -> None:
    """The login's own message is quoted, cleaned and shortened, and the owner reads what to do."""
    enlighten.answers[LOGIN_PATH] = (status, text)
    said = trouble(enlighten)
    assert said.startswith(words)
    assert len(said) < 400


NOT_YOURS = f"gateway {SERIAL} is not registered to the account ENPHASE_EMAIL, or its user may not have tokens"


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (403, PAGE, f"gives no token (403): {NOT_YOURS}"),
        (406, '{"message":"no"}', f'gives no token (406), and says "no": {NOT_YOURS}'),
        (401, "Unauthorized", f'answers 401, and says "Unauthorized": {LATER}'),
    ],
)
def test_token_service(enlighten: Enlighten, status: int, text: str, words: str) -> None:
    """The token service has its own messages: its 403 is not about the password."""
    enlighten.answers[TOKEN_PATH] = (status, text)
    assert trouble(enlighten) == f"Enphase's token service {words}"


def test_no_internet(enlighten: Enlighten) -> None:
    """Without Internet access the owner is asked about it in plain words, not in Python's."""
    said = trouble(enlighten, ENPHASE_LOGIN_URL="http://127.0.0.1:9/login")
    assert said == "Enphase's login refuses the connection: does this computer have Internet access?"


def test_what_drips_is_given_up(enlighten: Enlighten, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enphase has a minute to answer, however steadily bytes drip."""
    monkeypatch.setattr(enphase, "LONGEST_S", 0.5)
    ended = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.05):
            client.sendall(b"x")

    with Scripted(drip) as scripted:
        start = time.monotonic()
        said = trouble(enlighten, ENPHASE_LOGIN_URL=scripted.url)
        assert time.monotonic() - start < 5
        ended.set()
    assert said.startswith("Enphase does not answer within")


def test_a_bomb_is_not_unpacked(enlighten: Enlighten) -> None:
    """A compressed answer, which was not asked for, is not unpacked."""
    bomb = gzip.compress(b"[" * 50_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with Scripted(head + bomb) as scripted:
        assert "answers with something that is not a login" in trouble(enlighten, ENPHASE_LOGIN_URL=scripted.url)
