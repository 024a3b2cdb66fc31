"""A simulated Envoy on a real socket, for the tests and for `envoy2emon demo`.

The law of this file: it answers as the gateways on record do (Matthew1471/Enphase-API, pyenphase, vincentwolsink's
integration), by the firmware that it has at that moment, and on one port: HTTP below firmware 7, TLS from 7 on.
Faults of the network are no gateway's doing, so there are none here.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from email.message import Message
from typing import Any, Self

from envoy2emon.demo import site
from envoy2emon.demo.logins import INVERTERS, STREAM, DigestGate, TokenGate, digest_fields, make_token
from envoy2emon.demo.port import Answer, Port, Request

__all__ = ["Answer", "Request", "SimulatedEnvoy", "make_token"]

# What R3.9.36 sends in place of a challenge is not on record, only that no challenge can be read from it.
GARBAGE = "\xfe\xac?\xff"
REFUSED = Answer(401, "<html><head><title>401 Authorization Required</title></head></html>\r\n")


@dataclass(eq=False)
class SimulatedEnvoy:
    """A gateway at `host` from start() to stop(); started again it has the same port. Set its fields at any time.

    password: the installer's, firmware < 7. tls: the certificate's context, needed from firmware 7 on.
    chunked: the stream's framing, else close-delimited. newline: the stream's line ends.
    event: the meters' values, as the stream tells them. source: asked for the next event every `interval` seconds.
    inverters, reports: answers of these endpoints, a str as it is, anything else as JSON.
    info: the XML of /info while it is of this firmware, else one is made.
    answers: by path, what is answered in place of all else, before any authentication.
    metered: whether there are current transformers, and with them meters and a stream.
    redirects: from firmware 7 on plain HTTP gets a 301, else nothing.
    reset_after_401: as R/D3.18, keep the connection after a 401 and reset it when the next request comes.
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
    info: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    metered: bool = True
    redirects: bool = False
    reset_after_401: bool = False
    digest: DigestGate = field(default_factory=DigestGate, init=False)
    tokens: TokenGate = field(default_factory=TokenGate, init=False)

    def __post_init__(self) -> None:
        """Give a site that says nothing else twelve inverters and the event's reports."""
        now = int(time.time())
        self.inverters = site.inverters(12, now) if self.inverters is None else self.inverters
        self.reports = site.reports(self.event, now) if self.reports is None else self.reports
        self._port = Port(self)
        self.requests = self._port.requests

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Listen, and tell the source's events if there is a source."""
        self.address = self._port.open(self.address)
        self._stopped = threading.Event()
        threading.Thread(target=self._tick, args=(self._stopped,), name="simulated meters", daemon=True).start()

    def stop(self) -> None:
        """Close the port and cut every connection, as a gateway that loses its power."""
        self._stopped.set()
        self._port.close()

    def upgrade(self, firmware: str) -> None:
        """Change the firmware as Enphase does, unasked: with a restart that ends connections and sessions."""
        self.firmware = firmware
        self.tokens.end_sessions()
        self._port.cut()

    @property
    def host(self) -> str:
        """The address as a client's setting: HOST:PORT."""
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def connections(self) -> int:
        """How many connections came so far, those that were refused included."""
        return len(self._port.accepted)

    @property
    def open_streams(self) -> int:
        """How many clients read the stream now."""
        return len(self._port.streams)

    @property
    def token_based(self) -> bool:
        """Whether the firmware is 7 or later."""
        return site.version(self.firmware) >= (7,)

    def emit(self, event: str) -> None:
        """Send one event, given as its JSON text, to every open stream."""
        self.emit_raw(f"data: {event}{self.newline * 2}".encode())

    def emit_raw(self, data: bytes) -> None:
        """Send bytes to every open stream: bursts, halves of events, garbage. One call is one HTTP chunk."""
        self._port.send(data)

    def end_streams(self) -> None:
        """End every open stream in good order."""
        self._port.send(None)

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as the predicate holds, looked at with every change; TimeoutError after `timeout` s."""
        self._port.wait_for(predicate, timeout)

    def wait_for_stream(self, timeout: float = 10.0) -> None:
        """Return as soon as a stream is open; TimeoutError after `timeout` s."""
        self.wait_for(lambda: self.open_streams > 0, timeout)

    def respond(self, target: str, headers: Message, *, encrypted: bool) -> tuple[str | None, Answer]:
        """Say who asks and what the answer to a GET is."""
        path = target.partition("?")[0]
        if self.token_based and not encrypted:
            return None, Answer(301, headers={"Location": "https://localhost"})
        if answer := self._public(path):
            return None, answer
        gate = self.tokens if self.token_based else self.digest
        authorization, cookie = headers.get("Authorization", ""), headers.get("Cookie", "")
        if self.token_based:
            user, refusal = self.tokens.user(authorization, cookie, self.serial), REFUSED
        else:
            user, refusal = self._digest(target, authorization)
        if user is None or not gate.lets(user, path, site.version(self.firmware)):
            return user, refusal
        if path == "/auth/check_jwt":
            return user, self._session(user, cookie)
        if path == STREAM:
            return user, Answer(200, None, "text/event-stream")
        content = self._contents()[path]()
        return user, Answer(200, content if isinstance(content, str) else json.dumps(content), "application/json")

    def _public(self, path: str) -> Answer | None:
        if path in self.answers:
            return self.answers[path]
        if path == "/info":
            made = site.info(self.firmware, self.serial, metered=self.metered)
            return Answer(200, self.info if f">{self.firmware}<" in self.info else made, "text/xml")
        return None if path in self._contents() else Answer(404)

    def _contents(self) -> dict[str, Callable[[], Any]]:
        contents: dict[str, Callable[[], Any]] = {
            INVERTERS: lambda: self.inverters,
            "/api/v1/production": lambda: site.production(sum(unit["lastReportWatts"] for unit in self.inverters)),
        }
        if self.metered:
            contents |= {
                STREAM: str,
                "/ivp/meters": lambda: site.meters(self.reports),
                "/ivp/meters/readings": lambda: site.readings(self.reports),
                "/ivp/meters/reports/": lambda: self.reports,
            }
        return contents | ({"/auth/check_jwt": str} if self.token_based else {})

    def _digest(self, target: str, authorization: str) -> tuple[str | None, Answer]:
        fields = digest_fields(authorization)
        known = self.digest.knows(fields, target, {"installer": self.password, "envoy": self.serial[-6:]})
        garbage = self.firmware.startswith("R3.") and fields and not known
        refusal = REFUSED._replace(headers={"WWW-Authenticate": GARBAGE if garbage else self.digest.challenge()})
        return fields["username"] if known and self.digest.spend(fields) else None, refusal

    def _session(self, user: str, cookie: str) -> Answer:
        if session := self.tokens.open_session(user, cookie):
            set_cookie = {"Set-Cookie": f"sessionId={session}; Path=/; Secure; HttpOnly"}
            return Answer(200, "<!DOCTYPE html><h2>Valid token.</h2>\n", headers=set_cookie)
        return Answer(503)

    def _tick(self, stopped: threading.Event) -> None:
        while self.source and not stopped.wait(self.interval):
            self.event = self.source()
            self.reports = site.reports(self.event, int(time.time()))
            self.emit(self.event)
