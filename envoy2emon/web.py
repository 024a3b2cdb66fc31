"""HTTP requests: a session, answers of bounded size, and failures in words.

Whatever requests, urllib3 and the modules below them raise becomes Failed here, worded by the exceptions' classes.
"""

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
)

from envoy2emon import __version__

# An `input/get` of a node with 200 inputs is 15 kB, the list of 51 inverters 10 kB.
MOST_BYTES = 1024 * 1024
CONNECT_S = 10.0

_SLOW, _TLS = "does not answer in time", "does not speak TLS as it should"
_NO_HTTP = "answers with something that is not HTTP"
_NO_NAME = "has a name that cannot be resolved"
_UNTRUSTED = "has a certificate that this computer does not trust"
_OTHER = "has a certificate other than the one set in .env (CERT_SHA256)"
# The first entry that matches one of an error's causes supplies the words.
_WORDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (NameResolutionError, LocationParseError, requests.exceptions.InvalidURL, UnicodeError, socket.gaierror),
        _NO_NAME,
    ),
    ((ConnectionRefusedError,), "refuses the connection"),
    ((ConnectTimeoutError, requests.ConnectTimeout), "does not answer"),
    ((urllib3.exceptions.TimeoutError, requests.Timeout, TimeoutError), _SLOW),
    ((ssl.SSLCertVerificationError,), _UNTRUSTED),
    ((urllib3.exceptions.SSLError, requests.exceptions.SSLError, ssl.SSLError), _TLS),
    ((NewConnectionError,), "cannot be reached"),
    ((ConnectionError,), "closed the connection"),
    # What else is wrong with a head comes as requests' ConnectionError, with a body as urllib3's ProtocolError alone.
    ((requests.ConnectionError,), _NO_HTTP),
    ((ProtocolError,), "closed the connection"),
)


class Failed(Exception):
    """A request that got no complete answer; the text, such as "closed the connection", follows the server's name."""


class NoName(Failed):
    """The server's name does not exist, or could not be resolved."""


class Untrusted(Failed):
    """TLS could not be established, perhaps because of the certificate."""


class _Session(requests.Session):
    """Follows no redirect, because requests would first read the redirect's body to the end, however long it is."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - Session's signature
        return None


class _Adapter(HTTPAdapter):
    """The connections to one server; `pin` is the SHA-256, in hex, of the only certificate to accept."""

    def __init__(self, pin: str | None, *, trust: bool) -> None:
        self._pin, self._trust = pin, trust
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - HTTPAdapter's signature
        if self._pin or self._trust:
            kwargs |= {"ssl_context": _any_certificate(), "assert_hostname": False, "assert_fingerprint": self._pin}
        else:
            kwargs["ssl_context"] = ssl.create_default_context()  # the system's certificates, not only certifi's
        super().init_poolmanager(*args, **kwargs)


def session(url: str, pin: str | None = None, *, trust: bool = False) -> requests.Session:
    """Return a session for the server of `url` that follows no redirect and uses no proxy, .netrc or environment.

    pin: accept only the certificate with this SHA-256. trust: accept any certificate if there is no pin.
    """
    made = _Session()
    made.trust_env = False
    made.verify = not (pin or trust)
    if url.startswith("https:"):  # loading the system's certificates takes 30 ms and 6 MB
        made.mount("https://", _Adapter(pin, trust=trust))
    if trust:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    # No compression, because a malicious 1 MiB would unpack to 1 GiB.
    made.headers.update({"User-Agent": f"envoy2emon/{__version__}", "Accept-Encoding": "identity"})
    return made


def body(response: requests.Response, most: int = MOST_BYTES) -> str:
    """Return the body of a response to a request with stream=True; call it within raising_failed().

    The connection is kept for the next request if the body is read to its end. Raises Failed for a body of more than
    `most` bytes.
    """
    content = b""
    with response:
        # Read until nothing comes, because only that last read notices a truncated body.
        while len(content) <= most and (data := response.raw.read(most + 1, decode_content=False)):
            content += data
    if len(content) > most:
        raise Failed("answers without end")
    return content.decode(errors="replace")


@contextmanager
def raising_failed(seconds: float = 0.0) -> Iterator[None]:
    """Turn any exception of a request into Failed; if too slow, its text names `seconds`, the longest wait."""
    try:
        yield
    except Failed:
        raise
    # Besides its own exceptions, requests lets through what a server's headers make the modules below it raise:
    # ValueError, HTTPException, and for `Content-Type: text/html; charset` an AttributeError (2.32.3).
    except Exception as error:
        words = _words(error, seconds)
        kind = NoName if words == _NO_NAME else Untrusted if words in (_TLS, _UNTRUSTED, _OTHER) else Failed
        raise kind(words) from error


def fingerprint(url: str) -> str:
    """Return the SHA-256, in hex, of the certificate that the server of an https URL presents. Raises Failed."""
    parts = urlsplit(url)
    with (
        raising_failed(),
        socket.create_connection((parts.hostname or "", parts.port or 443), CONNECT_S) as plain,
        _any_certificate().wrap_socket(plain, server_hostname=parts.hostname) as encrypted,
    ):
        return hashlib.sha256(encrypted.getpeercert(binary_form=True) or b"").hexdigest()


def shown_fingerprint(response: requests.Response) -> str:
    """Return the SHA-256, in hex, of the certificate behind a response with unread body; "" if none is known."""
    encrypted = getattr(response.raw.connection, "sock", None)
    certificate = encrypted.getpeercert(binary_form=True) if isinstance(encrypted, ssl.SSLSocket) else None
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def _any_certificate() -> ssl.SSLContext:
    """Return a context that verifies nothing; urllib3's own would load all of the system's certificates (25 ms)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _words(error: Exception, seconds: float) -> str:
    causes = list(_causes(error))
    words = next((words for kinds, words in _WORDS if any(isinstance(cause, kinds) for cause in causes)), "")
    if words == _SLOW and seconds:
        return f"does not answer within {seconds:.0f} s"
    if words == _TLS and any("ingerprint" in str(cause) for cause in causes):
        return _OTHER
    return words or _NO_HTTP


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes: __cause__, __context__, urllib3's `reason`, and exceptions among its args."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and not any(cause is one for one in seen):
            seen.append(cause)
            yield cause
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
