"""The port of a simulated Envoy: TLS or plain HTTP by its firmware, requests in, answers and streams out.

The law of this file: what a gateway's port does to a connection, and nothing of what the answers say.
"""

import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler
from queue import Empty, SimpleQueue
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple, Protocol

GONE_AFTER_S = 0.1  # a client that hangs up between two events is noticed after so long
_TLS_HANDSHAKE = b"\x16"


class Request(NamedTuple):
    """A request as answered: `at` in seconds on the monotonic clock, user None where nobody was recognised."""

    at: float
    method: str
    path: str
    status: int
    user: str | None


class Answer(NamedTuple):
    """What a request gets; body None is the stream, content_type None leaves the header out."""

    status: int
    body: str | None = ""
    content_type: str | None = "text/html"
    headers: Mapping[str, str] = {}


class Gateway(Protocol):
    """What a port asks of its gateway; `respond` says who asks and what the answer to a GET is."""

    tls: ssl.SSLContext | None
    chunked: bool
    redirects: bool
    reset_after_401: bool

    @property
    def token_based(self) -> bool: ...  # noqa: D102

    def respond(self, target: str, headers: Message, *, encrypted: bool) -> tuple[str | None, Answer]: ...  # noqa: D102


class Port:
    """A gateway's port; `requests` and `accepted` (connections, s) live on when it is closed and opened again."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.requests: list[Request] = []
        self.accepted: list[float] = []
        self.streams: list[SimpleQueue[bytes | None]] = []
        self.open_connections: set[socket.socket] = set()
        self._changed = threading.Condition()

    def open(self, address: tuple[str, int]) -> tuple[str, int]:
        """Listen; return the address with its real port."""
        self._server = _Server(address, self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="simulated Envoy", daemon=True).start()
        return address[0], self._server.server_address[1]

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def cut(self) -> None:
        """Cut every open connection."""
        with self._changed:
            for connection in self.open_connections:
                with suppress(OSError):  # its client has left
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # SSLSocket's own is not for other threads

    def send(self, data: bytes | None) -> None:
        """Send bytes to every open stream, None to end it."""
        with self._changed:
            for stream in self.streams:
                stream.put(data)

    def note(self, change: Callable[[], object]) -> None:
        """Change a list, and wake who waits for it."""
        with self._changed:
            change()
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> None:
        """Return as soon as the predicate holds; TimeoutError after `timeout` s."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise TimeoutError(f"after {timeout} s: {len(self.streams)} streams, requests {self.requests[-5:]}")


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], port: Port) -> None:
        self.port = port
        super().__init__(address, _Connection)

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        port, gateway = self.port, self.port.gateway
        port.note(lambda: port.accepted.append(time.monotonic()))
        request.settimeout(10)  # for the handshake
        encrypted = request.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
        tls = gateway.tls if encrypted and gateway.token_based else None
        if not tls and (encrypted or (gateway.token_based and not gateway.redirects)):
            return  # on a gateway this port is closed
        connection = tls.wrap_socket(request, server_side=True) if tls else request
        connection.settimeout(None)
        port.note(lambda: port.open_connections.add(connection))
        try:
            _Connection(connection, client_address, self)
        finally:
            port.note(lambda: port.open_connections.remove(connection))
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):  # a client that left is no news
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece
    path = ""
    user: str | None = None

    def do_GET(self) -> None:
        gateway = self.server.port.gateway
        encrypted = isinstance(self.connection, ssl.SSLSocket)
        self.user, answer = gateway.respond(self.path, self.headers, encrypted=encrypted)
        chunked = answer.body is None and gateway.chunked
        resets = gateway.reset_after_401 and "WWW-Authenticate" in answer.headers
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.content_type:
            self.send_header("Content-Type", answer.content_type)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.body is not None:
            self.send_header("Content-Length", str(len(answer.body.encode())))
        if not resets and (not gateway.token_based or (answer.body is None and not chunked)):
            self.send_header("Connection", "close")
        self.end_headers()
        if answer.body is None:
            self._stream(chunked=chunked)
        else:
            self.wfile.write(answer.body.encode())
        if resets:
            self.wfile.flush()
            select.select([self.connection], [], [])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    def _stream(self, *, chunked: bool) -> None:
        port, stream = self.server.port, SimpleQueue[bytes | None]()
        port.note(lambda: port.streams.append(stream))
        try:
            self.wfile.flush()
            while (data := self._next(stream)) is not None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        finally:
            port.note(lambda: port.streams.remove(stream))

    def _next(self, stream: SimpleQueue[bytes | None]) -> bytes | None:
        while True:
            try:
                return stream.get(timeout=GONE_AFTER_S)
            except Empty:
                if select.select([self.connection], [], [], 0)[0]:  # a client that has its stream says nothing more
                    raise ConnectionResetError("the client left") from None

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
        request = Request(time.monotonic(), self.command or "", self.path, int(code), self.user)
        self.server.port.note(lambda: self.server.port.requests.append(request))

    def log_message(self, *_: object) -> None:
        pass
