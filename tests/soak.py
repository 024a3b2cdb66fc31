"""Both daemons between a gateway and an EmonCMS that fail: `python -m tests.soak --minutes N --seed S`.

The seed determines the faults, tests/ledger.py judges, and a broken promise gives exit code 1. Events come five times
as fast as a real gateway's, and faults far more often. No daemon's login or key is ever refused, because the daemon
would then wait for five minutes.
"""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict
from random import Random
from threading import Event

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
from envoy2emon.demo.logins import INVERTERS
from tests.clocks import Clocks
from tests.ledger import Arrival, Diary, Verdict, judge
from tests.peers import INPUT, NUMBERED
from tests.trial import NODES, Trial, arguments

EVENTS_EVERY_S = 0.2
REPORTS_EVERY_S = 1.5
SERIALS = [str(number) for number in range(2001, 2007)]
# The longest wait before the next attempt at EmonCMS is 60 s, plus up to a fifth at random.
SETTLES_WITHIN_S = 150.0
CLOCK_WRONG_S = 12 * 3600
REJECTED_EVERY = 50  # of the events, EmonCMS rejects each fiftieth
ONLY_PRODUCTION = NUMBERED.partition(',"net-consumption"')[0] + "}"
GARBAGE = b'data: {"production":\n\n: a comment\n\ndata: []\n\nx'


