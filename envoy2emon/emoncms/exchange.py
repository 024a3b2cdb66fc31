"""One question at a time to a web server, and its answer, over a connection that is kept.

The law of this file: an answer counts when all of it is there, which can be told without waiting; and whatever goes
wrong says whether the question may have arrived. http.client it is, not requests: it tells a connection that was
refused from an answer that got lost, knows neither proxies nor .netrc, and costs half the time.
"""

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from envoy2emon.keepalive import usable

CONNECT_TIMEOUT_S = 10.0
# 100 rows with 36 logged inputs take 1.3 s on a PC and ten times that on a Raspberry Pi.
ANSWER_TIMEOUT_S = 60.0
# `input/get` of a node with 200 inputs is 15 kB.
MAX_ANSWER = 1024 * 1024
# Apache closes a connection after 5 s of silence, and says so when it closes one after 100 requests.
BUSY_S = 2.0
_CHUNK = 65536
# http.client reads a head as the e-mail parser does, and that can raise a ValueError (boundary*=a\0b''c).
# A client has to skip answers of 1xx though it did not ask for them (RFC 9110, 15.2).
_INTERIM = re.compile(rb"HTTP/1\.[01] 1\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")
_TROUBLE = (OSError, http.client.HTTPException, ValueError)


class Unavailable(Exception):
    """The server is away or out of order. `unclear`: what was sent may have been applied all the same."""

    def __init__(self, reason: str, *, unclear: bool = False) -> None:
        super().__init__(reason)
        self.unclear = unclear


class Dropped(Unavailable):
    """A kept connection was closed as the request went out, which servers do: try again at once."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is all there; `head` has status, reason and headers."""

    head: http.client.HTTPResponse
    text: str


class Exchange:
    """The way to the server of `url`; `fields` is what each question's head has beside its length, in lines."""

    def __init__(self, url: str, fields: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        parts = urlsplit(url)
        self._path = parts.path.rstrip("/")
        self._fields = f"Host: {parts.netloc}\r\n{fields}"
        self._clock = clock
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = make(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
        self._kept = False  # an answer came over the connection
        self._sent_at = float("-inf")
        self._received, self._ended = b"", False  # of the answer that is awaited
        self._reply: Reply | None = None

    def ready(self) -> bool:
        """Tell, without waiting, whether there is a connection in use, which the server will not close for idleness."""
        return self._clock() - self._sent_at < BUSY_S and self._usable()

    def connect(self) -> None:
        """Make sure of a connection, which takes time if a name has to be resolved. Raises Unavailable."""
        if self._usable():
            return
        self.close()
        self._kept = False
        try:
            self._connection.connect()
        except (OSError, UnicodeError) as error:
            self.close()
            raise Unavailable(f"{self._url} {_reason(error, CONNECT_TIMEOUT_S)}") from error

    def send(self, method: str, path: str, form: str = "") -> None:
        """Send a question over the connection. Whatever goes wrong, whoever waits for the answer meets it."""
        body = form.encode()
        # Head and body in one packet: http.client's request() sends two, and builds the same head again: 0.1 ms a post.
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._fields}Content-Length: {len(body)}\r\n\r\n"
        self._received, self._ended, self._reply = b"", False, None
        self._sent_at = self._clock()
        self._connection.sock.settimeout(ANSWER_TIMEOUT_S)
        with suppress(OSError):  # there may be an answer nevertheless, such as 413
            self._connection.sock.sendall(head.encode() + body)

    def reply(self, seconds: float) -> Reply | None:
        """Return the answer if it is there within so many seconds; None: wait() will tell, or raise what is wrong."""
        with suppress(*_TROUBLE):
            self._receive(self._clock() + seconds)
        return self._reply

    def wait(self) -> Reply:
        """Wait for the answer. Raises Unavailable."""
        try:
            self._receive(self._sent_at + ANSWER_TIMEOUT_S)
            if self._reply is None:
                raise TimeoutError
        except _TROUBLE as error:
            self.close()
            if self._kept and not self._received and isinstance(error, ConnectionError):  # RemoteDisconnected is one
                raise Dropped("the connection was closed", unclear=True) from error
            raise Unavailable(f"{self._url} {_reason(error, ANSWER_TIMEOUT_S)}", unclear=True) from error
        self._kept = True
        if self._ended or self._reply.head.will_close:
            self.close()
        return self._reply

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _usable(self) -> bool:
        return self._connection.sock is not None and usable(self._connection.sock, ANSWER_TIMEOUT_S)

    def _receive(self, until: float) -> None:
        """Take in what comes of the answer, up to its end or this time. Raises OSError, HTTPException."""
        while not (reply := self._reply or _whole(self._received, ended=self._ended)):
            self._connection.sock.settimeout(max(0.0, until - self._clock()))
            try:
                data = self._connection.sock.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
                return
            self._received += data
            self._ended = not data or len(self._received) > MAX_ANSWER
        self._reply = reply


class _Received:
    """What http.client takes for a socket: it reads an answer out of what has been received."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, _mode: str) -> io.BytesIO:
        """Do as a socket."""
        return io.BytesIO(self._received)


def _whole(received: bytes, *, ended: bool) -> Reply | None:
    """Return the answer, None while there is more to come of it. Raises HTTPException, ConnectionError, ValueError."""
    start = 0
    while interim := _INTERIM.match(received, start):
        start = interim.end()
    received = received[start:]
    if not ended and received.startswith(b"HTTP/"[: len(received)]) and b"\r\n\r\n" not in received:
        return None
    head = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    head.begin()
    try:
        body = head.read()
    except http.client.IncompleteRead:
        if ended:
            raise
        return None
    # http.client does without the end of the last chunk; and what has no length ends with the connection.
    complete = received.endswith(b"\r\n\r\n") if head.chunked else head.length is not None
    return Reply(head, body.decode(errors="replace").strip()) if complete or ended else None


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "has a name that cannot be resolved"
    if isinstance(error, TimeoutError):
        return f"does not answer within {timeout:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection: is its web server running?"
    if isinstance(error, ConnectionError | http.client.IncompleteRead):
        return "closed the connection without an answer"
    return f"cannot be reached: {error}"
