"""Both daemons between neighbours that fail: `python -m tests.soak --minutes N --seed S`.

The law of this file: the seed draws the faults, tests/ledger.py counts, and a broken promise is exit code 1.
Events come five times as fast as an Envoy's, and faults far more often; now and then one has a section only, or is
one that EmonCMS rejects. The daemons' wall clock jumps by hours. EmonCMS is seldom well for long, so what is written to
disk is printed and not judged: tests/test_reliability.py holds that nothing is while EmonCMS answers.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Event, Thread
from urllib.parse import urlsplit

from envoy2emon.rows import SECTION_NAMES
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.demo.emoncms import StandInEmonCMS
from tests.clocks import Clocks
from tests.daemons import Daemon
from tests.faultproxy import FaultProxy
from tests.ledger import (
    MINUTE_S,
    MOST_ATTEMPTS,
    UNDER_WAY_S,
    Arrival,
    Diary,
    Verdict,
    attempts,
    busiest_minute,
    hammered,
    hasty,
    impatient,
    judge_reports,
    judge_stream,
    runs,
    tardy,
)
from tests.soak_faults import EmonCMSFaults, EnvoyFaults

EVENTS_EVERY_S = 0.2
REPORTS_EVERY_S = 1.5
POLLS_EVERY_S = 1
SERIALS = [str(number) for number in range(2001, 2007)]
LARGEST_MEMORY = 64 * 1024 * 1024
# The longest waits before the next attempt are 60 s (EmonCMS) and 30 s (Envoy), a fifth longer by chance.
SETTLES_WITHIN_S = 150.0
# An inverter that has not reported for a week by the wall clock is taken for dead: jumps stay well below.
CLOCK_WRONG_S = 12 * 3600
WHO = "prod_ph-a_reactPower"
ONLY_PRODUCTION = json.dumps({"production": json.loads(THREE_PHASE_EVENT)["production"]}, separators=(",", ":"))


class _EmonCMS(StandInEmonCMS):
    """Notes when it did not say, or not soon, that it had applied a post."""

    def __init__(self) -> None:
        super().__init__()
        self.unclear: list[tuple[float, float]] = []

    def answer(self, path: str, params: Mapping[str, str], key: str) -> tuple[int, str] | None:
        """Answer as ever."""
        begin = time.monotonic()
        answer = super().answer(path, params, key)
        if answer != (200, "ok") or time.monotonic() - begin > UNDER_WAY_S:
            self.unclear.append((begin, time.monotonic()))
        return answer


class Soak:
    """The neighbours, the daemons, and what is known of them; `ended` ends the faults, `silent` the Envoy as well."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        self.ended, self.silent = Event(), Event()
        self.sent: list[tuple[float, bool]] = []
        self.sent_wall: list[float] = []
        self.reports: list[tuple[float, frozenset[tuple[str, int]]]] = []
        self.failing: list[tuple[float, float]] = []
        self.refusing: list[tuple[float, float]] = []
        self.losing: list[tuple[float, float]] = []
        self.unauthorized = 0.0  # when EmonCMS refused the key last
        self.short: set[int] = set()
        self.rejected: set[int] = set()
        self.faults = self.restarts = self.jumps = self.memory = self.written = 0
        self.complaints: list[str] = []
        self._seed = seed
        self.emoncms = stack.enter_context(_EmonCMS())
        self.envoy = stack.enter_context(SimulatedEnvoy())
        self.to_emoncms = stack.enter_context(FaultProxy("127.0.0.1", urlsplit(self.emoncms.url).port or 0))
        self.emoncms.account.reject = lambda _, inputs: inputs.get(WHO) in self.rejected
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.clocks = Clocks(directory / "clocks")
        settings = {
            "ENVOY_PASSWORD": self.envoy.password,
            "EMONCMS_URL": f"http://127.0.0.1:{self.to_emoncms.port}/emoncms",
            "EMONCMS_APIKEY": self.emoncms.key,
            "STREAM_KEYS": "wNow,reactPower,rmsVoltage,rmsCurrent",
            "STREAM_TIMEOUT_S": 5,
            "INVERTERS_INTERVAL_S": POLLS_EVERY_S,
        }
        self._publish(dict.fromkeys(SERIALS, int(time.time()) - 3600))
        self.daemons: dict[str, Daemon] = {}
        self.to_envoy: dict[str, FaultProxy] = {}
        self.diaries = {"stream": Diary(), "inverters": Diary()}
        for name in self.diaries:
            proxy = self.to_envoy[name] = stack.enter_context(FaultProxy(*self.envoy.address))
            host = {"ENVOY_HOST": f"127.0.0.1:{proxy.port}"}
            daemon = self.daemons[name] = Daemon(name, directory / name, settings | host)
            daemon.environment |= self.clocks.environment
            self._start(name)
            stack.callback(daemon.kill)

    def run(self, seconds: float) -> None:
        """Let the neighbours and daemons fail for so long, then let all settle."""
        sending = [self._send_events, self._send_reports]
        failing = [self._fail_emoncms, self._fail_envoy, self._fail_clocks, self._fail_daemons]
        threads = [Thread(target=self._live, args=(loop,)) for loop in (*sending, *failing)]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds)
        self.ended.set()
        for thread in threads[2:]:
            thread.join()
        refused = max([self.unauthorized, *(end for _, end in self.refusing)])
        for name in self.daemons:
            if self.diaries[name].starts[-1] < refused + 1:  # it may wait for minutes: as after a change of the key
                self._restart(name, 0.0, kill=False)
        number = len(self.sent)
        self._until(lambda: any(event >= number for event in self._events()[-9:]))
        self.silent.set()
        for thread in threads[:2]:
            thread.join()
        self._until(lambda: self._events()[-1:] == [len(self.sent) - 1] and self.reports[-1][1] <= self._reports())
        for name, daemon in self.daemons.items():
            daemon.notifications.clear()
            try:
                daemon.wait_for_notify(r"backlog 0\b", SETTLES_WITHIN_S)
            except AssertionError as error:
                self.complaints.append(f"{name} does not settle: {error}")
            self._measure(name)
            code, _ = daemon.terminate()
            left = [path.name for path in daemon.state.iterdir()]
            if code or left:
                self.complaints.append(f"{name}: exit code {code}, left behind {left}")

    def _live(self, loop: Callable[[], None]) -> None:
        """Run a thread; one that dies, as of a daemon that does not start, ends the soak."""
        try:
            loop()
        except Exception:  # noqa: BLE001 - whatever it is, the verdict tells it
            self.complaints.append(f"{loop.__name__} died: {traceback.format_exc()}")
            self.ended.set()

    def verdicts(self) -> dict[str, Verdict]:
        """Count."""
        events, reports = [], []
        for row in self.emoncms.rows:
            if row.node == "Envoy-S":
                number = int(row.inputs[WHO])
                if row.inputs != _inputs(number, self.short):
                    self.complaints.append(f"event {number} arrived as {row.inputs}")
                events.append(Arrival(number, row.time - self.sent_wall[number], row.arrived))
            else:
                serial = next(iter(row.inputs)).partition("_")[0]
                if [*row.inputs.values()] != [row.time % 300, 300]:
                    self.complaints.append(f"a report of {row.time} arrived as {row.inputs}")
                reports.append(Arrival((serial, row.time), 0.0, row.arrived))
        asked = [r.at for r in self.envoy.requests if (r.path, r.status) == (INVERTERS, 200)]
        polls = [(at, [known for since, known in self.reports if since < at][-1]) for at in asked]
        for diary in self.diaries.values():
            diary.unclear += self.emoncms.unclear
        return {
            "stream": judge_stream(self.sent, events, self.diaries["stream"]),
            "inverters": judge_reports(polls, reports, self.diaries["inverters"]),
        }

    def busiest_minutes(self) -> dict[str, int]:
        """Count each daemon's attempts to get something from the Envoy; complain of what is too often."""
        lives = {name: runs(attempts(proxy.visits), self.diaries[name].starts) for name, proxy in self.to_envoy.items()}
        busiest = {name: max(map(busiest_minute, each)) for name, each in lives.items()}
        # The inverters' daemon polls as often as it was told to, unless polls fail.
        for name, most in {"stream": MOST_ATTEMPTS, "inverters": MINUTE_S / POLLS_EVERY_S + 1}.items():
            if busiest[name] > most:
                self.complaints.append(f"{name}: {busiest[name]} attempts in a minute")
        for name, life in ((name, life) for name, each in lives.items() for life in each):
            if waits := impatient(life, self.refusing):
                self.complaints.append(f"{name}: asked again {waits} s after it was refused")
        self._count_connections()
        starts = [*self.diaries["stream"].starts, math.inf]
        for life, when in zip(lives["stream"], pairwise(starts), strict=True):
            if late := tardy(life, (when[0], min(when[1], self.sent[-1][0])), self.losing):
                self.complaints.append(f"stream: did not try again in time after the faults that ended at {late}")
        for life in lives["inverters"]:
            if waits := hasty(life, self.failing, POLLS_EVERY_S):
                self.complaints.append(f"inverters: polls that failed were repeated after {waits} s")
        return busiest

    def _count_connections(self) -> None:
        for name, proxy in self.to_envoy.items():
            if counts := hammered(proxy.visits, self.diaries[name].starts, self.failing):
                self.complaints.append(f"{name}: {counts} connections in a minute, none of which could succeed")

    def _send_events(self) -> None:
        random = Random(f"{self._seed} events")
        number, due = 0, time.monotonic()
        while not self.silent.wait(max(0.0, due - time.monotonic())):
            if random.random() < 0.1:
                self.short.add(number)
            if random.random() < 0.02 and not self.ended.is_set():
                self.rejected.add(number)
            self.sent_wall.append(time.time())
            self.sent.append((time.monotonic(), self.envoy.open_streams > 0 and number not in self.rejected))
            self.envoy.emit(_event(number, self.short))
            number, due = number + 1, due + EVENTS_EVERY_S

    def _send_reports(self) -> None:
        random = Random(f"{self._seed} reports")
        dates = dict(self.reports[-1][1])
        while not self.silent.wait(REPORTS_EVERY_S):
            dates[random.choice(SERIALS)] += 60
            self._publish(dates)

    def _publish(self, dates: dict[str, int]) -> None:
        self.envoy.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": date % 300, "maxReportWatts": 300}
            for serial, date in dates.items()
        ]
        self.reports.append((time.monotonic(), frozenset(dates.items())))

    def _fail_emoncms(self) -> None:
        faults = EmonCMSFaults(self.emoncms, self.to_emoncms, Random(f"{self._seed} EmonCMS"))
        while not self.ended.wait(faults.random.uniform(1, 6)):
            begin = time.monotonic()
            self.ended.wait(faults.begin())
            faults.end()
            self.faults += 1
            for diary in self.diaries.values():
                diary.unclear.append((begin, time.monotonic()))
            if faults.refusing:
                self.unauthorized = time.monotonic()

    def _fail_envoy(self) -> None:
        faults = EnvoyFaults(self.envoy, list(self.to_envoy.values()), Random(f"{self._seed} Envoy"))
        while not self.ended.wait(faults.random.uniform(6, 24)):
            begin = time.monotonic()
            lasts = faults.begin()
            begun = time.monotonic()
            self.ended.wait(lasts)
            if faults.failing:
                self.failing.append((begun, time.monotonic()))
            if faults.refusing:
                self.refusing.append((begun, time.monotonic() - 1))  # who comes later may be let in
            faults.end()
            self.faults += 1
            if faults.losing:
                self.losing.append((begin, time.monotonic()))
            for diary in self.diaries.values():
                # A connection that was cut in the middle is known to be so by both ends a moment later.
                diary.disturbed.append((begin, time.monotonic() + 1))

    def _fail_clocks(self) -> None:
        random = Random(f"{self._seed} clocks")
        while not self.ended.wait(random.uniform(2, 10)):
            self.clocks.jump(random.randint(-CLOCK_WRONG_S, CLOCK_WRONG_S) - self.clocks.ahead)
            self.jumps += 1

    def _fail_daemons(self) -> None:
        random = Random(f"{self._seed} daemons")
        while not self.ended.wait(random.uniform(4, 15)):
            name, kill = random.choice(list(self.daemons)), random.random() < 0.4
            self._restart(name, random.choice([0.0, 0.0, 2.0]), kill=kill)

    def _restart(self, name: str, pause: float, *, kill: bool) -> None:
        daemon, diary = self.daemons[name], self.diaries[name]
        if daemon.process.poll() is not None:
            self.complaints.append(f"{name} ended by itself: {daemon.lines[-20:]}")
        self._measure(name)
        begin = time.monotonic()
        if kill:
            diary.kills.append(begin)
            daemon.kill()
        elif daemon.terminate()[0]:
            self.complaints.append(f"{name} ended badly: {daemon.lines[-20:]}")
        self.ended.wait(pause)
        self._start(name)
        diary.restarts.append((begin, time.monotonic()))
        self.restarts += 1

    def _start(self, name: str) -> None:
        self.diaries[name].starts.append(time.monotonic())
        self.daemons[name].start().wait_for_notify("READY=1")

    def _measure(self, name: str) -> None:
        daemon = self.daemons[name]
        if daemon.process.poll() is None:
            self.memory = max(self.memory, daemon.memory()[1])
            self.written += daemon.written()[0]

    def _events(self) -> list[int]:
        return [int(row.inputs[WHO]) for row in list(self.emoncms.rows) if row.node == "Envoy-S"]

    def _reports(self) -> set[tuple[str, int]]:
        rows = [row for row in list(self.emoncms.rows) if row.node != "Envoy-S"]
        return {(next(iter(row.inputs)).partition("_")[0], row.time) for row in rows}

    def _until(self, holds: Callable[[], bool]) -> None:
        try:
            self.emoncms.wait_for(holds, SETTLES_WITHIN_S)
        except TimeoutError as error:
            self.complaints.append(f"does not settle: {error}")


