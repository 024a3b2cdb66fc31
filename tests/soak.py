"""Both daemons between a gateway and an EmonCMS that fail: `python -m tests.soak --minutes N --seed S`.

The seed determines the faults, tests/ledger.py judges, and a broken promise gives exit code 1. Events come five times
as fast as a real gateway's, and faults far more often. No daemon's login or key is ever refused, because the daemon
would then wait for five minutes.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from random import Random
from threading import Event, Thread
from urllib.parse import urlsplit

from envoy2emon.demo.account import AppliedRow
from envoy2emon.demo.emoncms import (
    MARIADB_DOWN,
    PHP_DOWN,
    Answer,
    Answers,
    AnswersLate,
    Cuts,
    Dies,
    Failure,
    HoldsUp,
    StandInEmonCMS,
)
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.logins import INVERTERS
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.rows import SECTION_NAMES
from tests.clocks import Clocks
from tests.daemons import Daemon
from tests.faultproxy import FaultProxy
from tests.ledger import Arrival, Diary, Verdict, judge, kwh_error

NODES = {"stream": "Envoy-S", "inverters": "Envoy-S-inverters"}
EVENTS_EVERY_S = 0.2
REPORTS_EVERY_S = 1.5
SERIALS = [str(number) for number in range(2001, 2007)]
LARGEST_MEMORY = 64 * 1024 * 1024
# The longest wait before the next attempt at EmonCMS is 60 s, plus up to a fifth at random.
SETTLES_WITHIN_S = 150.0
CLOCK_WRONG_S = 12 * 3600
# EmonCMS's clock is known to a second, a date is a whole second, and an event may be held for 0.25 s.
MISDATED_S = 2.3
# The input that holds each event's number, in watts, so that the energy shows which events were counted.
NUMBER = "prod_ph-a_wNow"
ONLY_PRODUCTION = json.dumps({"production": json.loads(THREE_PHASE_EVENT)["production"]}, separators=(",", ":"))
GARBAGE = b'data: {"production":\n\n: a comment\n\ndata: []\n\nx'
CANNED = [
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nLocation: https://localhost/stream/meter\r\nContent-Length: 0\r\n\r\n",
]


class _EmonCMS(StandInEmonCMS):
    """Notes for each node when its last post came in, because a daemon that posts has learnt EmonCMS's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.posted = dict.fromkeys(NODES.values(), 0.0)

    def answer(self, target: str, body: bytes = b"", content_type: str = "", authorization: str = "") -> Answer | None:
        """Note a post, and answer as the stand-in does."""
        if "input/bulk" in target:
            self.posted[NODES["inverters" if b"inverters" in body else "stream"]] = time.monotonic()
        return super().answer(target, body, content_type, authorization)


