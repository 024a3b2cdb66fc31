"""Whether a kept connection can be used again, on real sockets."""

import select
import socket
import ssl
from collections.abc import Iterator
from threading import Thread

import pytest

from envoy2emon.keepalive import usable
from tests.certificates import Certificate


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets: ours and the other side's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_silence_is_well(pair: Pair) -> None:
    """A connection on which nothing has come can be used, and has its timeout."""
    assert usable(pair[0], 7.0)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_closed_or_spoken_to_is_not(pair: Pair, said: bytes) -> None:
    """One that the other side has closed, or on which it has said something unasked, cannot."""
    ours, theirs = pair
    theirs.sendall(said)
    if not said:
        theirs.close()
    select.select([ours], [], [], 5)
    assert not usable(ours, 7.0)
    assert ours.gettimeout() == 7.0


def test_reset_is_not(pair: Pair) -> None:
    """One that the other side has reset cannot either."""
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    select.select([ours], [], [], 5)
    assert not usable(ours, 7.0)


def test_session_tickets_are_nothing_said(pair: Pair, certificate: Certificate) -> None:
    """What a TLS 1.3 server sends behind its handshake leaves the connection well; its end does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    served: list[ssl.SSLSocket] = []
    serve = Thread(target=lambda: served.append(certificate.context.wrap_socket(pair[1], server_side=True)))
    serve.start()
    with context.wrap_socket(pair[0]) as ours:
        serve.join()
        assert select.select([ours], [], [], 5)[0], "the server sends no ticket: this test says nothing"
        assert usable(ours, 7.0)
        assert ours.gettimeout() == 7.0
        served[0].close()
        select.select([ours], [], [], 5)
        assert not usable(ours, 7.0)
