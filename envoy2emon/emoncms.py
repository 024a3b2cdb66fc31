"""HTTP to EmonCMS: post rows, ask what arrived.

The law of this file: a row counts as posted only when EmonCMS says so in words; HTTP 200 alone says nothing. One
connection is kept; the key travels in a header only. http.client it is, not requests: it tells a connection that was
refused from an answer that got lost, knows neither proxies nor .netrc, and costs half the time.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from envoy2emon import __version__
from envoy2emon.dates import Arrived
from envoy2emon.keepalive import usable
from envoy2emon.settings import Secret

CONNECT_TIMEOUT_S = 10.0
# 100 rows with 36 logged inputs take 1.3 s on a PC and ten times that on a Raspberry Pi.
ANSWER_TIMEOUT_S = 60.0
# `input/get` of a node with 200 inputs is 15 kB.
MAX_ANSWER = 1024 * 1024


class Unavailable(Exception):
    """EmonCMS is away or out of order: keep the rows. `unclear`: the post may have been applied all the same."""

    def __init__(self, reason: str, *, unclear: bool = False) -> None:
        super().__init__(reason)
        self.unclear = unclear


class Dropped(Unavailable):
    """A kept connection was closed as the request went out, which servers do: try again at once."""


class Unauthorized(Exception):
    """EmonCMS does not know the key; the text says what to do."""


class Rejected(Exception):
    """EmonCMS refuses what is in the rows; the text is what it says. Rows before the bad one are applied."""


class EmonCMS:
    """One EmonCMS, by the URL of its base, such as http://emonpi/emoncms, and the write key, or none."""

    def __init__(self, url: str, apikey: Secret | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._clock = clock
        parts = urlsplit(url)
        self._path = parts.path.rstrip("/")
        secure = parts.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = make(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
        self._kept = False  # an answer came over the connection
        form = "Content-Type: application/x-www-form-urlencoded"
        self._head = f"Host: {parts.netloc}\r\nUser-Agent: envoy2emon/{__version__}\r\n{form}\r\n"
        if apikey:
            self._head += f"Authorization: Bearer {apikey.value}\r\n"

    def connect(self) -> None:
        """Make sure of a connection, which takes time if a name has to be resolved. Raises Unavailable."""
        sock = self._connection.sock
        if sock is not None:
            if usable(sock, ANSWER_TIMEOUT_S):
                return
            self._connection.close()  # Apache closes after 5 s of silence and after 100 requests
        self._kept = False
        try:
            self._connection.connect()
        except (OSError, UnicodeError) as error:
            self._connection.close()
            raise Unavailable(f"{self.url} {_reason(error, CONNECT_TIMEOUT_S)}") from error
        self._connection.sock.settimeout(ANSWER_TIMEOUT_S)

    def post(self, form: str) -> None:
        """Post rows to `input/bulk`. Raises Unavailable, Unauthorized, Rejected."""
        _, text = self._exchange("POST", "/input/bulk", form)
        if text in ("ok", '"ok"'):
            return
        answer = _json(text)
        if isinstance(answer, dict) and "success" in answer:
            if answer["success"] is True:
                return
            raise Rejected(str(answer.get("message", text))[:200])
        raise self._not_emoncms(text)

    def inputs(self, node: str) -> Arrived:
        """Ask for the time and value of the node's inputs; none if there is no such node. Raises as post()."""
        asked_at = self._clock()
        response, text = self._exchange("GET", f"/input/get?node={quote(node)}")
        answer = _json(text)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise Unavailable(f"{self.url} does not tell which inputs it has: {answer.get('message')}")
        if answer == "Node does not exist":
            answer = {}
        try:
            inputs = {name: (int(each["time"] or 0), float(each["value"] or 0)) for name, each in answer.items()}
        except (AttributeError, TypeError, KeyError, ValueError):
            raise self._not_emoncms(text) from None
        try:
            date = parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (TypeError, ValueError):
            date = time.time()  # every web server sends a Date
        return Arrived(inputs, date, asked_at, self._clock())

    def version(self) -> str:
        """Ask what it is: a text such as 11.16.8, for which EmonCMS wants no key. Raises as post()."""
        return self._exchange("GET", "/version")[1]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(self, method: str, path: str, form: str = "") -> tuple[http.client.HTTPResponse, str]:
        """Return the answer, its body read, and its text, if the status is 200."""
        body = form.encode()
        # Head and body in one packet: http.client's request() sends two, and builds the same head again: 0.1 ms a post.
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self.connect()
        begun = False
        try:
            self._connection.sock.sendall(head.encode() + body)
            response = http.client.HTTPResponse(self._connection.sock, method=method)
            response.begin()
            begun = True
            text = self._body(response).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if self._kept and not begun and isinstance(error, ConnectionError):  # RemoteDisconnected is one
                raise Dropped("the connection was closed", unclear=True) from error
            raise Unavailable(f"{self.url} {_reason(error, ANSWER_TIMEOUT_S)}", unclear=True) from error
        self._kept = True
        complete = response.isclosed() if response.length is None else response.length == 0
        if response.will_close or not complete:
            self._connection.close()
        self._check(response, text)
        return response, text

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        """Read an answer that is bounded in size and time: a server may drip."""
        body, deadline = b"", self._clock() + ANSWER_TIMEOUT_S
        while len(body) < MAX_ANSWER and (data := response.read1(MAX_ANSWER)):
            body += data
            if self._clock() > deadline:
                raise TimeoutError
        if response.length and len(body) < MAX_ANSWER:
            raise ConnectionResetError  # an answer that was cut says nothing
        return body

    def _check(self, response: http.client.HTTPResponse, text: str) -> None:
        status = response.status
        if status == http.HTTPStatus.OK:
            return
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise Unauthorized(f"{self.url} does not know EMONCMS_APIKEY (401): put the write key into .env")
        if status in (http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, http.HTTPStatus.REQUEST_URI_TOO_LONG):
            raise Rejected(f"{status} {response.reason}")
        if status == http.HTTPStatus.NOT_FOUND:
            raise Unavailable(f"there is no EmonCMS at {self.url} (404): is the path in EMONCMS_URL right?")
        if status < 400 and (target := response.headers["Location"]):  # noqa: PLR2004
            raise Unavailable(f"{self.url} redirects to {target[:200]}: is EMONCMS_URL right?")
        raise Unavailable(f"{self.url} answers {status} {response.reason} {text[:60]}".strip(), unclear=True)

    def _not_emoncms(self, text: str) -> Unavailable:
        if not text:
            reason = "answers nothing, as it does to a read key: is EMONCMS_APIKEY the write key?"
            return Unavailable(f"{self.url} {reason}", unclear=True)  # or its answer was cut
        if text == "false":
            return Unavailable(f"{self.url} knows no input/bulk: is EMONCMS_URL right?")
        return Unavailable(f"{self.url} answers {text[:120]!r}", unclear=True)


def _json(text: str) -> Any:  # noqa: ANN401 - whatever a server answers
    try:
        return json.loads(text)
    except ValueError:
        return text


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
