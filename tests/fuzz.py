"""Both daemons, with the gateway's and EmonCMS's answers spoilt at random: `python -m tests.fuzz --minutes N --seed S`.

They read a simulated gateway and post to the stand-in through proxies that cut, double and invent bytes in the answers.
If a daemon ends, a date goes back or energy is counted wrongly, the exit code is 1. Loss is not judged here but by
tests/soak.py, because a row is rightly lost when its event was spoilt.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from threading import Event

from envoy2emon.demo.emoncms import StandInEmonCMS
from tests.daemons import altered
from tests.ledger import went_back
from tests.peers import INPUT, NUMBERED
from tests.trial import NODES, Trial, arguments

# Bytes that have ended a daemon, or might: numbers, HTTP heads, chunks, texts, JSON.
NASTY = (
    b"99999999999999999999",
    b"-1",
    b"NaN",
    b"Infinity",
    b"1e300",
    b"1E+99999999999999999999",
    b"[" * 5000,
    b'{"a":' * 500,
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\x1b[2J\x9b\x00\r\n",
    b"<!DOCTYPE x [" + b"".join(b'<!ENTITY a%d "b">' % number for number in range(300)) + b"]>",
    b"\r\nContent-Length: 99999999999999999999\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    b"\r\nContent-Type: text/html; charset\r\n",
    b"\r\nContent-Encoding: gzip\r\n",
    b"\r\nLocation: http://[::1\r\n",
    b"\r\nSet-Cookie: a=\x00\xff; expires=never; domain=..\r\n",
    b"\r\nDate: Fri, 99 Abc 99999 99:99:99 GMT\r\n",
    b'\r\nWWW-Authenticate: Digest realm="x", nonce=\xff, algorithm=none, qop=\r\n',
    b"HTTP/1.1 99999 \r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 300,
)
# With waits of minutes, even a long run would see few answers.
IMPATIENT = """
import envoy2emon.outage as outage, envoy2emon.emoncms.client as client, envoy2emon.gateway.client as gateway
import envoy2emon.inverters as inverters
outage.REFUSED_WAIT_S = 0.2
inverters.MOST_WAIT_S = 0.5
client.ANSWER_TIMEOUT_S = client.web.CONNECT_S = gateway.ANSWER_S = gateway.LONGEST_ANSWER_S = 0.5
fails = outage.Outage.fails
outage.Outage.fails = lambda self, reason: min(0.2, fails(self, reason))
"""


def spoilt(data: bytes, random: Random) -> bytes:
    """Return the bytes changed in one or a few places, but not in a Date, which would change EmonCMS's clock."""
    before, date, rest = data.partition(b"\r\nDate: ")
    if date:
        line, end, after = rest.partition(b"\r\n")
        head = before if random.random() < 0.5 else spoilt(before, random)
        return head + date + line + end + spoilt(after, random)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data) + 1)
        match random.randrange(5):
            case 0:
                data = data[:place] + random.randbytes(random.randrange(1, 9)) + data[place:]
            case 1:
                data = data[:place] + random.choice(NASTY) + data[place:]
            case 2:
                data = data[:place] + data[place + random.randrange(1, 40) :]
            case 3:
                data = data[:place]
            case _:
                data += data[place:]
    return data


class Fuzz(Trial):
    """Both daemons, between a gateway and an EmonCMS whose answers are spoilt."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        super().__init__(stack, StandInEmonCMS(), stream_timeout_s=2)
        self.answers = self.sent = 0
        self._random = Random(seed)
        impatient = altered(self.directory / "impatient", IMPATIENT)
        for name, daemon in self.daemons.items():
            daemon.environment |= impatient
            self.start(name)

    def run(self, seconds: float) -> None:
        """Spoil four in ten answers for `seconds`; then both neighbours are well, and rows have to arrive again."""
        self.to_emoncms.alter = self.to_gateway.alter = self._spoil
        end = time.monotonic() + seconds
        self._send_until(lambda: time.monotonic() > end)
        self.to_emoncms.alter = self.to_gateway.alter = bytes
        sent, applied, end = self.sent, len(self.emoncms.rows), time.monotonic() + 30

        def all_arrive() -> bool:
            rows = self.emoncms.rows[applied:]
            return {row.node for row in rows} >= set(NODES.values()) and any(
                sent < row.inputs.get(INPUT, 0) <= self.sent for row in rows
            )

        self._send_until(lambda: all_arrive() or time.monotonic() > end)
        if not all_arrive():
            self.complaints.append("rows do not arrive again when both neighbours are well")
        for name in NODES:
            self.end(name)
        if back := went_back(self.emoncms.rows):
            self.complaints.append(f"{back} dates went back")

    def _spoil(self, data: bytes) -> bytes:
        self.answers += 1
        return spoilt(data, self._random) if self._random.random() < 0.4 else data

    def _send_until(self, holds: Callable[[], bool]) -> None:
        """Send ten events a second, and new reports every two seconds."""
        while not holds():
            self.sent += 1
            self.gateway.emit(NUMBERED % self.sent)
            if self.sent % 20 == 0:
                for unit in self.gateway.inverters:
                    unit["lastReportDate"] += 1
            Event().wait(0.1)


def run(minutes: float, seed: int) -> int:
    """Spoil answers for `minutes`, print what became of the daemons, and return 1 if a promise is broken, else 0."""
    with ExitStack() as stack:
        fuzz = Fuzz(seed, stack)
        fuzz.run(minutes * 60)
        print(f"seed {seed}, {minutes:g} minutes, {fuzz.answers} answers, {len(fuzz.emoncms.rows)} rows applied")
        return fuzz.report()


if __name__ == "__main__":
    given = arguments("tests.fuzz", "Spoil what the neighbours of both daemons answer, at random.")
    sys.exit(run(given.minutes, given.seed))
