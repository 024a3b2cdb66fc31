"""Enphase's two services: each reason why they give no token has its own message."""

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from envoy2emon.gateway import enphase
from envoy2emon.gateway.enphase import NoToken, fetch
from tests.enlighten import LOGIN_PATH, TOKEN_PATH, Enlighten
from tests.gateways import settings_of

SERIAL = "122112345678"
PAGE = "<!DOCTYPE html><body>An error has occurred</body>"


@pytest.fixture
def enlighten() -> Iterator[Enlighten]:
    """Serve a simulated Enphase."""
    with Enlighten() as enlighten:
        yield enlighten


def trouble(enlighten: Enlighten, **changes: str) -> str:
    """Return why there is no token."""
    with pytest.raises(NoToken) as raised:
        fetch(settings_of(**(enlighten.settings() | changes)), SERIAL)
    words = str(raised.value)
    assert words.isprintable()
    assert enlighten.password not in words
    return words


def test_a_token_is_fetched(enlighten: Enlighten) -> None:
    """The right account gets the gateway's token."""
    assert [fetch(settings_of(**enlighten.settings()), SERIAL)] == enlighten.tokens


NO_ACCOUNT = "Enphase does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD"
BROWSER = "log in with a browser to test"


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (401, '{"message":"Invalid\\nuser"}', f'{NO_ACCOUNT}, and says "Invalid user": {BROWSER} them'),
        (403, PAGE, f"{NO_ACCOUNT}: {BROWSER} them"),
        (
            200,
            '{"message":"Too many active sessions.."}',
            f'Enphase\'s login gives no session, and says "Too many active sessions..": {BROWSER} the account',
        ),
        (
            200,
            '{"success":true,"isBlocked":false}',
            "the account ENPHASE_EMAIL has two-factor login (MFA): switch it off, or paste ENVOY_TOKEN",
        ),
        (
            200,
            '{"isBlocked":true,"message":"x"}',
            "Enphase has blocked the account ENPHASE_EMAIL: log in with a browser",
        ),
        (200, PAGE, "Enphase's login answers with something that is not a login: envoy2emon will try again later"),
        (200, "[" * 100_000, "Enphase's login answers with something that is not a login"),
        (
            200,
            '{"message":"\\ud800\\u001b[31m' + "x" * 999 + '"}',
            "Enphase's login gives no session, and says \"??[31mx",
        ),
        (429, "", "Enphase's login was asked too often (429): envoy2emon will try again later"),
        (503, PAGE, "Enphase's login is overloaded or under maintenance (503): envoy2emon will try again later"),
        (302, "", "Enphase's login answers 302: envoy2emon will try again later"),
        (200, " " * 1_100_000, "Enphase's login answers without end: envoy2emon will try again later"),
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
        (403, PAGE, f"Enphase's token service gives no token (403): {NOT_YOURS}"),
        (406, '{"message":"no"}', f'Enphase\'s token service gives no token (406), and says "no": {NOT_YOURS}'),
        (
            401,
            "Unauthorized",
            'Enphase\'s token service answers 401, and says "Unauthorized": envoy2emon will try again later',
        ),
        (429, "slow down", 'Enphase\'s token service was asked too often (429), and says "slow down": envoy2emon will'),
        (
            500,
            PAGE,
            "Enphase's token service is overloaded or under maintenance (500): envoy2emon will try again later",
        ),
    ],
)
def test_token_service(enlighten: Enlighten, status: int, text: str, words: str) -> None:
    """The token service has its own messages: its 403 is not about the password."""
    enlighten.answers[TOKEN_PATH] = (status, text)
    assert trouble(enlighten).startswith(words)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/login", "refuses the connection"),
        ("http://nowhere.invalid/login", "has a name that cannot be resolved"),
    ],
)
def test_no_internet(enlighten: Enlighten, url: str, words: str) -> None:
    """Without Internet access the owner is asked about it in plain words, not in Python's."""
    assert (
        trouble(enlighten, ENPHASE_LOGIN_URL=url)
        == f"Enphase's login {words}: does this computer have Internet access?"
    )


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_drips_is_given_up(enlighten: Enlighten, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enphase has a minute to answer, however steadily bytes drip in the head or after it."""
    monkeypatch.setattr(enphase, "LONGEST_S", 0.5)
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError), listener.accept()[0] as client:
            client.sendall(head)
            while not ended.wait(0.05):
                client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        said = trouble(enlighten, ENPHASE_LOGIN_URL=f"http://127.0.0.1:{listener.getsockname()[1]}/")
        assert time.monotonic() - start < 5
    ended.set()
    assert said.startswith("Enphase does not answer within")


def test_a_bomb_is_not_unpacked(enlighten: Enlighten) -> None:
    """A compressed answer, which was not asked for, is not unpacked."""
    bomb = gzip.compress(b"[" * 50_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)

    def serve() -> None:
        with suppress(OSError), listener.accept()[0] as client:
            client.recv(65536)
            client.sendall(head + bomb)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert "answers with something that is not a login" in trouble(enlighten, ENPHASE_LOGIN_URL=url)
