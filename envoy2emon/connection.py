"""HTTP with the gateway: one connection at a time, bounded in time and size, its failures in words.

The law of this file: no redirect is followed, no proxy or .netrc is asked, and whatever goes wrong is StreamLost or
Refused. http.client it is, not requests, which takes 70 ms and 10 MB to import; and the certificate's pin and what went
wrong are seen here at the socket, not read out of another library's texts.
"""

import hashlib
import http.client
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.cookies import CookieError, SimpleCookie
from typing import Self
from urllib.parse import urlsplit

from envoy2emon import __version__

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0
# 51 inverters are 8 kB.
MAX_ANSWER = 1024 * 1024
_CHUNK = 65536

_log = logging.getLogger(__name__)


class StreamLost(Exception):
    """The gateway is away, slow or broke off: try again soon.

    nobody_there: there is no such name, or no way to it; shut: this port refuses connections.
    """

    def __init__(self, reason: str, *, nobody_there: bool = False, shut: bool = False) -> None:
        super().__init__(reason)
        self.nobody_there = nobody_there
        self.shut = shut


class Refused(Exception):
    """The gateway does not let us in: the owner has to do something, which the text says."""


class Answer:
    """What the gateway answered: `status`, `headers`, and the body as it comes.

    At the end of its `with` an answer that was not read to its end takes the connection with it.
    """

    def __init__(self, response: http.client.HTTPResponse, url: str, close: Callable[[], None]) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._url = url
        self._close = close
        self._complete = False

    def __enter__(self) -> Self:
        """Do nothing: it is here."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self.close()

    def close(self) -> None:
        """Leave the connection to the next question, or close it if it is of no use to that."""
        self._response.close()
        if self._response.will_close or not self._complete:
            self._close()

    def chunk(self) -> bytes:
        """Return the next bytes as soon as there are any, b"" at the end: read1 is prompt for every framing."""
        with _in_words(self._url):
            data = self._response.read1(_CHUNK)
            if not data and self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
            self._complete = not data
            return data

    def text(self, clock: Callable[[], float] = time.monotonic) -> str:
        """Return the body, bounded, read in bounded time, whatever its Content-Type."""
        body, deadline = b"", clock() + ANSWER_TIMEOUT_S
        while chunk := self.chunk():
            body += chunk
            if len(body) > MAX_ANSWER or clock() > deadline:
                raise StreamLost(f"{self._url} answers without end")
        return body.decode(errors="replace")


class Connection:
    """The way to one gateway; with `pin`, the SHA-256 of its certificate in hex, to that one only."""

    def __init__(self, pin: str | None) -> None:
        self._pin = pin
        self._fingerprint = ""
        self._session = SimpleCookie()
        self._kept: tuple[str, socket.socket] | None = None  # to which url

    def get(self, url: str, path: str, silence: float, headers: Mapping[str, str] | None = None) -> Answer:
        """Return an answer, its body unread; `silence` is the longest wait for a byte. Raises StreamLost, Refused."""
        lines = {"Host": urlsplit(url).netloc, "User-Agent": f"envoy2emon/{__version__}", "Accept": "*/*"}
        if self._session and url.startswith("https"):
            lines["Cookie"] = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in self._session.items())
        lines |= headers or {}
        question = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        response = None
        try:
            if self._kept and self._kept[0] == url:
                # The gateway may close a kept connection; R/D3.18 resets one after its 401 (HA 126162).
                with _in_words(url), suppress(ConnectionError, ssl.SSLError):
                    response = _ask(self._kept[1], question, silence)
            if response is None:
                sock = self._open(url)
                with _in_words(url):
                    response = _ask(sock, question, silence)
        except StreamLost:
            self.close()
            raise
        for cookie in response.headers.get_all("Set-Cookie", ()):
            with suppress(CookieError):
                self._session.load(cookie)
        return Answer(response, url + path, self.close)

    def forget_session(self) -> None:
        """End the gateway's session: the next answer that opens one counts."""
        self._session.clear()

    def close(self) -> None:
        """Close the connection."""
        if self._kept:
            self._kept[1].close()
            self._kept = None

    def _open(self, url: str) -> socket.socket:
        """Connect anew. Raises StreamLost, Refused."""
        self.close()
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        try:
            sock = socket.create_connection((host, parts.port or (443 if secure else 80)), CONNECT_TIMEOUT_S)
        except (socket.gaierror, UnicodeError) as error:
            reason = f"{parts.netloc} is a name that cannot be resolved: is ENVOY_HOST right?"
            raise StreamLost(reason, nobody_there=True) from error
        except ConnectionRefusedError as error:
            raise StreamLost(f"{parts.netloc} refuses the connection", shut=True) from error
        except OSError as error:
            reason = f"{parts.netloc} cannot be reached: is the Envoy on, and ENVOY_HOST right?"
            # A firewall may swallow what goes to one port, and leave the other open.
            raise StreamLost(reason, nobody_there=not isinstance(error, TimeoutError)) from error
        self._kept = url, self._encrypted(sock, host, url) if secure else sock
        return self._kept[1]

    def _encrypted(self, sock: socket.socket, host: str, url: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # every gateway's certificate is self-signed
        try:
            encrypted = context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLError as error:
            raise StreamLost(f"{url} does not speak TLS") from error
        except OSError as error:
            raise StreamLost(f"{url} {_reason(error)}") from error
        found = hashlib.sha256(encrypted.getpeercert(binary_form=True) or b"").hexdigest()
        if found != (self._pin or found):
            encrypted.close()
            raise Refused(
                f"{url} shows another certificate than ENVOY_CERT_SHA256: it was {self._pin}, it is {found}. "
                f"If the Envoy was replaced or updated, set ENVOY_CERT_SHA256={found}"
            )
        if found != self._fingerprint:
            _log.info("Envoy: its certificate has SHA-256 %s", found)
            self._fingerprint = found
        return encrypted


def _ask(sock: socket.socket, question: str, silence: float) -> http.client.HTTPResponse:
    sock.settimeout(silence)
    sock.sendall(f"{question}\r\n".encode())
    response = http.client.HTTPResponse(sock, method="GET")
    try:
        response.begin()
    except BaseException:
        response.close()
        raise
    return response


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Raise StreamLost, in words, for every way in which a connection fails."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise StreamLost(f"{url} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ConnectionError | ssl.SSLError | http.client.IncompleteRead):
        return "closed the connection"
    return f"cannot be read: {error!r}"[:200]
