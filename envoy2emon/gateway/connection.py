"""The connection to the gateway: one at a time, kept where the gateway keeps it.

The law of this file: no redirect is followed, no proxy or .netrc is asked, and whatever goes wrong is StreamLost or
Refused. http.client it is, not requests, which takes 70 ms and 10 MB to import; and the certificate's pin and what went
wrong are seen here at the socket, not read out of another library's texts.
"""

import hashlib
import logging
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from envoy2emon import __version__
from envoy2emon.gateway.answer import Answer, Source, StreamLost, in_words, reason_of
from envoy2emon.keepalive import usable

CONNECT_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class Refused(Exception):
    """The gateway does not let us in: the owner has to do something, which the text says. knocks: as StreamLost's."""

    knocks = 0


class Connection:
    """The way to one gateway; with `pin`, the SHA-256 of its certificate in hex, to that one only.

    opened: how many connections were tried so far, those that were refused included.
    """

    def __init__(self, pin: str | None) -> None:
        self.opened = 0
        self._pin = pin
        self._fingerprint = ""
        self._session = SimpleCookie()
        self._kept: tuple[str, socket.socket] | None = None  # to which url

    def get(self, url: str, path: str, silence: float, headers: Mapping[str, str] | None = None) -> Answer:
        """Return an answer, its body unread; `silence` is the longest wait for more. Raises StreamLost, Refused."""
        lines = {"Host": urlsplit(url).netloc, "User-Agent": f"envoy2emon/{__version__}", "Accept": "*/*"}
        if headers and self._session and url.startswith("https"):  # it alone would let one in
            lines["Cookie"] = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in self._session.items())
        lines |= headers or {}
        question = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        answer = None
        try:
            if self._kept and self._kept[0] == url and usable(self._kept[1], silence):
                # The gateway may close a kept connection; R/D3.18 resets one after its 401 (HA 126162).
                with in_words(url), suppress(ConnectionError, ssl.SSLError):
                    answer = self._ask(self._kept[1], question, url + path, silence)
            if answer is None:
                sock = self._open(url)
                with in_words(url):
                    answer = self._ask(sock, question, url + path, silence)
        except StreamLost:
            self.close()
            raise
        for cookie in answer.headers.get_all("Set-Cookie", ()):
            with suppress(CookieError):
                self._session.load(cookie)
        return answer

    def forget_session(self) -> None:
        """End the gateway's session: the next answer that opens one counts."""
        self._session.clear()

    def close(self) -> None:
        """Close the connection."""
        if self._kept:
            self._kept[1].close()
            self._kept = None

    def _ask(self, sock: socket.socket, question: str, url: str, silence: float) -> Answer:
        sock.settimeout(silence)
        sock.sendall(f"{question}\r\n".encode())
        return Answer(Source(sock, silence), url, self.close)

    def _open(self, url: str) -> socket.socket:
        """Connect anew. Raises StreamLost, Refused."""
        self.close()
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        self.opened += 1
        try:
            sock = socket.create_connection((host, port), CONNECT_TIMEOUT_S, all_errors=True)
        except (socket.gaierror, UnicodeError) as error:
            reason = f"{parts.netloc} is a name that cannot be resolved: is ENVOY_HOST right?"
            raise StreamLost(reason, nobody_there=True) from error
        except ExceptionGroup as group:
            # One error for each of the name's addresses. A firewall may swallow what goes to one port alone.
            if group.subgroup(ConnectionRefusedError):
                raise StreamLost(f"{parts.netloc} refuses the connection", shut=True) from group
            reason = f"{parts.netloc} cannot be reached: is the Envoy on, and ENVOY_HOST right?"
            # Somebody is there who resets what was connected, and perhaps before we saw that it was.
            raise StreamLost(reason, nobody_there=not group.subgroup((TimeoutError, ConnectionResetError))) from group
        except OSError as error:  # EAI_SYSTEM: EBUSY (synapse 6190), EMFILE
            reason = f"{parts.netloc} cannot be looked up ({error.strerror or error})"
            raise StreamLost(reason, nobody_there=True) from error
        self._kept = url, self._encrypted(sock, host, url) if secure else sock
        return self._kept[1]

    def _encrypted(self, sock: socket.socket, host: str, url: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # every gateway's certificate is self-signed
        encrypted = None
        try:
            encrypted = context.wrap_socket(sock, server_hostname=host)
            # A connection that was ended and reset is wrapped without a handshake: here is where that shows.
            found = hashlib.sha256(encrypted.getpeercert(binary_form=True) or b"").hexdigest()
        except OSError as error:
            (encrypted or sock).close()
            strange = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
            raise StreamLost(f"{url} {'does not speak TLS' if strange else reason_of(error)}") from error
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
