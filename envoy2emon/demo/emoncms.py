"""A stand-in for EmonCMS: its input API over real HTTP, and the ways in which it fails, for the tests and `demo`.

The law of this file: it answers as EmonCMS 11.16.8 answered when measured, or as its index.php reads where a comment
says so; and it fails only when told to.
"""

import json
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from envoy2emon.demo.account import Account, parameters

_POSTS = {"input/bulk", "input/post"}
# index.php answers these two to anyone without a key, but looks at a key first if there is one. The home page tells
# nothing: HTML to log in, or a redirection.
_FREE = {"version": "11.16.8", "describe": "emoncms"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What a post meets: `applied` rows go in (None: all), then comes the answer (status, body), a cut or silence.

    Silence lasts until `release()`; then what is not applied is applied and answered, whether its sender waits or not.
    """

    answer: tuple[int, str] | Literal["cut", "hang"]
    applied: int | None = 0


class StandInEmonCMS:
    """EmonCMS at `url` while the `with` lasts, with one account. The attributes may be set at any time.

    idle_timeout: seconds after which a silent connection is closed; max_requests: after how many any connection is.
    clock_offset: seconds that the server's clock is ahead. fault: what every request meets, None for none.
    """

    def __init__(self, key: str = "writekey", read_key: str = "readkey", keep: int | None = None) -> None:
        self.key, self.read_key = key, read_key
        self.account = Account(keep)
        self.rows = self.account.rows
        self.idle_timeout = 5.0  # Apache's KeepAliveTimeout; its MaxKeepAliveRequests is 100
        self.max_requests: int | None = None
        self.clock_offset = 0.0
        self.fault: Fault | None = None
        self.connections = self.requests = 0
        self._next: deque[Fault] = deque()
        self._releases = 0
        self._changed = Condition()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), partial(_Connection, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/emoncms"

    def __enter__(self) -> Self:
        """Serve."""
        Thread(target=self._server.serve_forever, args=(0.02,), name="stand-in", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, release what hangs and cut what is open."""
        self._server.shutdown()
        self._server.server_close()
        self.release()
        with self._changed:
            for connection in self._open:
                with suppress(OSError):  # its client has reset it
                    connection.shutdown(socket.SHUT_RDWR)

    def fail_next(self, *faults: Fault) -> None:
        """Let the next posts meet these, one each; other requests are answered."""
        self._next.extend(faults)

    def release(self) -> None:
        """End the silence of every request that hangs now."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as the predicate holds, looked at with every change; TimeoutError after `timeout` s."""
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

    def answer(self, path: str, params: Mapping[str, str], key: str) -> tuple[int, str] | None:
        """Return status and body for one request, None to cut its connection."""
        action = path.removeprefix("/emoncms/").removesuffix(".json")
        posts = action in _POSTS and key == self.key
        fault = self._next.popleft() if posts and self._next else self.fault
        if fault:
            words = self._apply(action, params, fault.applied) if posts and fault.applied != 0 else None
            if fault.answer == "cut":
                return None
            if fault.answer != "hang":
                return fault.answer
            with self._changed:
                releases = self._releases
                self._changed.wait_for(lambda: self._releases > releases)
            if words:
                return 200, words
        if action == path:
            return 404, "<h1>Not Found</h1>"
        if key and key not in {self.key, self.read_key}:
            return 401, "Invalid API key"
        return 200, self._words(action, params, key)

    def _words(self, action: str, params: Mapping[str, str], key: str) -> str:
        if action in _FREE:
            return _FREE[action]
        if action in _POSTS:
            return self._apply(action, params, None) if key == self.key else ""
        with self._changed:
            return json.dumps(self.account.show(action, params) if key else False)

    def _apply(self, action: str, params: Mapping[str, str], limit: int | None) -> str:
        with self._changed:
            words = self.account.apply(action, params, int(self.now()), limit)
            self._changed.notify_all()
            return words


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):  # a client that left is no news
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    disable_nagle_algorithm = True

    def __init__(self, emoncms: StandInEmonCMS, *args: Any) -> None:  # noqa: ANN401
        self.emoncms, self.served = emoncms, 0
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.emoncms.idle_timeout)
        self.emoncms.note(self.connection, "opened")

    def finish(self) -> None:
        self.emoncms.note(self.connection, "closed")
        super().finish()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.emoncms.now() if timestamp is None else timestamp)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.emoncms.note(self.connection, "request")
        target = urlsplit(self.path)
        headers = self.headers.get("Content-Type", ""), self.headers.get("Authorization", "")
        answer = self.emoncms.answer(target.path, *parameters(target.query, body, *headers))
        self.served += 1
        self.close_connection |= answer is None or self.served == self.emoncms.max_requests
        if answer:
            status, text = answer
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if text.startswith("<") else "text/plain")
            self.send_header("Content-Length", str(len(text.encode())))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815 - named by BaseHTTPRequestHandler
