"""EmonCMS over HTTP: what its answers mean, and what they say about its clock."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.demo.emoncms import (
    MARIADB_DOWN,
    PHP_DOWN,
    REDIS_DOWN,
    Answers,
    Cuts,
    DropsAuthorization,
    RedirectsToHttps,
    StandInEmonCMS,
)
from envoy2emon.emoncms.client import EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.rows import Row
from envoy2emon.settings import Secret
from tests.certificates import Certificate

NODE = "Envoy-S"
ROWS = [Row(1_700_000_000 + second, {"prod_ph-a_wNow": Decimal("-0.50"), "b": Decimal("1E+3")}) for second in (0, 1)]


@pytest.fixture
def client(emoncms: StandInEmonCMS) -> Iterator[EmonCMS]:
    """Yield a client with the write key."""
    made = EmonCMS(emoncms.url, Secret(emoncms.key), NODE)
    yield made
    made.close()


@contextmanager
def answering(data: bytes, times: int = 1) -> Iterator[str]:
    """Answer so many connections with these bytes, whatever they ask, and yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(times):
                with suppress(OSError), listener.accept()[0] as connection:  # the client may leave first
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/emoncms"


def test_rows_arrive_with_their_dates_and_digits(client: EmonCMS, emoncms: StandInEmonCMS) -> None:
    """A post applies its rows with their dates and digits, and EmonCMS then shows them."""
    client.post(ROWS)
    assert [(row.time, row.node) for row in emoncms.rows] == [(row.date, NODE) for row in ROWS]
    assert [{name: str(value) for name, value in row.inputs.items()} for row in emoncms.rows] == [
        {"prod_ph-a_wNow": "-0.50", "b": "1E+3"}
    ] * 2
    assert client.shown() == {"prod_ph-a_wNow": 1_700_000_001, "b": 1_700_000_001}


def test_a_node_may_have_any_name(emoncms: StandInEmonCMS) -> None:
    """Spaces and letters of any language arrive as the owner wrote them."""
    client = EmonCMS(emoncms.url, Secret(emoncms.key), "Dach Süd 1")
    client.post(ROWS[:1])
    assert set(client.shown()) == {"prod_ph-a_wNow", "b"}
    assert emoncms.rows[0].node == "Dach Süd 1"
    client.close()


def test_a_connection_is_kept_and_not_when_it_may_be_closing(
    client: EmonCMS, emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts share a connection; after a silence in which Apache may have closed it, a new one is opened."""
    emoncms.max_requests = 3
    for _ in range(4):
        client.post(ROWS)
    assert emoncms.connections == 2
    monkeypatch.setattr("envoy2emon.emoncms.client.KEEP_ALIVE_S", 0.0)
    client.post(ROWS)
    assert emoncms.connections == 3


def test_every_answer_teaches_the_clock(client: EmonCMS, emoncms: StandInEmonCMS) -> None:
    """EmonCMS's clock is learnt from the Date of any answer, even that of a failure."""
    emoncms.clock_offset = -86400.0 * 400
    emoncms.fault = PHP_DOWN
    with pytest.raises(Unavailable):
        client.shown()
    assert client.clock.ahead is not None
    assert abs(client.clock.date(time.monotonic()) - emoncms.now()) < 2.1


def test_there_is_no_node_yet(client: EmonCMS) -> None:
    """A node that does not exist shows no input."""
    assert client.shown() == {}


def test_a_restart_of_redis_forgets_dates(client: EmonCMS, emoncms: StandInEmonCMS) -> None:
    """`"time":null`, which EmonCMS shows after Redis restarts, is an unknown date: 0."""
    client.post(ROWS)
    emoncms.account.restart_redis()
    assert set(client.shown().values()) == {0}


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (PHP_DOWN, Unavailable, "answers 502 Bad Gateway"),
        (MARIADB_DOWN, Unavailable, "its database (MariaDB or Redis) is down: Fatal error"),
        (REDIS_DOWN, Unavailable, "its database (MariaDB or Redis) is down: Fatal error"),
        (Answers(500, MARIADB_DOWN.body), Unavailable, "its database (MariaDB or Redis) is down: Fatal error"),
        (Answers(200, ""), Unavailable, "is EMONCMS_APIKEY the write key"),
        (Answers(200, "false"), Unavailable, "is EMONCMS_URL right?"),
        (Answers(200, "<html>router</html>"), Unavailable, "answers an HTML page: is EMONCMS_URL right"),
        (Answers(200, "3"), Unavailable, "answers '3'"),
        (Answers(200, "[" * 100_000), Unavailable, "answers '[[["),
        (Answers(401, "Invalid API key"), Unauthorized, "does not know EMONCMS_APIKEY (401)"),
        (Answers(403), Unavailable, "answers 403"),
        (Answers(404), Unavailable, "there is no EmonCMS at"),
        (Answers(413), Rejected, "413"),
        (Answers(200, '{"success": false, "message": "node limit"}'), Rejected, "node limit"),
        (Answers(200, "Error: Format error, rows"), Rejected, "Error: Format error, rows"),
        (RedirectsToHttps(), Unavailable, "redirects to https://127.0.0.1/emoncms/input/bulk"),
        (DropsAuthorization(), Unavailable, "does a proxy in front of it drop the Authorization header?"),
        (Cuts(), Unavailable, "closed the connection"),
    ],
)
def test_what_an_answer_means(
    client: EmonCMS, emoncms: StandInEmonCMS, fault: Answers, kind: type[Exception], words: str
) -> None:
    """Each failure of EmonCMS raises the class on which the caller acts, with a message for the owner."""
    emoncms.fault = fault
    with pytest.raises(kind) as caught:
        client.post(ROWS)
    assert words in str(caught.value)
    assert "<" not in str(caught.value)
    assert emoncms.key not in str(caught.value)
    if kind is Rejected:
        kind = Unavailable
    with pytest.raises(kind):
        client.shown()


