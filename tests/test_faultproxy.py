"""The proxy that injects faults, over real sockets: what it changes is a test's doing, and nothing else is."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from tests.faultproxy import FaultProxy


class Line:
    """A connection through the proxy: `client` and the target's end of it, `server`."""

    def __init__(self, proxy: FaultProxy, target: socket.socket) -> None:
        """Connect, and say something so that the target sees it."""
        self.client = socket.create_connection((proxy.host, proxy.port), timeout=5)
        self.client.sendall(b"hello")
        self.server, _ = target.accept()
        self.server.settimeout(5)
        assert self.server.recv(5) == b"hello"

    def silent(self) -> bool:
        """Tell whether neither end has anything to read within a moment."""
        for end in (self.client, self.server):
            end.settimeout(0.05)
            try:
                end.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                end.settimeout(5)
            else:
                return False
        return True


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """Listen."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(5)
        yield target


@pytest.fixture
def proxy(target: socket.socket) -> Iterator[FaultProxy]:
    """Stand before the target."""
    with FaultProxy(*target.getsockname()) as proxy:
        yield proxy


@pytest.fixture
def line(proxy: FaultProxy, target: socket.socket) -> Iterator[Line]:
    """Have one connection."""
    line = Line(proxy, target)
    yield line
    line.client.close()
    line.server.close()


def read(end: socket.socket, size: int = 1 << 40) -> bytes:
    """Read so many bytes, or fewer up to the end."""
    data = bytearray()
    while len(data) < size and (piece := end.recv(min(size - len(data), 65536))):
        data += piece
    return bytes(data)


def test_pass(line: Line, proxy: FaultProxy) -> None:
    """Bytes of any kind pass in both directions at once, and a half-closed end as such."""
    everything = bytes(range(256)) * 1000
    line.server.sendall(everything)
    assert read(line.client, len(everything)) == everything
    line.client.sendall(everything)
    line.client.shutdown(socket.SHUT_WR)
    assert read(line.server) == everything
    line.server.sendall(b"late")
    line.server.close()
    assert read(line.client) == b"late"
    proxy.wait_for(lambda: proxy.open == 0)


def test_refuse(line: Line, proxy: FaultProxy, target: socket.socket) -> None:
    """Refusing cuts what is open, refuses what comes, and ends on the same port; again and again."""
    for _ in range(2):
        port = proxy.port
        proxy.refuse()
        assert line.client.recv(1) == b""
        assert line.server.recv(1) == b""
        with pytest.raises(ConnectionRefusedError), socket.create_connection((proxy.host, port)):
            pass
        proxy.pass_through()
        line = Line(proxy, target)
    assert len(proxy.attempts) == 3


def test_reset(line: Line, proxy: FaultProxy) -> None:
    """Resetting is for new connections, counts them, and leaves open ones alone."""
    before = time.monotonic()
    proxy.reset()
    with pytest.raises(ConnectionResetError):  # while connecting or soon after
        socket.create_connection((proxy.host, proxy.port), timeout=5).recv(1)
    proxy.wait_for(lambda: len(proxy.attempts) == 2)
    assert proxy.attempts[0] < before < proxy.attempts[1]
    line.server.sendall(b"on")
    assert read(line.client, 2) == b"on"


def test_stall(line: Line, proxy: FaultProxy, target: socket.socket) -> None:
    """A stall lets nothing pass, not even an end, accepts connections, and loses nothing."""
    proxy.stall()
    line.server.sendall(b"down")
    line.server.shutdown(socket.SHUT_WR)
    line.client.sendall(b"up")
    late = socket.create_connection((proxy.host, proxy.port), timeout=5)
    late.sendall(b"late")
    assert line.silent()
    proxy.pass_through()
    assert read(line.client) == b"down"
    assert read(line.server, 2) == b"up"
    assert read(target.accept()[0], 4) == b"late"


@pytest.mark.parametrize("reset", [False, True])
def test_cut_after(line: Line, proxy: FaultProxy, reset: bool) -> None:  # noqa: FBT001
    """A cut after n bytes lets exactly n pass downstream."""
    proxy.cut(after=7, reset=reset)
    for piece in (b"abc", b"defghijk"):
        line.server.sendall(piece)
    assert read(line.client, 7) == b"abcdefg"
    if reset:
        with pytest.raises(ConnectionResetError):
            line.client.recv(1)
    else:
        assert line.client.recv(1) == b""


def test_drip(line: Line, proxy: FaultProxy) -> None:
    """Dripping lets so many bytes a second pass, and the rest at once when it ends."""
    proxy.drip(rate=50)
    start = time.monotonic()
    line.server.sendall(b"0123456789" * 100)
    assert read(line.client, 10) == b"0123456789"
    assert 0.15 < time.monotonic() - start < 2
    proxy.pass_through()
    assert read(line.client, 990) == b"0123456789" * 99
    assert time.monotonic() - start < 5


def test_flood(line: Line, proxy: FaultProxy) -> None:
    """A flood brings bytes without end and without newline; the target's bytes wait for its end."""
    proxy.flood()
    line.server.sendall(b"\n")
    assert read(line.client, 1_000_000) == b"x" * 1_000_000
    proxy.pass_through()
    line.server.close()
    assert read(line.client).strip(b"x") == b"\n"


def test_canned(line: Line, proxy: FaultProxy) -> None:
    """A canned answer is given to whatever is sent next, on open and new connections, and the target sees nothing."""
    proxy.canned(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    line.client.sendall(b"GET /")
    assert read(line.client).startswith(b"HTTP/1.1 503")
    connection = http.client.HTTPConnection(proxy.host, proxy.port)
    connection.request("GET", "/", b"x" * 100_000)
    assert connection.getresponse().status == 503
    line.client.close()
    assert line.server.recv(1) == b""
