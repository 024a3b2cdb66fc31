"""One HTTP session with the gateway: bounded in time and size, its failures in words.

The law of this file: no redirect is followed, no proxy or .netrc is asked, and whatever goes wrong is StreamLost or
Refused.
"""

import hashlib
import logging
import re
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0
# 51 inverters are 8 kB.
MAX_ANSWER = 1024 * 1024
_CHUNK = 65536

T = TypeVar("T")
_log = logging.getLogger(__name__)
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # every gateway's certificate is self-signed


class StreamLost(Exception):
    """The gateway is away, slow or broke off: try again soon.

    nobody_there: no connection came about; cut: one did, and the gateway closed it.
    """

    def __init__(self, reason: str, *, nobody_there: bool = False, cut: bool = False) -> None:
        super().__init__(reason)
        self.nobody_there = nobody_there
        self.cut = cut


class Refused(Exception):
    """The gateway does not let us in: the owner has to do something, which the text says."""


class Connection:
    """A requests session for one gateway; with `pin`, the SHA-256 of its certificate in hex, for that one only."""

    def __init__(self, pin: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.fingerprint = ""
        self._pin = pin
        self._clock = clock
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = False
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.mount("https://", _PinnedAdapter(pin))

    def get(self, url: str, path: str, silence: float, **how: Any) -> requests.Response:  # noqa: ANN401
        """Return an answer, its body unread; `silence` is the longest wait for a byte. Raises StreamLost, Refused."""

        def get() -> requests.Response:
            timeout = (CONNECT_TIMEOUT_S, silence)
            return self._session.get(url + path, timeout=timeout, allow_redirects=False, stream=True, **how)

        try:
            return _translate(get, url)
        except StreamLost as lost:
            changed = re.search(r'Fingerprints did not match.*got "(\w+)"', str(lost.__cause__))
            if not changed:
                raise
            new = changed[1]
            raise Refused(
                f"{url} shows another certificate than ENVOY_CERT_SHA256: it was {self._pin}, it is {new}. "
                f"If the Envoy was replaced or updated, set ENVOY_CERT_SHA256={new}"
            ) from None

    def read(self, response: requests.Response) -> str:
        """Return a bounded body, read in bounded time, whatever its Content-Type."""
        body, deadline = b"", self._clock() + ANSWER_TIMEOUT_S
        while chunk := _translate(lambda: response.raw.read1(_CHUNK), response.url):
            body += chunk
            if len(body) > MAX_ANSWER or self._clock() > deadline:
                raise StreamLost(f"{response.url} answers without end")
        return body.decode(errors="replace")

    def chunk(self, response: requests.Response) -> bytes:
        """Return the next bytes as soon as there are any, b"" at the end: read1 alone is prompt for every framing."""
        return _translate(lambda: response.raw.read1(_CHUNK), response.url)

    def forget_cookies(self) -> None:
        """End the gateway's session."""
        self._session.cookies.clear()

    def note_certificate(self, response: requests.Response) -> None:
        """Log the SHA-256 of the certificate behind an answer whose body is unread, when it is a new one."""
        sock = getattr(response.raw.connection, "sock", None)
        if isinstance(sock, ssl.SSLSocket) and (certificate := sock.getpeercert(binary_form=True)):
            fingerprint = hashlib.sha256(certificate).hexdigest()
            if fingerprint != self.fingerprint:
                _log.info("Envoy: its certificate has SHA-256 %s", fingerprint)
            self.fingerprint = fingerprint


class _PinnedAdapter(HTTPAdapter):
    """Accepts one certificate by its SHA-256, or any if `pin` is None."""

    def __init__(self, pin: str | None) -> None:
        self._pin = pin
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*args, assert_fingerprint=self._pin, **kwargs)


def _translate(call: Callable[[], T], url: str) -> T:
    """Call, and raise StreamLost in words for every way in which a connection fails."""
    try:
        return call()
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        text = str(error)
        nobody_there = cut = False
        if "Failed to resolve" in text:
            reason, nobody_there = "is a name that cannot be resolved: is ENVOY_HOST right?", True
        elif "onnection refused" in text:
            reason, nobody_there = "refuses the connection", True
        elif isinstance(error, requests.exceptions.ConnectTimeout) or "No route" in text or "unreachable" in text:
            reason, nobody_there = "cannot be reached: is the Envoy on, and ENVOY_HOST right?", True
        elif isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in text:
            reason = "does not answer in time"
        elif isinstance(error, requests.exceptions.SSLError):
            reason = "does not speak TLS"
        elif isinstance(error, ConnectionError) or "onnection aborted" in text or "onnection broken" in text:
            reason, cut = "closed the connection", True
        else:
            reason = f"cannot be read: {text[:200]}"
        # Nobody is there for https or http alike: both are named by the host alone.
        where = urlsplit(url).netloc if nobody_there else url
        raise StreamLost(f"{where} {reason}", nobody_there=nobody_there, cut=cut) from error