class Soak:
    """The simulated gateway and EmonCMS, the daemons, and what is known of them.

    ended: ends the faults. silent: ends the gateway's events and reports as well.
    """

    def __init__(self, seed: int, stack: ExitStack) -> None:
        self.ended, self.silent = Event(), Event()
        self.sent: list[tuple[float, int]] = []
        self.count = 0
        self.started: dict[str, float] = {}
        self.reports: list[tuple[float, dict[str, int]]] = []
        self.rejected: set[int] = set()
        self.short: set[int] = set()
        self.faults: dict[str, int] = {}
        self.memory = 0
        self.complaints: list[str] = []
        self.diaries = {name: Diary() for name in NODES}
        self._seed = seed
        self.emoncms = stack.enter_context(_EmonCMS())
        self.gateway = stack.enter_context(SimulatedEnvoy())
        self.to_emoncms = stack.enter_context(FaultProxy("127.0.0.1", urlsplit(self.emoncms.url).port or 0))
        self.emoncms.account.reject = lambda _, inputs: inputs.get(NUMBER) in self.rejected
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.clocks = Clocks(directory / "clocks")
        self._publish(dict.fromkeys(SERIALS, int(time.time()) - 3600))
        self.daemons: dict[str, Daemon] = {}
        self.to_gateway: list[FaultProxy] = []
        for name in NODES:
            self.to_gateway.append(stack.enter_context(FaultProxy(*self.gateway.address)))
            settings = {
                "ENVOY_HOST": f"127.0.0.1:{self.to_gateway[-1].port}",
                "ENVOY_PASSWORD": self.gateway.password,
                "EMONCMS_URL": f"http://127.0.0.1:{self.to_emoncms.port}/emoncms",
                "EMONCMS_APIKEY": self.emoncms.key,
                "STREAM_TIMEOUT_S": 5,
                "INVERTERS_INTERVAL_S": 1,
            }
            self.daemons[name] = Daemon(name, directory / name, settings)
            self.daemons[name].environment |= self.clocks.environment
            stack.callback(self.daemons[name].kill)
            self._start(name)

    def run(self, seconds: float) -> None:
        """Let the gateway, EmonCMS and the daemons fail for `seconds`, then let everything settle."""
        sending = [self._send_events, self._send_reports]
        failing = [self._fail_emoncms, self._fail_gateway, self._fail_clocks, self._fail_daemons]
        threads = [Thread(target=self._live, args=(loop,)) for loop in (*sending, *failing)]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds)
        self.ended.set()
        for thread in threads[2:]:
            thread.join()
        self.emoncms.next_faults.clear()
        number = self.count
        self._until(lambda: max(self._numbers()[-9:], default=0) >= number)
        self.silent.set()
        for thread in threads[:2]:
            thread.join()
        newest = set(self.reports[-1][1].items())
        self._until(lambda: self._numbers()[-1:] == [self.count] and newest <= {_identity(row) for row in self._rows()})
        for name, daemon in self.daemons.items():
            daemon.notifications.clear()
            try:
                daemon.wait_for_notify("nothing is waiting", SETTLES_WITHIN_S)
            except AssertionError:
                self.complaints.append(f"{name} does not settle: {daemon.notifications[-1:]} {daemon.lines[-20:]}")
            self._measure(name)
            code, _ = daemon.terminate()
            left = [path.name for path in daemon.state.glob("*.sqlite*")]
            if code or left:
                self.complaints.append(f"{name}: exit code {code}, left behind {left}")

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdict on each daemon."""
        events = [row for row in self.emoncms.rows if row.node == NODES["stream"]]
        reports = [row for row in self.emoncms.rows if row.node == NODES["inverters"]]
        for row in events:
            if row.inputs != _inputs(int(row.inputs[NUMBER]), self.short):
                self.complaints.append(f"an event arrived as {row.inputs}")
        for row in reports:
            if [*row.inputs.values()] != [row.time % 300, 300]:
                self.complaints.append(f"a report of {row.time} arrived as {row.inputs}")
        polls = [request.at for request in self.gateway.requests if (request.path, request.status) == (INVERTERS, 200)]
        # A report published just before a poll may or may not be in its answer.
        sent = [(at, item) for at in polls for item in self._published(at - 0.05) & self._published(at)]
        verdicts = {
            "stream": judge(self.sent, events, _arrivals(events), self.diaries["stream"]),
            "inverters": judge(sent, reports, _arrivals(reports), self.diaries["inverters"]),
        }
        to_wall = time.time() - time.monotonic()
        true = {number: at + to_wall for at, number in self.sent if self.diaries["stream"].well(at)}
        errors = [row.time - true[number] for row in events if (number := int(row.inputs[NUMBER])) in true]
        verdicts["stream"].misdated = sum(abs(error) > MISDATED_S for error in errors)
        return verdicts

    def _live(self, loop: Callable[[], None]) -> None:
        """Run a thread's loop; if it raises, as when a daemon does not start, end the soak."""
        try:
            loop()
        except Exception:  # noqa: BLE001 - whatever it is, it becomes a complaint
            self.complaints.append(f"{loop.__name__} died: {traceback.format_exc()}")
            self.ended.set()

    def _send_events(self) -> None:
        random = Random(f"{self._seed} events")
        due = time.monotonic()
        while not self.silent.wait(max(0.0, due - time.monotonic())):
            number, due = self.count + 1, due + EVENTS_EVERY_S
            if random.random() < 0.1:
                self.short.add(number)
            if random.random() < 0.02 and not self.ended.is_set():
                self.rejected.add(number)
            elif self.gateway.open_streams > 0:
                self.sent.append((time.monotonic(), number))
            self.gateway.emit(_event(number, self.short))
            self.count = number

    def _send_reports(self) -> None:
        random = Random(f"{self._seed} reports")
        dates = dict(self.reports[-1][1])
        while not self.silent.wait(REPORTS_EVERY_S):
            dates[random.choice(SERIALS)] += 60
            self._publish(dict(dates))

    def _publish(self, dates: dict[str, int]) -> None:
        self.gateway.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": date % 300, "maxReportWatts": 300}
            for serial, date in dates.items()
        ]
        self.reports.append((time.monotonic(), dates))

    def _published(self, at: float) -> set[tuple[str, int]]:
        return set([each for since, each in self.reports if since < at][-1].items())

    def _fail_emoncms(self) -> None:
        random = Random(f"{self._seed} EmonCMS")
        faults = _drawn(random, "answers", "cuts", "dies", "php stopped", "silent", "refuse", "reset", "stall")
        while not self.ended.wait(random.uniform(1, 4)):
            with self._emoncms_fault(next(faults), random):
                self.ended.wait(random.choice([0.2, 1.0, 3.0, 6.0, 12.0]))

    @contextmanager
    def _emoncms_fault(self, what: str, random: Random) -> Iterator[None]:
        """Let EmonCMS or the connection to it fail, and at random the next posts as well."""
        self._note(f"EmonCMS {what}")
        leaves = what in {"php stopped", "silent", "stall"} and random.random() < 0.5
        match what:
            case "refuse" | "reset" | "stall":
                getattr(self.to_emoncms, what)()
            case "php stopped":
                self.emoncms.fault = HoldsUp()
            case "silent":
                self.emoncms.fault = AnswersLate()
            case _:
                self.emoncms.fault = _post_fault(what, random)
        if what == "reset":
            self.to_emoncms.cut()
        yield
        if leaves:  # the client is gone, but php-fpm goes on with its request when released
            self.to_emoncms.cut()
            self.ended.wait(random.choice([0.5, 3.0]))
        # The backlog goes out in one post or several, and a lost answer matters most then.
        self.emoncms.fail_next(
            *(_post_fault(random.choice(["answers", "cuts", "dies"]), random) for _ in range(random.choice([0, 1, 2])))
        )
        self.emoncms.fault = None
        self.emoncms.release()
        self.to_emoncms.pass_through()

    def _fail_gateway(self) -> None:
        random = Random(f"{self._seed} gateway")
        faults = _drawn(random, "cut", "end", "garbage", "refuse", "reset", "stall", "drip", "flood", "canned")
        while not self.ended.wait(random.uniform(6, 20)):
            begin = time.monotonic()
            with self._gateway_fault(next(faults), random):
                self.ended.wait(random.choice([1.0, 3.0, 8.0]))
            for diary in self.diaries.values():
                # Both ends notice a moment later that a connection was cut in the middle.
                diary.unwell.append((begin, time.monotonic() + 1))

    @contextmanager
    def _gateway_fault(self, what: str, random: Random) -> Iterator[None]:
        """Let the gateway or the connections to it fail."""
        self._note(f"gateway {what}")
        after, answer = random.randrange(900), random.choice(CANNED)
        if what == "garbage":
            self.gateway.emit_raw(GARBAGE)
        elif what == "end":
            self.gateway.end_streams()
        for proxy in self.to_gateway:
            if what == "cut":
                proxy.cut(after)
            elif what == "canned":
                proxy.canned(answer)
                proxy.cut()
            elif what not in {"garbage", "end"}:
                getattr(proxy, what)()
        yield
        for proxy in self.to_gateway:
            if what in {"stall", "drip", "flood"}:
                proxy.cut()
            proxy.pass_through()

    def _fail_clocks(self) -> None:
        random = Random(f"{self._seed} clocks")
        while not self.ended.wait(random.uniform(2, 10)):
            self.clocks.jump(random.randint(-CLOCK_WRONG_S, CLOCK_WRONG_S) - self.clocks.ahead)
            self._note("jump of the clock")

    def _fail_daemons(self) -> None:
        random = Random(f"{self._seed} daemons")
        while not self.ended.wait(random.uniform(4, 12)):
            name, kill, pause = random.choice(list(NODES)), random.random() < 0.3, random.choice([0.0, 0.0, 2.0])
            # Rows of a run that never had an answer from EmonCMS keep dates of its own wrong clock, which is accepted.
            while self.emoncms.posted[NODES[name]] < self.started[name] and not self.ended.wait(0.1):
                pass
            if not self.ended.is_set():
                self._restart(name, pause, kill=kill)

    def _restart(self, name: str, pause: float, *, kill: bool) -> None:
        self._note("kill" if kill else "restart")
        daemon, diary, begin = self.daemons[name], self.diaries[name], time.monotonic()
        if daemon.process.poll() is not None:
            self.complaints.append(f"{name} ended by itself: {daemon.lines[-20:]}")
        self._measure(name)
        if kill:
            diary.kills.append(begin)
            daemon.kill()
        elif daemon.terminate()[0]:
            self.complaints.append(f"{name} ended badly: {daemon.lines[-20:]}")
        self.ended.wait(pause)
        self._start(name)
        diary.unwell.append((begin, time.monotonic()))

    def _start(self, name: str) -> None:
        self.started[name] = time.monotonic()
        self.daemons[name].start().wait_for_notify("READY=1")

    def _measure(self, name: str) -> None:
        if self.daemons[name].process.poll() is None:
            self.memory = max(self.memory, self.daemons[name].memory()[1])

    def _note(self, what: str) -> None:
        self.faults[what] = self.faults.get(what, 0) + 1

    def _rows(self) -> list[AppliedRow]:
        return list(self.emoncms.rows)

    def _numbers(self) -> list[int]:
        return [int(row.inputs[NUMBER]) for row in self._rows() if row.node == NODES["stream"]]

    def _until(self, holds: Callable[[], bool]) -> None:
        try:
            self.emoncms.wait_for(holds, SETTLES_WITHIN_S)
        except TimeoutError as error:
            self.complaints.append(f"does not settle: {error}")