class _EmonCMS(StandInEmonCMS):
    """Notes when each daemon's last post came in, because a daemon that posts has learnt EmonCMS's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.posted = dict.fromkeys(NODES, 0.0)

    def answer(self, target: str, body: bytes = b"", content_type: str = "", authorization: str = "") -> Answer | None:
        """Note a post, and answer as the stand-in does."""
        if "input/bulk" in target:
            self.posted["inverters" if b"inverters" in body else "stream"] = time.monotonic()
        return super().answer(target, body, content_type, authorization)


class Soak(Trial):
    """A trial, and what is known of it: what was sent when, when something was unwell, and how often.

    ended: ends the faults. silent: ends the gateway's events and reports as well.
    """

    def __init__(self, seed: int, stack: ExitStack) -> None:
        emoncms = _EmonCMS()
        super().__init__(stack, emoncms, stream_timeout_s=5)
        self.ended, self.silent = Event(), Event()
        self.count = 0  # of events
        self.counts = Counter[str]()
        self._seed = seed
        self._sent: list[tuple[float, int]] = []
        self._reports: list[tuple[float, dict[str, int]]] = []
        self._diaries = {name: Diary() for name in NODES}
        self._started: dict[str, float] = {}
        self._posted = emoncms.posted
        self._clocks = Clocks(self.directory / "clocks")
        emoncms.account.reject = lambda _, inputs: (
            inputs.get(INPUT, 1) % REJECTED_EVERY == 0 and not self.ended.is_set()
        )
        self._publish(dict.fromkeys(SERIALS, int(time.time()) - 3600))
        for name, daemon in self.daemons.items():
            daemon.environment |= self._clocks.environment
            self.start(name)

    def start(self, name: str) -> None:
        """Start a daemon, and note when."""
        self._started[name] = time.monotonic()
        super().start(name)

    def run(self, seconds: float) -> None:
        """Let the gateway, EmonCMS and the daemons fail for `seconds`, let everything settle, and end the daemons."""
        loops = [self._fail_emoncms, self._fail_gateway, self._fail_clocks, self._fail_daemons]
        with ThreadPoolExecutor(6) as pool:
            sending = [pool.submit(self._send_events), pool.submit(self._send_reports)]
            failing = [pool.submit(loop) for loop in loops]
            wait(sending + failing, seconds, FIRST_EXCEPTION)
            self.ended.set()
            wait(failing)
            self.emoncms.next_faults.clear()
            number = self.count
            self._until(lambda: max(self._numbers()[-9:], default=0) >= number)
            self.silent.set()
        for each in sending + failing:
            if error := each.exception():
                self.complaints.append("".join(traceback.format_exception(error)))
        newest = self._reports[-1][1].items()
        self._until(
            lambda: (
                self._numbers()[-1:] == [self.count] and newest <= {_identity(row) for row in self._rows("inverters")}
            )
        )
        for name, daemon in self.daemons.items():
            daemon.notifications.clear()
            try:
                daemon.wait_for_notify("nothing is waiting", SETTLES_WITHIN_S)
            except AssertionError as error:
                self.complaints.append(f"{name} does not settle: {error}")
            self.end(name)
            if left := [path.name for path in daemon.state.glob("*.sqlite*")]:
                self.complaints.append(f"{name} left behind {left}")

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdict on each daemon, and complain of each that is bad."""
        events, reports = self._rows("stream"), self._rows("inverters")
        forms = {
            (_is_short(_number(row)), frozenset(row.inputs.items() - {(INPUT, row.inputs[INPUT])})) for row in events
        }
        if len(forms) > 2:
            self.complaints.append(f"beside their numbers, events arrived in {len(forms)} forms, not in two")
        for row in reports:
            if [*row.inputs.values()] != [row.time % 300, 300]:
                self.complaints.append(f"a report of {row.time} arrived as {row.inputs}")
        polls = [request.at for request in self.gateway.requests if (request.path, request.status) == (INVERTERS, 200)]
        # A report published just before a poll may or may not be in its answer.
        sent = [(at, item) for at in polls for item in self._published(at - 0.05) & self._published(at)]
        epoch = time.time() - time.monotonic()
        verdicts = {
            "stream": judge(self._sent, events, _arrivals(events), self._diaries["stream"], epoch),
            "inverters": judge(sent, reports, _arrivals(reports), self._diaries["inverters"]),
        }
        self.complaints += [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict.broken]
        return verdicts

    def _send_events(self) -> None:
        due = time.monotonic()
        while not self.silent.wait(max(0.0, due - time.monotonic())):
            number, due = self.count + 1, due + EVENTS_EVERY_S
            if number % REJECTED_EVERY and self.gateway.open_streams > 0:
                self._sent.append((time.monotonic(), number))
            self.gateway.emit((ONLY_PRODUCTION if _is_short(number) else NUMBERED) % number)
            self.count = number

    def _send_reports(self) -> None:
        random = Random(f"{self._seed} reports")
        dates = dict(self._reports[-1][1])
        while not self.silent.wait(REPORTS_EVERY_S):
            dates[random.choice(SERIALS)] += 60
            self._publish(dict(dates))

    def _publish(self, dates: dict[str, int]) -> None:
        self.gateway.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": date % 300, "maxReportWatts": 300}
            for serial, date in dates.items()
        ]
        self._reports.append((time.monotonic(), dates))

    def _published(self, at: float) -> set[tuple[str, int]]:
        return set([each for since, each in self._reports if since < at][-1].items())

    def _fail_emoncms(self) -> None:
        """Let EmonCMS or the connection to it fail, and at random the next posts as well."""
        random = Random(f"{self._seed} EmonCMS")
        for fault in _drawn(random, "answers", "cuts", "dies", "php stopped", "silent", "refuse", "reset", "stall"):
            if self.ended.wait(random.uniform(1, 4)):
                return
            self.counts["faults"] += 1
            match fault:
                case "refuse" | "reset" | "stall":
                    getattr(self.to_emoncms, fault)()
                case "php stopped":
                    self.emoncms.fault = HoldsUp()
                case "silent":
                    self.emoncms.fault = AnswersLate()
                case _:
                    self.emoncms.fault = _post_fault(fault, random)
            self.ended.wait(random.choice([0.2, 1.0, 3.0, 6.0, 12.0]))
            if fault in {"php stopped", "silent", "stall"} and random.random() < 0.5:
                # The client is gone, but php-fpm goes on with its request when released.
                self.to_emoncms.cut()
                self.ended.wait(random.choice([0.5, 3.0]))
            # The backlog goes out in one post or several, and a lost answer matters most then.
            next_faults = random.choices(["answers", "cuts", "dies"], k=random.choice([0, 1, 2]))
            self.emoncms.fail_next(*(_post_fault(each, random) for each in next_faults))
            self.emoncms.fault = None
            self.emoncms.release()
            self.to_emoncms.pass_through()

    def _fail_gateway(self) -> None:
        """Let the connections to the gateway fail, or its stream be garbled."""
        random = Random(f"{self._seed} gateway")
        for fault in _drawn(random, "cut", "garbage", "refuse", "reset", "stall", "drip"):
            if self.ended.wait(random.uniform(6, 20)):
                return
            self.counts["faults"] += 1
            begin = time.monotonic()
            match fault:
                case "cut":
                    self.to_gateway.cut(random.randrange(900))
                case "garbage":
                    self.gateway.emit_raw(GARBAGE)
                case _:
                    getattr(self.to_gateway, fault)()
            self.ended.wait(random.choice([1.0, 3.0, 8.0]))
            if fault in {"stall", "drip"}:
                self.to_gateway.cut()
            self.to_gateway.pass_through()
            for diary in self._diaries.values():
                # Both ends notice a moment later that a connection was cut in the middle.
                diary.unwell.append((begin, time.monotonic() + 1))

    def _fail_clocks(self) -> None:
        random = Random(f"{self._seed} clocks")
        while not self.ended.wait(random.uniform(2, 10)):
            self._clocks.jump(random.randint(-CLOCK_WRONG_S, CLOCK_WRONG_S) - self._clocks.ahead)
            self.counts["jumps of the clock"] += 1

    def _fail_daemons(self) -> None:
        random = Random(f"{self._seed} daemons")
        while not self.ended.wait(random.uniform(4, 12)):
            name, kill, pause = random.choice(list(NODES)), random.random() < 0.3, random.choice([0.0, 0.0, 2.0])
            # Rows of a run that never had an answer from EmonCMS keep dates of its own wrong clock, which is accepted.
            while self._posted[name] < self._started[name]:
                if self.ended.wait(0.1):
                    return
            self.counts["restarts and kills"] += 1
            diary, begin = self._diaries[name], time.monotonic()
            if kill:
                diary.kills.append(begin)
            self.end(name, kill=kill)
            self.ended.wait(pause)
            self.start(name)
            diary.unwell.append((begin, time.monotonic()))

    def _rows(self, name: str) -> list[AppliedRow]:
        return [row for row in list(self.emoncms.rows) if row.node == NODES[name]]

    def _numbers(self) -> list[int]:
        return [_number(row) for row in self._rows("stream")]

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


