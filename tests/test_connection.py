"""HTTP with the gateway at the socket: what is kept, what is bounded, and how each failure is told."""

import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from unittest.mock import Mock

import pytest

from envoy2emon.gateway import answer as answer_module
from envoy2emon.gateway import connection
from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.connection import Connection
from tests.conftest import until

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"
TCP_CLOSE = b"\7"


class Last(bytes):
    """An answer after which the gateway closes the connection."""


class Gateway:
    """Gives one answer of the script to each question; counts connections, keeps questions."""

    def __init__(self, *script: bytes) -> None:
        self.questions: list[bytes] = []
        self.connections = 0
        self._script = iter(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Answer until the listener closes."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                with client, suppress(OSError):
                    answer = b""
                    while not isinstance(answer, Last) and (question := client.recv(65536)):
                        self.questions.append(question)
                        answer = next(self._script)
                        client.sendall(answer)

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Gateway]]:
    """Start scripted gateways."""
    started: list[Gateway] = []

    def start(*script: bytes) -> Gateway:
        gateway = Gateway(*script)
        Thread(target=gateway.serve, daemon=True).start()
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.close()


Scripted = Callable[..., Gateway]


def text(way: Connection, gateway: Gateway) -> str:
    """Ask for something and read the answer."""
    with way.get(gateway.url, "/x", 5) as answer:
        return answer.text()


@pytest.mark.parametrize("answer", [GOOD, CHUNKED])
def test_a_connection_is_kept(scripted: Scripted, answer: bytes) -> None:
    """What was read to its end leaves the connection to the next question."""
    gateway, way = scripted(answer, answer, answer), Connection(None)
    assert [text(way, gateway) for _ in range(3)] == ["ok"] * 3
    assert gateway.connections == way.opened == 1
    assert gateway.questions[0].startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert gateway.questions[0].endswith(b"\r\n\r\n")


def test_what_is_not_read_takes_its_connection_with_it(scripted: Scripted) -> None:
    """Nobody takes the rest of an answer for the next one."""
    gateway, way = scripted(GOOD, CHUNKED, GOOD), Connection(None)
    for _ in range(2):
        with way.get(gateway.url, "/x", 5) as answer:
            assert answer.status == 200
    assert text(way, gateway) == "ok"
    assert gateway.connections == 3


@pytest.mark.parametrize(("answer", "connections"), [(GOOD, 1), (CHUNKED, 1), (GOOD[:-1], 2), (CHUNKED[:-3], 2)])
def test_what_is_skipped_has_a_moment(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, answer: bytes, connections: int
) -> None:
    """It leaves its connection to the next question if its end is there, and is not waited for if it is not."""
    monkeypatch.setattr(answer_module, "SKIP_S", 0.1)
    gateway, way = scripted(answer, GOOD), Connection(None)
    start = time.monotonic()
    way.get(gateway.url, "/x", 30).skip()
    assert time.monotonic() - start < 5
    assert text(way, gateway) == "ok"
    assert gateway.connections == connections


def test_a_gateway_that_closes_is_not_asked_on(scripted: Scripted) -> None:
    """Connection: close is obeyed; a body that goes on until the end is read to it."""
    closing = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    gateway, way = scripted(closing, Last(b"HTTP/1.1 200 OK\r\n\r\nok"), GOOD), Connection(None)
    assert [text(way, gateway) for _ in range(3)] == ["ok"] * 3
    assert gateway.connections == 3


