"""A stand-in for EmonCMS: its input API over real HTTP, and the ways in which it fails, for the tests and `demo`.

It answers as EmonCMS 11.16.8 answered when measured or, where a comment says so, as its index.php reads. It fails only
on request.
"""

import json
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from envoy2emon.demo.account import Account, parameters

_POSTS = {"input/bulk", "input/post"}
# index.php gives it to anyone without a key, but checks the key first if there is one.
_VERSION = "11.16.8"
_LOGIN_PAGE = '<!DOCTYPE html>\n<html><body><form id="loginform">Username: Password:</form></body></html>'


@dataclass(frozen=True, slots=True)
class Answers:
    """This many rows of a post are applied (None: all), and then this answer is sent."""

    status: int
    body: str = ""
    applied: int | None = 0


@dataclass(frozen=True, slots=True)
class Cuts:
    """This many rows of a post are applied (None: all), and then the connection ends without an answer."""

    applied: int | None = 0


@dataclass(frozen=True, slots=True)
class Dies:
    """PHP dies in this row of a post (0: the first): its inputs are set, but no process runs. nginx answers 502."""

    row: int = 0


@dataclass(frozen=True, slots=True)
class HoldsUp:
    """php-fpm hangs, so a request waits for `seconds` (None: for ever) or until release().

    It is then applied by the clock of that moment, whether or not its sender still waits.
    """

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AnswersLate:
    """A request is applied at once, but its answer is held until release()."""


@dataclass(frozen=True, slots=True)
class DropsAuthorization:
    """A reverse proxy passes on everything but the Authorization header."""


@dataclass(frozen=True, slots=True)
class RedirectsToHttps:
    """A reverse proxy redirects each request to the same path at `base`, on https."""

    base: str = "https://127.0.0.1"


Failure = Answers | Cuts | Dies | HoldsUp | AnswersLate | DropsAuthorization | RedirectsToHttps
PHP_DOWN = Answers(502, "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>\r\n")
MARIADB_DOWN = Answers(
    200,
    "<br />\n<b>Fatal error</b>:  Uncaught mysqli_sql_exception: Connection refused in /var/www/emoncms/index.php:75\n"
    "Stack trace:\n#0 /var/www/emoncms/index.php(75): mysqli-&gt;__construct()\n#1 {main}\n  thrown in "
    "<b>/var/www/emoncms/index.php</b> on line <b>75</b><br />\n",
)
REDIS_DOWN = Answers(200, MARIADB_DOWN.body.replace("mysqli_sql_exception", "RedisException"))


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    body: str
    location: str = ""


