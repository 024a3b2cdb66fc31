"""Clients of a gateway in this process, and a server that answers whatever bytes a test wants."""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Self

from envoy2emon import settings
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.gateway.client import Gateway
from envoy2emon.gateway.tokens import Tokens
from envoy2emon.settings import Settings

INFO = (
    "<envoy_info><device><sn>122112345678</sn><software>D5.0.62</software><imeter>true</imeter></device></envoy_info>"
)


def settings_of(**changes: str) -> Settings:
    """Return settings: the required ones, changed and completed by these."""
    environ = {"EMONCMS_APIKEY": "write-key", "ENVOY_PASSWORD": "installer-password"} | changes
    return settings.load(Path("/nonexistent"), environ, required=False)[0]


def client_at(host: str, state: Path | None = None, /, *, inverters: bool = False, **changes: str) -> Gateway:
    """Return a client of the gateway at this ENVOY_HOST."""
    known = settings_of(ENVOY_HOST=host, **changes)
    return Gateway(known, Tokens(known, state), inverters=inverters)


def asked(envoy: SimulatedEnvoy) -> list[tuple[str, int]]:
    """Return all requests so far: path and status."""
    return [(request.path, request.status) for request in envoy.requests]


class Scripted:
    """A server that answers by sending or calling `answer`, but /info as a gateway of firmware 5 does."""

    def __init__(self, answer: bytes | Callable[[socket.socket], object]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        """Serve, each connection in a thread of its own."""
        Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._talk, args=self._listener.accept()[:1], daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if client.recv(65536).startswith(b"GET /info"):
                client.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{INFO}".encode())
            elif callable(self._answer):
                self._answer(client)
            else:
                client.sendall(self._answer)