def _drawn(random: Random, *faults: str) -> Iterator[str]:
    """Draw faults without end, in rounds that each contain every fault once."""
    while True:
        yield from random.sample(faults, len(faults))


def _post_fault(what: str, random: Random) -> Failure:
    applied = random.choice([0, 1, 3, 20, None])
    if what == "dies":
        return Dies(applied or 0)
    if what == "cuts":
        return Cuts(applied)
    answer = random.choice([PHP_DOWN, MARIADB_DOWN, Answers(500), Answers(200)])
    return Answers(answer.status, answer.body, applied)


def _arrivals(rows: list[AppliedRow]) -> list[Arrival]:
    return [Arrival(_identity(row), row.time, row.arrived) for row in rows]


def _identity(row: AppliedRow) -> object:
    """Return what the row was made from: an event's number, or a report's serial number and date."""
    if row.node == NODES["stream"]:
        return int(row.inputs[NUMBER])
    return next(iter(row.inputs)).partition("_")[0], row.time


def _inputs(number: int, short: set[int]) -> dict[str, Decimal]:
    """Return the inputs that an event has to become."""
    event = json.loads(_event(number, short), parse_float=Decimal, parse_int=Decimal)
    return {
        f"{name}_{phase}_{key}": values[quantity]
        for name in ("prod", "cons", "net")
        for phase, values in event.get(SECTION_NAMES[name], {}).items()
        for key, quantity in {"wNow": "p", "rmsVoltage": "v", "rmsCurrent": "i", "pwrFactor": "pf"}.items()
    }