def test_a_kept_connection_that_was_closed_is_opened_anew(scripted: Scripted) -> None:
    """A gateway may close a kept connection (R/D3.18 does, HA 126162): that costs no error."""
    gateway, way = scripted(GOOD, Last(), GOOD), Connection(None)
    assert [text(way, gateway) for _ in range(2)] == ["ok"] * 2
    assert gateway.connections == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Last(), "closed the connection"),
        (GOOD[:9], "does not answer in time"),
        (GOOD[:-1], "does not answer in time"),
        (Last(GOOD[:-1]), "closed the connection"),
        (Last(GOOD[:-2]), "closed the connection"),
        (CHUNKED[:-7], "does not answer in time"),
        (Last(CHUNKED[:-7]), "closed the connection"),
        (CHUNKED.replace(b"1\r\nk", b"one\r\nk"), "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be read: BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "cannot be read: HTTPException"),
        (
            GOOD.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/x; boundary*=a\0b''c\r\n\r\n"),
            "cannot be read: ValueError",
        ),
    ],
)
def test_a_failure_is_told_in_words(scripted: Scripted, answer: bytes, words: str) -> None:
    """Closed, cut, silent, garbage: each is StreamLost with the URL, and the next question has a new connection."""
    gateway, way = scripted(answer, GOOD), Connection(None)
    with pytest.raises(StreamLost, match=f"^{gateway.url}(/x)? {words}"), way.get(gateway.url, "/x", 0.2) as got:
        got.text()
    assert text(way, gateway) == "ok"
    assert gateway.connections == 2


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED[:-7] + b";", b"y"),
        (CHUNKED[:-2], b"X: y\r\n"),
    ],
    ids=["head", "100 Continue", "size of a chunk", "trailers"],
)
def test_what_drips_is_silent(begin: bytes, drop: bytes) -> None:
    """A gateway that sends on and on, and nothing of a body, is lost when `silence` is over."""

    def drip() -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            client.recv(65536)
            client.sendall(begin)
            for _ in range(60):
                if select.select([client], [], [], 0.05)[0]:
                    break
                client.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(StreamLost, match="does not answer in time"), Connection(None).get(url, "/x", 0.3) as answer:
            answer.text()
    assert 0.3 <= time.monotonic() - start < 1.5


def test_who_reads_late_has_lost_nothing(scripted: Scripted) -> None:
    """The time that goes by before somebody reads on is not the gateway's silence."""
    large = "k" * 20_000  # more than is read with the head
    gateway, way = scripted(GOOD.replace(b"2\r\n\r\nok", f"20000\r\n\r\n{large}".encode())), Connection(None)
    with way.get(gateway.url, "/x", 0.2) as answer:
        late = time.monotonic() + 0.3
        until(lambda: time.monotonic() > late)
        assert answer.text() == large


def test_a_kept_connection_that_is_silent_is_not_asked_twice(scripted: Scripted) -> None:
    """Only a connection that was closed is opened anew at once: silence is StreamLost, after its time."""
    gateway, way = scripted(GOOD, b"", GOOD), Connection(None)
    assert text(way, gateway) == "ok"
    with pytest.raises(StreamLost, match="does not answer in time"):
        way.get(gateway.url, "/x", 0.2)
    assert text(way, gateway) == "ok"
    assert gateway.connections == 2


def test_an_answer_is_bounded(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a large body nor one that drips for ever is read to its end."""
    monkeypatch.setattr(answer_module, "MAX_ANSWER", 1)
    gateway, way = scripted(GOOD, GOOD), Connection(None)
    with pytest.raises(StreamLost, match="answers without end"):
        text(way, gateway)
    monkeypatch.setattr(answer_module, "MAX_ANSWER", 2)
    times = iter([0.0, answer_module.ANSWER_TIMEOUT_S + 1])
    with pytest.raises(StreamLost, match="answers without end"), way.get(gateway.url, "/x", 5) as answer:
        answer.text(lambda: next(times))


def test_a_door_that_does_not_speak_tls(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain server behind https, and one that waits for more of a greeting, each in words."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.2)
    for answer, words in ((b"HTTP/1.1 400 Bad\r\n\r\n", "does not speak TLS"), (b"", "does not answer in time")):
        url = scripted(answer).url.replace("http", "https")
        with pytest.raises(StreamLost, match=f"^{url} {words}") as raised:
            Connection(None).get(url, "/x", 5)
        assert not raised.value.nobody_there


def test_a_reset_before_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was ended and reset before TLS began is lost, and its socket closed."""
    made: list[ssl.SSLSocket] = []
    wrap = ssl.SSLContext.wrap_socket

    def wrap_late(context: ssl.SSLContext, sock: socket.socket, server_hostname: str) -> ssl.SSLSocket:
        client, _ = listener.accept()
        client.shutdown(socket.SHUT_WR)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        until(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == TCP_CLOSE)
        made.append(wrap(context, sock, server_hostname=server_hostname))
        return made[0]

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_late)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(StreamLost, match=f"^{url} cannot be reached any more"):
            Connection(None).get(url, "/x", 5)
    assert made[0].fileno() == -1