def _is_short(number: int) -> bool:
    """Return whether an event has one of the three sections only."""
    return number % 10 == 3


def _number(row: AppliedRow) -> int:
    return int(row.inputs[INPUT])


def _arrivals(rows: list[AppliedRow]) -> list[Arrival]:
    return [Arrival(_identity(row), row.time, row.arrived) for row in rows]


def _identity(row: AppliedRow) -> object:
    """Return what the row was made from: an event's number, or a report's serial number and date."""
    return _number(row) if INPUT in row.inputs else (next(iter(row.inputs)).partition("_")[0], row.time)


def main() -> int:
    """Run the soak, print its results, and return 1 if a promise is broken, else 0."""
    given = arguments("tests.soak", "Both daemons between failing neighbours.")
    with ExitStack() as stack:
        soak = Soak(given.seed, stack)
        soak.run(given.minutes * 60)
        counts = "".join(f", {count} {what}" for what, count in sorted(soak.counts.items()))
        print(f"seed {given.seed}, {given.minutes:g} minutes{counts}")
        verdicts = soak.verdicts()
        print(f"{'':<16}" + "".join(f"{name:>12}" for name in verdicts))
        for column in asdict(Verdict()):
            print(f"{column.replace('_', ' '):<16}" + "".join(f"{getattr(v, column):>12}" for v in verdicts.values()))
        return soak.report()


if __name__ == "__main__":
    sys.exit(main())