def test_a_key_that_may_not_write_is_told(emoncms: StandInEmonCMS) -> None:
    """The read key gets an empty answer; asking whether a key may write leaves no input behind."""
    writer = EmonCMS(emoncms.url, Secret(emoncms.key), NODE)
    writer.check_key()
    emoncms.account.plain_errors = True
    writer.check_key()
    with pytest.raises(Unavailable, match="is EMONCMS_APIKEY the write key"):
        EmonCMS(emoncms.url, Secret(emoncms.read_key), NODE).check_key()
    assert emoncms.account.nodes == {}
    writer.close()


def test_the_version_takes_no_key(emoncms: StandInEmonCMS) -> None:
    """EmonCMS gives its version without a key."""
    assert EmonCMS(emoncms.url, None).version() == "11.16.8"


def test_nobody_there() -> None:
    """A closed port and an unknown name are reported in plain words."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url, words in (
        (f"http://127.0.0.1:{port}/emoncms", "refuses the connection"),
        ("http://emoncms.invalid/emoncms", "has a name that cannot be resolved"),
    ):
        with pytest.raises(Unavailable, match=words):
            EmonCMS(url, None).shown()


def test_certificates(certificate: Certificate) -> None:
    """A self-signed certificate is not trusted, unless it is the pinned one."""
    with StandInEmonCMS(tls=certificate.context) as emoncms:
        with pytest.raises(Unavailable, match="has a certificate that this computer does not trust"):
            EmonCMS(emoncms.url, Secret(emoncms.key), NODE).shown()
        with pytest.raises(Unavailable, match=r"has a certificate other than the one set in \.env"):
            EmonCMS(emoncms.url, Secret(emoncms.key), NODE, pin="00" * 32).shown()
        pinned = EmonCMS(emoncms.url, Secret(emoncms.key), NODE, pin=certificate.sha256)
        pinned.post(ROWS)
        assert len(emoncms.rows) == 2
        pinned.close()


HEADS = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99999999999999999999\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x00",
    b"HTTP/1.1 99999999999999999999 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nDate: Fri, 99 Abc 99999 99:99:99 GMT\r\nContent-Length: 3\r\n\r\n\xed\xa0\x80",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=\x00\xff; expires=never\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\nok?",
    b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 * 1024 * 1024),
    b'HTTP/1.1 200 OK\r\n\r\n{"a":{"time":1e400,"value":NaN}}',
    b'HTTP/1.1 200 OK\r\n\r\n{"a":{"time":"\\ud800"}}',
]


@pytest.mark.parametrize("data", HEADS, ids=range(len(HEADS)))
def test_no_answer_is_more_than_unavailable(data: bytes) -> None:
    """Whatever broken answer a server sends, post() and shown() raise Unavailable."""
    with answering(data, 2) as url:
        client = EmonCMS(url, None, NODE)
        for ask in (lambda: client.post(ROWS), client.shown):
            with pytest.raises(Unavailable):
                ask()
        client.close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
def test_no_bytes_are_more_than_ours(data: bytes, head: bytes) -> None:
    """Whatever bytes a server sends, in a head or in a body, shown() raises only exceptions of ours."""
    with answering(head + data) as url:
        client = EmonCMS(url, None, NODE)
        try:
            client.shown()
        except (Unavailable, Unauthorized):
            pass
        finally:
            client.close()
