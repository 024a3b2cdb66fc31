"""How both neighbours are asked over HTTP: a requests session, bounded answers, and what went wrong in words.

Whatever requests, urllib3 and the modules below them raise becomes Failed here, told by their classes.
"""

import hashlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    IncompleteRead,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
)

from envoy2emon import __version__

# `input/get` of a node with 200 inputs is 15 kB, 51 inverters are 10 kB.
MOST_BYTES = 1024 * 1024
CONNECT_S = 10.0

_SLOW, _TLS = "does not answer in time", "does not speak TLS as it should"
_NO_HTTP = "answers with something that is not HTTP"
_NO_NAME = "has a name that cannot be resolved"
_UNTRUSTED = "has a certificate that this computer does not trust"
_OTHER = "has a certificate other than the one that is set"
# The first that fits one of an error's causes says what happened.
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
    ((ConnectionError, IncompleteRead, http.client.IncompleteRead), "closed the connection"),
    ((http.client.HTTPException,), _NO_HTTP),
    ((ProtocolError,), "closed the connection"),
)


class Failed(Exception):
    """A request that got no whole answer; the text goes behind the name of who was asked: "closed the connection"."""


class NoName(Failed):
    """There is no such name, or none that could be looked up."""


class Untrusted(Failed):
    """TLS did not come about: perhaps because of the certificate."""


class _Session(requests.Session):
    """Follows no redirect: requests would read its body to the end, however long, to know where it leads."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - as Session has it
        return None


class _Adapter(HTTPAdapter):
    """One server's connections: `pin` is the SHA-256 of the only certificate that is accepted, in hex."""

    def __init__(self, pin: str | None, *, trust: bool) -> None:
        self._pin, self._trust = pin, trust
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as HTTPAdapter has it
        if self._pin or self._trust:
            kwargs |= {"ssl_context": _any_certificate(), "assert_hostname": False, "assert_fingerprint": self._pin}
        else:
            kwargs["ssl_context"] = ssl.create_default_context()  # the system's certificates, not certifi's alone
        super().init_poolmanager(*args, **kwargs)


def session(url: str, pin: str | None = None, *, trust: bool = False, cookies: bool = False) -> requests.Session:
    """Make a session for the server of `url`, which follows no redirect and asks no proxy, .netrc or environment.

    pin: accept only the certificate with this SHA-256. trust: accept any certificate if there is no pin. cookies: keep
    them.
    """
    made = _Session()
    made.trust_env = False
    made.verify = not (pin or trust)
    if url.startswith("https:"):  # the system's certificates take 30 ms and 6 MB
        made.mount("https://", _Adapter(pin, trust=trust))
    if trust:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    # Nothing compressed: a bomb of 1 MiB would unpack to 1 GiB.
    made.headers.update({"User-Agent": f"envoy2emon/{__version__}", "Accept-Encoding": "identity"})
    if not cookies:
        made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return made


def body(response: requests.Response, most: int = MOST_BYTES) -> str:
    """Read the body of a response that was asked for with stream=True; to be called within in_words().

    The connection is kept for the next request if the body was read to its end. Raises Failed if it has more than
    `most` bytes.
    """
    content = b""
    with response:
        # The last read, of nothing, is the one that notices a body that was cut.
        while len(content) <= most and (data := response.raw.read(most + 1, decode_content=False)):
            content += data
    if len(content) > most:
        raise Failed("answers without end")
    return content.decode(errors="replace")


@contextmanager
def in_words(seconds: float = 0.0) -> Iterator[None]:
    """Raise Failed for every way in which a request can fail; `seconds` is the longest wait for an answer."""
    try:
        yield
    except Failed:
        raise
    # Beside its own exceptions requests lets through what a neighbour's head makes the modules below it raise:
    # ValueError, HTTPException, and for `Content-Type: text/html; charset` an AttributeError (2.32.3).
    except Exception as error:
        words = _words(error, seconds)
        kind = NoName if words == _NO_NAME else Untrusted if words in (_TLS, _UNTRUSTED, _OTHER) else Failed
        raise kind(words) from error


def fingerprint(url: str) -> str:
    """Return the SHA-256 of the certificate that the server of an https URL shows, in hex. Raises Failed."""
    parts = urlsplit(url)
    with (
        in_words(),
        socket.create_connection((parts.hostname or "", parts.port or 443), CONNECT_S) as plain,
        _any_certificate().wrap_socket(plain, server_hostname=parts.hostname) as encrypted,
    ):
        return hashlib.sha256(encrypted.getpeercert(binary_form=True) or b"").hexdigest()


def shown_fingerprint(response: requests.Response) -> str:
    """Return the SHA-256 of the certificate behind a response whose body is unread, "" if it is not known any more."""
    encrypted = getattr(response.raw.connection, "sock", None)
    certificate = encrypted.getpeercert(binary_form=True) if isinstance(encrypted, ssl.SSLSocket) else None
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def _any_certificate() -> ssl.SSLContext:
    """Make a context that verifies nothing; urllib3's own would load all of the system's certificates (25 ms)."""
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
    """Go through an error and all that it was made from: by `raise from`, as an argument or as urllib3's `reason`."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and not any(cause is one for one in seen):
            seen.append(cause)
            yield cause
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
