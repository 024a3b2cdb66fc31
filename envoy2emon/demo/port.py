"""The port of a simulated gateway: it serves TLS or plain HTTP, depending on the firmware, with answers and streams."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler
from queue import Empty, SimpleQueue
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envoy2emon.demo.gateway import SimulatedEnvoy

GONE_AFTER_S = 0.1  # the time in which a client that hangs up between two events is noticed
_TLS_HANDSHAKE = b"\x16"


class Request(NamedTuple):
    """A request that was answered. at: monotonic s. user: None if nobody was recognised."""

    at: float
    path: str
    status: int
    user: str | None


class Answer(NamedTuple):
    """The answer to a request; body None is the stream, content_type None leaves the header out."""

    status: int
    body: str | None = ""
    content_type: str | None = "text/html"
    headers: Mapping[str, str] = {}


class Port(ThreadingTCPServer):
    """Listens for a gateway, and notes every connection, request and stream with it."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, gateway: SimulatedEnvoy) -> None:
        self.gateway = gateway
        super().__init__(gateway.address, _Connection)

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in socketserver
        """Serve a connection, or close it if a gateway of this firmware serves only the other kind (TLS or plain)."""
        gateway = self.gateway
        gateway.note(gateway.count_connection)
        request.settimeout(10)  # for the handshake
        encrypted = request.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
        tls = gateway.tls if encrypted and gateway.token_based else None
        if not tls and (encrypted or (gateway.token_based and not gateway.redirects)):
            return
        connection = tls.wrap_socket(request, server_side=True) if tls else request
        connection.settimeout(None)
        gateway.note(lambda: gateway.open_connections.add(connection))
        try:
            _Connection(connection, client_address, self)
        finally:
            gateway.note(lambda: gateway.open_connections.remove(connection))
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in socketserver
        """Show what went wrong, unless the client has merely left."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    server: Port
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # send an answer in one piece
    path = ""
    user: str | None = None

    def do_GET(self) -> None:
        gateway = self.server.gateway
        encrypted = isinstance(self.connection, ssl.SSLSocket)
        self.user, answer = gateway.respond(self.path, self.headers, encrypted=encrypted)
        headers = dict(answer.headers)
        if answer.content_type:
            headers["Content-Type"] = answer.content_type
        chunked = answer.body is None and gateway.chunked
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif answer.body is not None:
            headers["Content-Length"] = str(len(answer.body.encode()))
        resets = gateway.reset_after_401 and "WWW-Authenticate" in headers
        if not resets and (not gateway.token_based or (answer.body is None and not chunked)):
            headers["Connection"] = "close"
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
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
        gateway, stream = self.server.gateway, SimpleQueue[bytes | None]()
        gateway.note(lambda: gateway.streams.append(stream))
        try:
            self.wfile.flush()
            while (data := self._next(stream)) is not None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        finally:
            gateway.note(lambda: gateway.streams.remove(stream))

    def _next(self, stream: SimpleQueue[bytes | None]) -> bytes | None:
        while True:
            try:
                return stream.get(timeout=GONE_AFTER_S)
            except Empty:
                if select.select([self.connection], [], [], 0)[0]:  # closed: a client sends nothing after its GET
                    raise ConnectionResetError("the client left") from None

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - as in http.server
        gateway = self.server.gateway
        request = Request(time.monotonic(), self.path, int(code), self.user)
        gateway.note(lambda: gateway.requests.append(request))

    def log_message(self, *_: object) -> None:
        pass