def _inputs(number: int, short: set[int]) -> dict[str, Decimal]:
    """Return what becomes of an event: STREAM_KEYS of its sections."""
    event = json.loads(_event(number, short), parse_float=Decimal, parse_int=Decimal)
    return {
        f"{name}_{phase}_{key}": values[quantity]
        for name, section in SECTION_NAMES.items()
        for phase, values in event.get(section, {}).items()
        for key, quantity in {"wNow": "p", "reactPower": "q", "rmsVoltage": "v", "rmsCurrent": "i"}.items()
    }


def _event(number: int, short: set[int]) -> str:
    event = ONLY_PRODUCTION if number in short else THREE_PHASE_EVENT
    return event.replace('"q":155.094', f'"q":{number}', 1)


def main() -> int:
    """Soak, print what came of it, and return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Both daemons between failing neighbours."
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        soak = Soak(arguments.seed, stack)
        soak.run(arguments.minutes * 60)
        verdicts, busiest = soak.verdicts(), soak.busiest_minutes()
    minutes = (soak.sent[-1][0] - soak.sent[0][0]) / 60
    troubles = f"{soak.faults} faults, {soak.restarts} restarts and kills, {soak.jumps} jumps of the clock"
    print(f"seed {arguments.seed}: {minutes:.1f} minutes, {troubles}, {len(soak.rejected)} events rejected")
    columns = list(Verdict.__dataclass_fields__)
    print(f"{'':<16}" + "".join(f"{name:>12}" for name in verdicts))
    for column in columns:
        print(f"{column.replace('_', ' '):<16}" + "".join(f"{getattr(v, column):>12}" for v in verdicts.values()))
    print(f"largest memory: {soak.memory / 1e6:.1f} MB; written to disk: {soak.written / 1e6:.1f} MB")
    streams = sum(request.path == STREAM and request.status == 200 for request in soak.envoy.requests)
    print(f"requests to the Envoy per minute: {len(soak.envoy.requests) / minutes:.1f}; streams opened: {streams}")
    print("most attempts in a minute: " + ", ".join(f"{name} {count}" for name, count in busiest.items()))
    for complaint in soak.complaints:
        print(f"BROKEN: {complaint}")
    broken = soak.complaints or any(verdict.broken for verdict in verdicts.values()) or soak.memory > LARGEST_MEMORY
    print("a promise is BROKEN" if broken else "every promise is kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