def _event(number: int, short: set[int]) -> str:
    event = ONLY_PRODUCTION if number in short else THREE_PHASE_EVENT
    return event.replace('"p":54.745', f'"p":{number}', 1)


def main() -> int:
    """Run the soak, print its results, and return 1 if a promise is broken, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Both daemons between failing neighbours."
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        soak = Soak(arguments.seed, stack)
        soak.run(arguments.minutes * 60)
        verdicts, error = soak.verdicts(), kwh_error(soak.emoncms.account)
    faults = ", ".join(f"{what} {count}" for what, count in sorted(soak.faults.items()))
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes, {len(soak.rejected)} events rejected; {faults}")
    print(f"{'':<16}" + "".join(f"{name:>12}" for name in verdicts))
    for column in asdict(Verdict()):
        print(f"{column.replace('_', ' '):<16}" + "".join(f"{getattr(v, column):>12}" for v in verdicts.values()))
    print(f"{'kWh error':<16}{error:>12.9f}\n{'largest memory':<16}{soak.memory / 2**20:>8.1f} MiB")
    for complaint in soak.complaints:
        print(f"BROKEN: {complaint}")
    broken = soak.complaints or error or any(v.broken for v in verdicts.values()) or soak.memory > LARGEST_MEMORY
    print("a promise is BROKEN" if broken else "every promise is kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
