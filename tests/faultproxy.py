"""A TCP proxy between a daemon and the gateway or EmonCMS, TLS or not, whose faults are switched while it runs.

Bytes, ends of streams and resets pass unchanged and at once, except for the fault in force.
"""

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import Literal, Self

Mode = Literal["pass", "refuse", "reset", "stall", "drip", "flood", "canned"]
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s


class FaultProxy:
    """Listens at `host`:`port` within the `with` block, and connects to the target as soon as a client sends something.

    attempts: when connections were accepted, monotonic s; refused ones do not count.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        with socket.socket() as probe:
            # Linux keeps the port of a socket that stops listening only if the port was named when it was bound.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self._listener = socket.create_server(probe.getsockname())
        self.host, self.port = self._listener.getsockname()
        self.attempts: list[float] = []
        self.changed = Condition()
        self.mode: Mode = "pass"
        self.rate = 1.0
        self.answer = b""
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

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._pairs)

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as the predicate holds, checked at each connection's begin and end; TimeoutError if late."""
        with self.changed:
            if not self.changed.wait_for(predicate, timeout):
                raise TimeoutError(f"after {timeout} s: {len(self.attempts)} attempts, {self.open} open, {self.mode}")

    def pass_through(self) -> None:
        """End any fault; bytes that a stall held back are passed on."""
        self._switch("pass")

    def refuse(self) -> None:
        """Cut open connections and refuse new ones, like a computer on which the server has ended."""
        self._switch("refuse")
        self.cut()

    def reset(self) -> None:
        """Accept each new connection and reset it at once; unlike refused ones, these are counted."""
        self._switch("reset")

    def stall(self) -> None:
        """Let nothing pass in either direction, and leave everything open."""
        self._switch("stall")

    def drip(self, rate: float = 1.0) -> None:
        """Let `rate` bytes a second pass downstream."""
        self.rate = rate
        self._switch("drip")

    def flood(self) -> None:
        """Send bytes without a newline on each connection that is open now, as fast as they are taken."""
        self._switch("flood")
        for pair in list(self._pairs):
            Thread(target=pair.flood, daemon=True).start()

    def canned(self, answer: bytes) -> None:
        """Answer whatever a client sends next with these bytes, and close."""
        self.answer = answer
        self._switch("canned")

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
                self.attempts.append(time.monotonic())
                self._pairs.add(pair)
                self.changed.notify_all()
            Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: "_Pair") -> None:
        with suppress(OSError):
            pair.upstream()
        pair.close()
        with self.changed:
            self._pairs.discard(pair)
            self.changed.notify_all()


class _Pair:
    """One client's connection and the one to the target. The upstream thread owns both."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.proxy, self.client = proxy, client
        self.server: socket.socket | None = None
        self.budget: int | None = None  # bytes downstream until the cut
        self.reset = self.ended = False
        self._downstream = Thread(target=self._pump_down, daemon=True)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def upstream(self) -> None:
        if self.proxy.mode == "reset":
            self.reset = True
            return
        while not self.ended:
            data = self.client.recv(65536)
            if self.proxy.mode == "canned":
                self.client.sendall(self.proxy.answer)
                self.client.shutdown(socket.SHUT_WR)
                while self.client.recv(65536):  # a close with bytes unread would be a reset
                    pass
                return
            if not self._passes():
                return
            if not data:
                break
            if self.server is None:
                self.reset = True  # unless the target answers
                self.server = socket.create_connection(self.proxy.target)
                self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.reset = False
                self._downstream.start()
            self.server.sendall(data)
        if self.server:
            self.server.shutdown(socket.SHUT_WR)
            self._downstream.join()

    def _pump_down(self) -> None:
        assert self.server
        try:
            while not self.ended:
                data = self.server.recv(65536)
                if not self._passes():
                    return
                if not data:
                    self.client.shutdown(socket.SHUT_WR)
                    return
                self._send(data)
        except ConnectionResetError:
            self.reset = True
            self.end()
        except OSError:
            self.end()

    def _send(self, data: bytes) -> None:
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
                    self.proxy.changed.wait_for(lambda: self.ended or self.proxy.mode != "drip", 1 / self.proxy.rate)
                self._passes()

    def _passes(self) -> bool:
        """Wait for the end of a stall or flood; return whether the connection still exists."""
        with self.proxy.changed:
            self.proxy.changed.wait_for(lambda: self.ended or self.proxy.mode not in {"stall", "flood"})
        return not self.ended

    def flood(self) -> None:
        with suppress(OSError):
            while self.proxy.mode == "flood" and not self.ended:
                self.client.sendall(b"x" * 16384)

    def end(self) -> None:
        """Wake both threads, so that the upstream one closes."""
        with self.proxy.changed:
            self.ended = True
            self.proxy.changed.notify_all()
        with suppress(OSError):
            self.client.shutdown(socket.SHUT_RD if self.reset else socket.SHUT_RDWR)
        with suppress(OSError):
            if self.server:
                self.server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end()
        if self.server:
            self._downstream.join()
            self.server.close()
        if self.reset:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.client.close()
