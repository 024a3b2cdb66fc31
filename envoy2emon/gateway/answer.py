"""What the gateway answers: status and headers at once, the body as it comes.

The law of this file: all of it is bounded in time and size, and whatever goes wrong is StreamLost, in words.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

ANSWER_TIMEOUT_S = 20.0
SKIP_S = 1.0
# 51 inverters are 8 kB.
MAX_ANSWER = 1024 * 1024
_CHUNK = 65536


class StreamLost(Exception):
    """The gateway is away, slow or broke off: try again soon.

    nobody_there: there is no such name, or no way to it; shut: this port refuses connections.
    knocks: how many connections the attempt had opened, or tried to; none if it lost what was good.
    """

    def __init__(self, reason: str, *, nobody_there: bool = False, shut: bool = False) -> None:
        super().__init__(reason)
        self.nobody_there = nobody_there
        self.shut = shut
        self.knocks = 0


class Source(io.RawIOBase):
    """What http.client takes for a socket: from begin() on it gives what comes within `silence` seconds.

    A socket's own timeout begins anew with each byte of a head, of a chunk's size, or of trailers.
    """

    def __init__(self, sock: socket.socket, silence: float) -> None:
        self._sock = sock
        self._silence = silence
        self.begin()

    def begin(self, seconds: float | None = None) -> None:
        """Let the time begin anew, or so much time."""
        self._deadline = time.monotonic() + (self._silence if seconds is None else seconds)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Do as a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Do as a file."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        """Take what there is, as soon as there is any. Raises OSError: TimeoutError when the time is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)


class Answer:
    """What the gateway answered: `status`, `headers`, and the body as it comes.

    At the end of its `with` an answer that was not read to its end takes the connection with it.
    """

    def __init__(self, source: Source, url: str, close: Callable[[], None]) -> None:
        self._source = source
        self._response = http.client.HTTPResponse(source, method="GET")  # type: ignore[arg-type]
        self._response.begin()
        self.status = self._response.status
        self.headers = self._response.headers
        self._url = url
        self._close = close
        self._complete = self._response.length == 0

    def __enter__(self) -> Self:
        """Give it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self.close()

    def close(self) -> None:
        """Leave the connection to the next question, or close it if it is of no use to that."""
        self._response.close()
        if self._response.will_close or not self._complete:
            self._close()

    def skip(self) -> None:
        """Let go of it, read to its end if that is in sight: so the connection is kept."""
        with self, suppress(StreamLost), in_words(self._url):
            if not self._response.will_close:
                self._source.begin(SKIP_S)
                self._response.read(MAX_ANSWER)
                self._complete = self._response.isclosed()

    def chunk(self) -> bytes:
        """Return the next bytes as soon as there are any, b"" at the end: read1 is prompt for every framing."""
        self._source.begin()
        with in_words(self._url):
            data = self._response.read1(_CHUNK)
            if not data and self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
            self._complete = not data
            return data

    def text(self, clock: Callable[[], float] = time.monotonic) -> str:
        """Return the body, bounded, read in bounded time, whatever its Content-Type."""
        body, deadline = b"", clock() + ANSWER_TIMEOUT_S
        while chunk := self.chunk():
            body += chunk
            if len(body) > MAX_ANSWER or clock() > deadline:
                raise StreamLost(f"{self._url} answers without end")
        return body.decode(errors="replace")


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """Raise StreamLost, in words, for every way in which a connection fails."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: http.client reads a head as that of a mail, charsets and all.
        raise StreamLost(f"{url} {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Tell what happened to a connection that had come about."""
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ConnectionError | ssl.SSLError | http.client.IncompleteRead):
        return "closed the connection"
    if isinstance(error, OSError):
        return f"cannot be reached any more ({error.strerror})"
    return f"cannot be read: {error!r}"[:200]