def test_a_reset_before_we_saw_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there all the same: the other scheme is asked too."""
    reset = ExceptionGroup("create_connection failed", [ConnectionResetError()])
    monkeypatch.setattr(socket, "create_connection", Mock(side_effect=reset))
    with pytest.raises(StreamLost, match="cannot be reached") as raised:
        Connection(None).get("http://envoy.test:8080", "/x", 5)
    assert not raised.value.nobody_there
    assert not raised.value.shut


@pytest.mark.parametrize("host", ["a..b", "nowhere.invalid"])
def test_a_name_that_is_none(host: str) -> None:
    """What cannot be resolved, or cannot be a name at all, is told as such: nobody is there."""
    with pytest.raises(StreamLost, match=f"^{host} is a name that cannot be resolved: is ENVOY_HOST right") as raised:
        Connection(None).get(f"http://{host}", "/x", 5)
    assert raised.value.nobody_there


@pytest.mark.parametrize(
    ("resolver", "words"),
    [
        (Mock(side_effect=OSError(errno.EBUSY, "Device or resource busy")), "Device or resource busy"),
        (Mock(return_value=[]), "getaddrinfo returns an empty list"),
    ],
)
def test_a_name_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch, resolver: Mock, words: str) -> None:
    """A resolver that fails by a plain OSError (EAI_SYSTEM), or knows no address, is told in words."""
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with pytest.raises(StreamLost, match=rf"^envoy.test:8080 cannot be looked up \({words}\)$") as raised:
        Connection(None).get("http://envoy.test:8080", "/x", 5)
    assert raised.value.nobody_there


@pytest.mark.parametrize(
    ("errors", "nobody_there", "shut", "words"),
    [
        ([ConnectionRefusedError(), OSError(101, "Network is unreachable")], False, True, "refuses the connection"),
        ([OSError(113, "No route to host")], True, False, "cannot be reached: is the Envoy on"),
        ([OSError(101, "Network is unreachable"), TimeoutError()], False, False, "cannot be reached: is the Envoy on"),
    ],
)
def test_all_addresses_of_a_name_count(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], words: str, *, nobody_there: bool, shut: bool
) -> None:
    """A name may have an address to which there is no way, beside one where the port is shut."""

    def fail(*_: object, **__: object) -> None:
        raise ExceptionGroup("create_connection failed", errors)

    monkeypatch.setattr(socket, "create_connection", fail)
    way = Connection(None)
    with pytest.raises(StreamLost, match=words) as raised:
        way.get("https://envoy.local", "/info", 5)
    assert way.opened == 1
    assert (raised.value.nobody_there, raised.value.shut) == (nobody_there, shut)


def test_what_came_unasked_is_no_answer(scripted: Scripted) -> None:
    """A gateway that says 408 before it closes an idle connection has answered nothing."""
    unasked = GOOD + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    gateway, way = scripted(Last(unasked), GOOD), Connection(None)
    assert [text(way, gateway) for _ in range(2)] == ["ok"] * 2
    assert gateway.connections == 2


def test_a_session_stays_behind_tls(scripted: Scripted) -> None:
    """A cookie is not sent over plain HTTP, and one that is none is passed over."""
    cookies = b"\r\nSet-Cookie: sessionId=1; Path=/\r\nSet-Cookie: (=1\r\n\r\n"
    gateway, way = scripted(GOOD.replace(b"\r\n\r\n", cookies), GOOD), Connection(None)
    assert [text(way, gateway) for _ in range(2)] == ["ok"] * 2
    assert not any(b"Cookie" in question for question in gateway.questions)