class StandInEmonCMS:
    """EmonCMS with one account, served at `url` within the `with` block. The attributes may be set at any time.

    idle_timeout: seconds after which a silent connection is closed. max_requests: requests after which any connection
    is closed. clock_offset: seconds by which the server's clock is ahead of this computer's. fault: what every request
    meets, None for none; next_faults: what the next posts meet instead, one each. keep: how many rows are kept, None
    for all. tls: the certificate's context; with it, `url` is https.
    """

    def __init__(self, keep: int | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.key, self.read_key, self.tls = "writekey", "readkey", tls
        self.account = Account(keep)
        self.rows = self.account.rows
        self.idle_timeout = 5.0  # Apache's KeepAliveTimeout; its MaxKeepAliveRequests is 100
        self.max_requests: int | None = None
        self.clock_offset = 0.0
        self.fault: Failure | None = None
        self.connections = self.requests = 0
        self.next_faults: deque[Failure] = deque()
        self._releases = 0
        self._changed = Condition()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), partial(_Connection, self))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/emoncms"

    def __enter__(self) -> Self:
        """Serve."""
        Thread(target=self._server.serve_forever, args=(0.02,), name="stand-in", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, release held requests and cut open connections."""
        self._server.shutdown()
        self._server.server_close()
        self.release()
        with self._changed:
            for connection in self._open:
                with suppress(OSError):  # its client has reset it
                    connection.shutdown(socket.SHUT_RDWR)

    def settings(self) -> dict[str, str]:
        """Return the settings of a daemon that posts to this EmonCMS."""
        return {"EMONCMS_URL": self.url, "EMONCMS_APIKEY": self.key}

    def fail_next(self, *faults: Failure) -> None:
        """Let the next posts meet these faults, one each; other requests do not meet them."""
        self.next_faults.extend(faults)

    def release(self) -> None:
        """Let every request that is held now go on."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as the predicate, checked at every change, holds. Raises TimeoutError after `timeout` s."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                counts = f"{self.account.applied} rows, {self.requests} requests, {self.connections} connections"
                raise TimeoutError(f"after {timeout} s: {counts}")

    def now(self) -> float:
        """Return the server's clock, epoch s."""
        return time.time() + self.clock_offset

    def note(self, connection: socket.socket, event: Literal["opened", "request", "closed"]) -> None:
        """Count connections and requests."""
        with self._changed:
            self.connections += event == "opened"
            self.requests += event == "request"
            (self._open.discard if event == "closed" else self._open.add)(connection)
            self._changed.notify_all()

    def answer(self, target: str, body: bytes = b"", content_type: str = "", authorization: str = "") -> Answer | None:
        """Return the answer to one request, None to cut its connection."""
        url = urlsplit(target)
        params, key = parameters(url.query, body, content_type, authorization)
        posts = url.path.removeprefix("/emoncms/").removesuffix(".json") in _POSTS and key == self.key
        with self._changed:  # from here on, a release() releases this request too
            fault = self.next_faults.popleft() if posts and self.next_faults else self.fault
            releases = self._releases
        match fault:
            case RedirectsToHttps(base):
                return Answer(301, "", base + target)
            case DropsAuthorization():
                params, key = parameters(url.query, body, content_type, "")
            case HoldsUp(seconds):
                self._hold(seconds, releases)
            case Answers() | Cuts() | Dies():
                if posts:
                    most = fault.row if isinstance(fault, Dies) else fault.applied
                    self._answer(url.path, params, key, most, halfway=isinstance(fault, Dies))
                if isinstance(fault, Cuts):
                    return None
                shown = PHP_DOWN if isinstance(fault, Dies) else fault
                return Answer(shown.status, shown.body)
        answer = self._answer(url.path, params, key)
        if isinstance(fault, AnswersLate):
            self._hold(None, releases)
        return answer

    def _hold(self, seconds: float | None, releases: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._releases > releases, seconds)

    def _answer(
        self, path: str, params: dict[str, str], key: str, most: int | None = None, *, halfway: bool = False
    ) -> Answer:
        action = path.removeprefix("/emoncms/").removesuffix(".json")
        if action == path:
            return Answer(404, "<h1>Not Found</h1>")
        if key and key not in {self.key, self.read_key}:
            return Answer(401, "Invalid API key")
        if action == "version":
            return Answer(200, _VERSION)
        with self._changed:
            if action in _POSTS:
                words = ""
                if key == self.key:
                    words = self.account.apply(action, params, int(self.now()), most, halfway=halfway)
                    self._changed.notify_all()
            elif key:
                words = json.dumps(self.account.show(action, params))
            else:  # the format is html unless the path names one
                words = "false" if path.endswith(".json") else _LOGIN_PAGE
        return Answer(200, words)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):  # a client may leave at any time
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send an answer in one piece
    disable_nagle_algorithm = True

    def __init__(self, emoncms: StandInEmonCMS, *args: Any) -> None:  # noqa: ANN401
        self.emoncms, self.served = emoncms, 0
        super().__init__(*args)

    def setup(self) -> None:
        self.request.settimeout(self.emoncms.idle_timeout)
        if self.emoncms.tls:
            self.request = self.emoncms.tls.wrap_socket(self.request, server_side=True)
        super().setup()
        self.emoncms.note(self.connection, "opened")

    def finish(self) -> None:
        self.emoncms.note(self.connection, "closed")
        super().finish()
        if self.emoncms.tls:
            self.connection.close()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.emoncms.now() if timestamp is None else timestamp)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.emoncms.note(self.connection, "request")
        headers = self.headers.get("Content-Type", ""), self.headers.get("Authorization", "")
        answer = self.emoncms.answer(self.path, body, *headers)
        self.served += 1
        self.close_connection |= answer is None or self.served == self.emoncms.max_requests
        if answer:
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/html" if answer.body.startswith("<") else "text/plain")
            self.send_header("Content-Length", str(len(answer.body.encode())))
            if answer.location:
                self.send_header("Location", answer.location)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.body.encode())

    do_POST = do_GET  # noqa: N815 - named by BaseHTTPRequestHandler
