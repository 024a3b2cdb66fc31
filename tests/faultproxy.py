"""A TCP proxy between a daemon and the gateway or EmonCMS, TLS or not, whose faults are switched while it runs.

Bytes and ends of streams pass unchanged and at once, except for the fault in force.
"""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import Literal, Self

Mode = Literal["pass", "refuse", "reset", "stall", "drip"]
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s


class FaultProxy:
    """Listens at `host`:`port` within the `with` block, and connects to the target as soon as a client sends something.

    alter: makes of the bytes that come from the target those that the client gets.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        with socket.socket() as probe:
            # Linux keeps the port of a socket that stops listening only if the port was named when it was bound.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self._listener = socket.create_server(probe.getsockname())
        self.host, self.port = self._listener.getsockname()
        self.changed = Condition()
        self.mode: Mode = "pass"
        self.alter: Callable[[bytes], bytes] = bytes
        self._closed = False
        self._pairs: set[_Pair] = set()

    def __enter__(self) -> Self:
        """Serve."""
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening and cut what is open."""
        self._closed = True
        self.refuse()
        self._listener.close()

    def pass_through(self) -> None:
        """End any fault; bytes that a stall held back are passed on."""
        self._switch("pass")

    def refuse(self) -> None:
        """Cut open connections and refuse new ones, like a computer on which the server has ended."""
        self._switch("refuse")
        self.cut()

    def reset(self) -> None:
        """Reset open connections, and new ones as soon as they are accepted."""
        self._switch("reset")
        self.cut(reset=True)

    def stall(self) -> None:
        """Let nothing pass in either direction, and leave everything open."""
        self._switch("stall")

    def drip(self) -> None:
        """Let one byte a second pass downstream."""
        self._switch("drip")

    def cut(self, after: int = 0, *, reset: bool = False) -> None:
        """End each open connection, now or after so many more bytes downstream; new ones are not affected."""
        with self.changed:
            for pair in self._pairs:
                pair.budget, pair.reset = after, reset
                if not after:
                    pair.end()

    def _switch(self, mode: Mode) -> None:
        with self.changed:
            if mode == "refuse":
                with suppress(OSError):  # it has already stopped listening
                    self._listener.shutdown(socket.SHUT_RD)
            elif self.mode == "refuse":
                self._listener.listen()
            self.mode = mode
            self.changed.notify_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                with self.changed:
                    self.changed.wait_for(lambda: self._closed or self.mode != "refuse")
                continue
            pair = _Pair(self, client)
            with self.changed:
                self._pairs.add(pair)
            Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: "_Pair") -> None:
        with pair.client, suppress(OSError):
            pair.serve()
        with self.changed:
            self._pairs.discard(pair)


class _Pair:
    """One client's connection and the one to the target."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.proxy, self.client = proxy, client
        self.server: socket.socket | None = None
        self.budget: int | None = None  # bytes downstream until the cut
        self.reset = self.ended = False
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def serve(self) -> None:
        """Pass bytes in both directions until both streams have ended or the connection is cut."""
        if self.proxy.mode == "reset":
            self.reset = True
            self.end()
        if self.client.recv(1, socket.MSG_PEEK) and self._passes():
            with socket.create_connection(self.proxy.target) as self.server:
                self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                downstream = Thread(target=self._pump, args=(self.server, self.client, self._send_down), daemon=True)
                downstream.start()
                self._pump(self.client, self.server, self.server.sendall)
                downstream.join()

    def _pump(self, source: socket.socket, sink: socket.socket, send: Callable[[bytes], None]) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and self._passes():
                send(data)
            if self._passes():
                sink.shutdown(socket.SHUT_WR)
                return
        self.end()

    def _send_down(self, data: bytes) -> None:
        data = self.proxy.alter(data)
        while data and not self.ended:
            dripping = self.proxy.mode == "drip"
            piece = data[:1] if dripping else data
            if self.budget is not None:
                piece = piece[: self.budget]
                self.budget -= len(piece)
            self.client.sendall(piece)
            data = data[len(piece) :]
            if self.budget == 0:
                self.end()
            elif dripping:
                with self.proxy.changed:
                    self.proxy.changed.wait_for(lambda: self.ended or self.proxy.mode != "drip", 1.0)
                self._passes()

    def _passes(self) -> bool:
        """Wait for the end of a stall; return whether the connection still exists."""
        with self.proxy.changed:
            self.proxy.changed.wait_for(lambda: self.ended or self.proxy.mode != "stall")
        return not self.ended

    def end(self) -> None:
        """Wake both threads, so that the connections are closed."""
        with self.proxy.changed:
            self.ended = True
            self.proxy.changed.notify_all()
        with suppress(OSError):
            if self.reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.client.shutdown(socket.SHUT_RD if self.reset else socket.SHUT_RDWR)
        with suppress(OSError):
            if self.server:
                self.server.shutdown(socket.SHUT_RDWR)
