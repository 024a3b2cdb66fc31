"""Both daemons, with the gateway's and EmonCMS's answers spoilt at random: `python -m tests.fuzz --minutes N --seed S`.

They read a simulated gateway and post to the stand-in through proxies that cut, double and invent bytes in the answers.
If a daemon ends, a row is doubled or a date goes back, the exit code is 1. Loss is not judged here but by
tests/soak.py, because a row is rightly lost when its event was spoilt.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from socket import SHUT_WR, create_connection, create_server, socket
from threading import Event, Thread
from typing import Self
from urllib.parse import urlsplit

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.daemons import Daemon, altered
from tests.ledger import kwh_error, went_back

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
outage.REFUSED_WAIT_S = outage.STEADY_S = 0.2
inverters.MOST_WAIT_S = 0.5
client.ANSWER_TIMEOUT_S = client.web.CONNECT_S = gateway.ANSWER_S = gateway.LONGEST_ANSWER_S = 0.5
fails, refused = outage.Outage.fails, outage.Outage.refused
outage.Outage.fails = lambda self, reason: min(0.2, fails(self, reason))
outage.Outage.refused = lambda self, reason: min(0.2, refused(self, reason))
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


class Spoiler:
    """A proxy that spoils a share of a server's answers; `share` may be set at any time."""

    def __init__(self, host: str, port: int, seed: int, share: float = 0.4) -> None:
        self.share = share
        self.answers = 0
        self._to = (host, port)
        self._random = Random(seed)
        self._listener = create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        """Listen."""
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                with suppress(OSError):
                    neighbour = create_connection(self._to, 5)
                    Thread(target=self._pump, args=(client, neighbour, False), daemon=True).start()
                    Thread(target=self._pump, args=(neighbour, client, True), daemon=True).start()

    def _pump(self, source: socket, target: socket, answers: bool) -> None:  # noqa: FBT001
        with suppress(OSError), target:
            source.settimeout(30)
            while data := source.recv(65536):
                self.answers += answers
                if answers and self._random.random() < self.share:
                    data = spoilt(data, self._random)
                target.sendall(data)
            target.shutdown(SHUT_WR)


class Fuzz:
    """Both daemons, between a gateway and an EmonCMS whose answers are spoilt."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.emoncms = stack.enter_context(StandInEmonCMS())
        self.gateway = stack.enter_context(SimulatedEnvoy())
        self.to_emoncms = stack.enter_context(Spoiler("127.0.0.1", urlsplit(self.emoncms.url).port or 0, seed))
        self.to_gateway = stack.enter_context(Spoiler(*self.gateway.address, seed + 1))
        settings = {
            "ENVOY_HOST": f"127.0.0.1:{self.to_gateway.port}",
            "ENVOY_PASSWORD": self.gateway.password,
            "EMONCMS_URL": f"http://127.0.0.1:{self.to_emoncms.port}/emoncms",
            "EMONCMS_APIKEY": self.emoncms.key,
            "STREAM_TIMEOUT_S": 2,
            "INVERTERS_INTERVAL_S": 1,
        }
        self.daemons = [Daemon(command, directory / command, settings) for command in ("stream", "inverters")]
        for daemon in self.daemons:
            daemon.environment |= altered(directory / f"{daemon.command}-impatient", IMPATIENT)
            stack.enter_context(daemon)
        self.sent = self.memory = 0

    def spoil(self, seconds: float) -> list[str]:
        """Send events for `seconds` while answers are spoilt, and return what went wrong."""
        pause, until = Event(), time.monotonic() + seconds
        while time.monotonic() < until:
            self.sent += 1
            self.gateway.emit(THREE_PHASE_EVENT.replace('"p":54.745', f'"p":{self.sent}', 1))
            if self.sent % 20 == 0:
                for unit in self.gateway.inverters:
                    unit["lastReportDate"] += 1
                alive = [daemon for daemon in self.daemons if daemon.process.poll() is None]
                self.memory = max(self.memory, *(daemon.memory()[1] for daemon in alive), 0)
            pause.wait(0.1)
        return [
            f"{daemon.command} ended with {code}: {daemon.lines[-20:]}"
            for daemon in self.daemons
            if (code := daemon.process.poll()) is not None
        ]

    def be_well(self) -> list[str]:
        """Stop spoiling, and return a complaint if rows do not arrive again."""
        self.to_emoncms.share = self.to_gateway.share = 0.0
        applied, pause = self.emoncms.account.applied, Event()
        for _ in range(300):
            self.gateway.emit(THREE_PHASE_EVENT)
            if self.emoncms.account.applied > applied + 20:
                return []
            pause.wait(0.1)
        return ["rows do not arrive again when both neighbours are well"]


def run(minutes: float, seed: int) -> int:
    """Spoil answers for `minutes`, print what became of the daemons, and return 1 if a promise is broken, else 0."""
    print(f"seed {seed}, {minutes} min")
    with ExitStack() as stack:
        fuzz = Fuzz(seed, stack)
        troubles = fuzz.spoil(minutes * 60) + fuzz.be_well()
        codes = [daemon.terminate()[0] for daemon in fuzz.daemons]
        tracebacks = sum("Traceback" in line for daemon in fuzz.daemons for line in daemon.lines)
        rows = list(fuzz.emoncms.rows)
        back, error = went_back(rows), kwh_error(fuzz.emoncms.account)
    if any(codes) or tracebacks:
        troubles.append(f"exit codes {codes}, tracebacks {tracebacks}")
    if back or error:
        troubles.append(f"{back} dates back, {error} kWh wrong")
    answers = fuzz.to_gateway.answers + fuzz.to_emoncms.answers
    print(f"answers {answers}, of which four in ten were spoilt; events sent {fuzz.sent}; rows applied {len(rows)}")
    print(f"exit codes {codes}; dates back {back}; kWh error {error}; largest memory {fuzz.memory / 2**20:.1f} MiB")
    print(*troubles, sep="\n")
    return 1 if troubles else 0


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Spoil what the neighbours of both daemons answer, at random."
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    arguments = parser.parse_args()
    return run(arguments.minutes, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
