"""A simulated gateway on a real socket, for the tests and for `envoy2emon demo`.

It answers as the gateways on record do (Matthew1471/Enphase-API, pyenphase, vincentwolsink's integration), according to
the firmware that it has at that moment. It has one port: HTTP below firmware 7, TLS from 7 on. It simulates no network
faults, because a gateway does not cause those.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from email.message import Message
from queue import SimpleQueue
from typing import Any, Self

from envoy2emon.demo import site
from envoy2emon.demo.logins import INVERTERS, STREAM, DigestLogin, TokenLogin, make_token
from envoy2emon.demo.port import Answer, Port, Request

__all__ = ["Answer", "Request", "SimulatedEnvoy", "make_token"]

CHECK_JWT, METERS, REPORTS = "/auth/check_jwt", "/ivp/meters", "/ivp/meters/reports/"
# It is not on record what R3.9.36 sends in place of a challenge, only that it cannot be parsed as one.
GARBAGE = "\xfe\xac?\xff"
REFUSED = Answer(401, "<html><head><title>401 Authorization Required</title></head></html>\r\n")


@dataclass(eq=False)
class SimulatedEnvoy:
    """A gateway at `host` from start() to stop(), on the same port after a restart. Its fields may be set at any time.

    password: the installer's, firmware < 7. tls: the certificate's context, needed from firmware 7 on.
    chunked: whether the stream is chunked; if not, the connection's end delimits it. newline: the stream's line ends.
    event: the meters' values, in the stream's format. source: called for the next event every `interval` seconds.
    inverters, reports, meters: what these endpoints answer; a str is sent as it is, anything else as JSON. Each event
    of the source replaces the reports. meters None: those of the reports, all enabled (site.meters can disable some).
    answers: answers by path that replace all others, before any authentication.
    metered: whether there are meters, and with them a stream; None: from firmware 4 on.
    redirects: whether plain HTTP gets a 301 from firmware 7 on; if not, it gets no answer.
    reset_after_401: keep the connection after a 401 and reset it when the next request comes, as R/D3.18 does.
    """

    firmware: str = "D5.0.62"
    serial: str = "122112345678"
    _: KW_ONLY
    password: str = "installer-password"  # noqa: S105 - guards nothing
    tls: ssl.SSLContext | None = None
    address: tuple[str, int] = ("127.0.0.1", 0)
    chunked: bool = True
    newline: str = "\n"
    event: str = site.THREE_PHASE_EVENT
    source: Callable[[], str] | None = None
    interval: float = 1.0
    inverters: Any = None
    reports: Any = None
    meters: Any = None
    answers: dict[str, Answer] = field(default_factory=dict)
    metered: bool | None = None
    redirects: bool = False
    reset_after_401: bool = False
    digest: DigestLogin = field(default_factory=DigestLogin, init=False)
    tokens: TokenLogin = field(default_factory=TokenLogin, init=False)
    requests: list[Request] = field(default_factory=list, init=False)
    connections: int = field(default=0, init=False)  # that have come in so far, including those that were refused
    streams: list[SimpleQueue[bytes | None]] = field(default_factory=list, init=False)
    open_connections: set[socket.socket] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Set the defaults: twelve inverters, and the reports of the event."""
        now = int(time.time())
        self.inverters = site.inverters(12, now) if self.inverters is None else self.inverters
        self.reports = site.reports(self.event, now) if self.reports is None else self.reports
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Listen, and send the source's events if there is a source."""
        self._port, self._stopped = Port(self), threading.Event()
        self.address = self.address[0], self._port.server_address[1]
        threading.Thread(target=self._port.serve_forever, args=(0.02,), name="simulated gateway", daemon=True).start()
        threading.Thread(target=self._tick, args=(self._stopped,), name="simulated meters", daemon=True).start()

    def stop(self) -> None:
        """Close the port and cut every connection, as a gateway does that loses power."""
        self._stopped.set()
        self._port.shutdown()
        self._port.server_close()
        self._cut()

    def upgrade(self, firmware: str) -> None:
        """Change the firmware as Enphase does, without asking; the restart ends all connections and sessions."""
        self.firmware = firmware
        self.tokens.end_sessions()
        self._cut()

    @property
    def host(self) -> str:
        """The address as a client's setting: HOST:PORT."""
        return f"{self.address[0]}:{self.address[1]}"

    def settings(self) -> dict[str, str]:
        """Return the settings of a daemon that reads this gateway."""
        return {"ENVOY_HOST": self.host, "ENVOY_PASSWORD": self.password}

    @property
    def open_streams(self) -> int:
        """How many clients read the stream now."""
        return len(self.streams)

    @property
    def token_based(self) -> bool:
        """Whether the firmware is 7 or later."""
        return site.version(self.firmware) >= (7,)

    def emit(self, event: str) -> None:
        """Send one event, given as its JSON text, to every open stream."""
        self.emit_raw(f"data: {event}{self.newline * 2}".encode())

    def emit_raw(self, data: bytes | None) -> None:
        """Send bytes to every open stream: bursts, halves of events, garbage. One call is one HTTP chunk."""
        with self._changed:
            for stream in self.streams:
                stream.put(data)

    def end_streams(self) -> None:
        """End every open stream in good order."""
        self.emit_raw(None)

    def note(self, change: Callable[[], object]) -> None:
        """Run `change`, which changes a list, and wake the callers of wait_for()."""
        with self._changed:
            change()
            self._changed.notify_all()

    def count_connection(self) -> None:
        """Count a connection; to be called by note()."""
        self.connections += 1

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as the predicate, checked at every change, holds. Raises TimeoutError after `timeout` s."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise TimeoutError(f"after {timeout} s: {len(self.streams)} streams, requests {self.requests[-5:]}")

    def wait_for_stream(self, timeout: float = 10.0) -> None:
        """Return as soon as a stream is open. Raises TimeoutError after `timeout` s."""
        self.wait_for(lambda: self.open_streams > 0, timeout)

    def respond(self, target: str, headers: Message, *, encrypted: bool) -> tuple[str | None, Answer]:
        """Return the user who sent a GET, None if nobody was recognised, and the answer to it."""
        path = target.partition("?")[0]
        if answer := self._public(path, encrypted=encrypted):
            return None, answer
        authorization, cookie = headers.get("Authorization", ""), headers.get("Cookie", "")
        if self.token_based:
            user, refusal = self.tokens.user(authorization, cookie, self.serial), REFUSED
            may_read = user and self.tokens.may_read(user, path, site.version(self.firmware))
        else:
            user = self.digest.user(authorization, target, {"installer": self.password, "envoy": self.serial[-6:]})
            may_read = user and self.digest.may_read(user, path)
            garbage = self.firmware.startswith("R3.") and authorization and not user
            challenge = GARBAGE if garbage else self.digest.challenge()
            refusal = REFUSED._replace(headers={"WWW-Authenticate": challenge})
        if not user or not may_read:
            return user, refusal
        if path == STREAM:
            return user, Answer(200, None, "text/event-stream")
        if path == CHECK_JWT:
            return user, self._session(user, cookie)
        content = self._contents()[path]
        # Recorded answers below /ivp/meters have no Content-Type (pyenphase, 5.0.62 and 7.3.130).
        content_type = None if path.startswith("/ivp/") else "application/json"
        return user, Answer(200, content if isinstance(content, str) else json.dumps(content), content_type)

    def _public(self, path: str, *, encrypted: bool) -> Answer | None:
        if self.token_based and not encrypted:
            return Answer(301, headers={"Location": "https://localhost"})
        if path in self.answers:
            return self.answers[path]
        if path == "/info":
            return Answer(200, site.info(self.firmware, self.serial, metered=self._has_meters), "text/xml")
        return None if path in self._contents() else Answer(404)

    def _contents(self) -> dict[str, Any]:
        contents: dict[str, Any] = {INVERTERS: self.inverters}
        reports = self.reports if self._has_meters else []
        if self._has_meters or site.version(self.firmware) >= (4,):
            contents[METERS] = site.meters(reports) if self.meters is None else self.meters
        if self._has_meters:
            contents |= {REPORTS: reports, STREAM: ""}
        return contents | ({CHECK_JWT: ""} if self.token_based else {})

    @property
    def _has_meters(self) -> bool:
        return site.version(self.firmware) >= (4,) if self.metered is None else self.metered

    def _session(self, user: str, cookie: str) -> Answer:
        if session := self.tokens.open_session(user, cookie):
            set_cookie = {"Set-Cookie": f"sessionId={session}; Path=/; Secure; HttpOnly"}
            return Answer(200, "<!DOCTYPE html><h2>Valid token.</h2>\n", headers=set_cookie)
        return Answer(503)

    def _cut(self) -> None:
        with self._changed:
            for connection in self.open_connections:
                with suppress(OSError):  # its client has left
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # SSLSocket's own is for its thread only

    def _tick(self, stopped: threading.Event) -> None:
        while self.source and not stopped.wait(self.interval):
            self.event = self.source()
            self.reports = site.reports(self.event, int(time.time()))
            self.emit(self.event)
