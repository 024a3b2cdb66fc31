"""Server-sent events: bytes in, the data of complete events out.

The events do not depend on how the bytes were cut into chunks, and memory is bounded. Source: the WHATWG HTML standard,
section 9.2.6. The gateway sends one `data:` line per event and no other field; its D7 firmware ends lines with CRLF
(Matthew1471/Enphase-API).
"""

import re

# A three-phase event is 1.1 kB, and firmware D7.0.88 sends 16 KiB at once. Anything larger is not a meter stream.
MAX_EVENT = 64 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")


class LineTooLong(Exception):
    """A line, or the data of one event, exceeds MAX_EVENT bytes, so the connection is of no further use."""


class Decoder:
    """Decodes one connection's body; a new connection needs a new decoder."""

    def __init__(self) -> None:
        self._rest = b""
        self._data = bytearray()
        self._skip_newline = False
        self._at_start = True

    def feed(self, data: bytes) -> list[str]:
        """Return the data of each event that `data` completes, oldest first.

        Events without data, comments and other fields yield nothing; bytes that are not UTF-8 become U+FFFD.
        Raises LineTooLong.
        """
        if self._skip_newline and data:
            # The last chunk ended in CR, and its line was handled at once. A LF that follows belongs to that CR.
            data = data.removeprefix(b"\n")
            self._skip_newline = False
        *lines, self._rest = _LINE_END.split(self._rest + data)
        if data.endswith(b"\r"):
            self._skip_newline = True
        if max(map(len, (*lines, self._rest))) > MAX_EVENT:
            raise LineTooLong(f"a line of more than {MAX_EVENT} bytes")
        return [event for line in lines if (event := self._take(line))]

    def _take(self, line: bytes) -> str | None:
        if self._at_start:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        if not line:
            event = self._data[:-1].decode(errors="replace")
            self._data.clear()
            return event
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data += value.removeprefix(b" ") + b"\n"
            if len(self._data) > MAX_EVENT:
                raise LineTooLong(f"an event of more than {MAX_EVENT} bytes")
        return None
