"""A question and its answer: read whole, byte by byte, cut anywhere, and over real sockets."""

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms import exchange
from envoy2emon.emoncms.exchange import MAX_ANSWER, Dropped, Exchange, Reply, Unavailable, _whole
from tests.certificates import Certificate
from tests.conftest import until

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"
OLD = b"HTTP/1.0 200 OK\r\n\r\nok"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH
HINTED = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nLink: </y>\r\n\r\n" + CHUNKED
FRAMED = {"length": LENGTH, "chunked": CHUNKED, "continued": CONTINUED, "hinted": HINTED}
UNFRAMED = {"close": TO_THE_END, "HTTP 1.0": OLD}


def text(reply: Reply | None) -> str | None:
    """Return what an answer says."""
    return reply.text if reply else None


@pytest.mark.parametrize("answer", FRAMED.values(), ids=FRAMED.keys())
def test_an_answer_is_whole_with_its_last_byte(answer: bytes) -> None:
    """Not before."""
    assert [_whole(answer[:count], ended=False) for count in range(len(answer))] == [None] * len(answer)
    assert text(_whole(answer, ended=False)) == "ok"


@pytest.mark.parametrize("answer", UNFRAMED.values(), ids=UNFRAMED.keys())
def test_an_answer_without_a_length_is_whole_when_the_connection_ends(answer: bytes) -> None:
    """Nobody knows before."""
    assert [_whole(answer[:count], ended=False) for count in range(len(answer) + 1)] == [None] * (len(answer) + 1)
    assert text(_whole(answer, ended=True)) == "ok"


@pytest.mark.parametrize("answer", [*FRAMED.values(), *UNFRAMED.values()], ids=[*FRAMED, *UNFRAMED])
def test_an_answer_that_was_cut_is_never_taken_for_good(answer: bytes) -> None:
    """Wherever the connection ended, unless it was behind all that there is to read."""
    for count in range(len(answer.rstrip().removesuffix(b"0"))):
        with suppress(http.client.HTTPException, ConnectionError):
            assert text(_whole(answer[:count], ended=True)) != "ok"


def test_what_is_not_http_is_known_at_once() -> None:
    """Nobody waits for more of it."""
    with pytest.raises(http.client.BadStatusLine):
        _whole(b"SSH-2.0-OpenSSH_9.2\r\n", ended=False)


@given(
    received=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda head, rest: b"HTTP/1.1 " + head + b"\r\n\r\n" + rest, st.binary(), st.binary()),
        st.builds(lambda rest: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest, st.binary()),
    ),
    ended=st.booleans(),
)
def test_whatever_comes_is_an_answer_or_an_error(received: bytes, ended: bool) -> None:  # noqa: FBT001 - drawn
    """No bytes make anything else of it."""
    with suppress(http.client.HTTPException, ConnectionError, ValueError):
        _whole(received, ended=ended)


@contextmanager
def served(serve: Callable[[socket.socket], object], context: ssl.SSLContext | None = None) -> Iterator[Exchange]:
    """Give the way to a server that does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), connection:
                        serve(context.wrap_socket(connection, server_side=True) if context else connection)

        thread = Thread(target=run, daemon=True)
        thread.start()
        scheme = "https" if context else "http"
        one = Exchange(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", "")
        if context:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            one._connection._context = trusting  # type: ignore[attr-defined] # noqa: SLF001 - its certificate is self-made
        yield one
        one.close()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("answer", FRAMED.values(), ids=FRAMED.keys())
def test_an_answer_in_pieces(certificate: Certificate, answer: bytes, encrypted: bool) -> None:  # noqa: FBT001 - a column
    """Whoever does not wait gets none until all is there; the connection is used again."""
    more = Event()

    def serve(connection: socket.socket) -> None:
        while connection.recv(4096):
            for number in range(len(answer)):
                if number == len(answer) // 2:
                    more.wait(10)
                    more.clear()
                connection.sendall(answer[number : number + 1])

    with served(serve, certificate.context if encrypted else None) as one:
        one.connect()
        for _ in range(3):
            one.send("GET", "/")
            for _ in range(3):
                assert one.reply(0.02) is None
            more.set()
            until(lambda: one.reply(0.0) is not None)
            assert one.wait().text == "ok"
            assert one.ready()


def test_an_answer_that_drips_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for an answer is for all of it, its head included, and not for each of its bytes."""
    monkeypatch.setattr(exchange, "ANSWER_TIMEOUT_S", 0.4)
    ended = Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.01):
            connection.sendall(b"X")

    with served(serve) as one:
        one.connect()
        one.send("GET", "/")
        with pytest.raises(Unavailable, match="does not answer within") as raised:
            one.wait()
        ended.set()
    assert raised.value.unclear


def test_an_answer_without_end_is_trouble() -> None:
    """Nobody keeps more of it than there can be."""

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with served(serve) as one:
        one.connect()
        one.send("GET", "/")
        with pytest.raises(Unavailable):
            one.wait()
        assert len(one._received) < MAX_ANSWER + 65537  # noqa: SLF001 - the rule is about what is kept


def test_an_error_is_met_by_whoever_waits() -> None:
    """Whoever does not wait gets no answer, however often; whoever does is told what happened."""

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(LENGTH)
        connection.recv(4096)

    with served(serve) as one:
        one.connect()
        one.send("GET", "/")
        assert one.wait().text == "ok"
        one.send("GET", "/")
        for _ in range(3):
            assert one.reply(0.1) is None
        with pytest.raises(Dropped):
            one.wait()
        assert not one.ready()


def test_a_connection_is_in_use_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was idle may be closed by the server at any moment: it is not ready, though it is there."""
    now = 0.0

    def serve(connection: socket.socket) -> None:
        while connection.recv(4096):
            connection.sendall(LENGTH)

    with served(serve) as one:
        monkeypatch.setattr(one, "_clock", lambda: now)
        assert not one.ready()
        one.connect()
        assert not one.ready()
        one.send("GET", "/")
        assert one.wait().text == "ok"
        assert one.ready()
        now = exchange.BUSY_S
        assert not one.ready()
        before = one._connection.sock  # noqa: SLF001 - the rule is about it
        one.connect()
        assert one._connection.sock is before  # noqa: SLF001 - the rule is about it
