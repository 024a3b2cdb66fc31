"""Both daemons between neighbours that fail: `python -m tests.soak --minutes N --seed S`.

The law of this file: the seed draws the faults, tests/ledger.py counts, and a broken promise is exit code 1.
Events come five times as fast as an Envoy's, and faults far more often.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Literal
from urllib.parse import urlsplit

from envoy2emon.simulator import SimulatedEnvoy
from envoy2emon.simulator_gate import INVERTERS, STREAM
from envoy2emon.simulator_site import THREE_PHASE_EVENT
from envoy2emon.standin import Fault, StandInEmonCMS
from tests.daemons import Daemon
from tests.emoncms import FATAL_ERROR
from tests.faultproxy import FaultProxy
from tests.ledger import Arrival, Diary, Verdict, judge_reports, judge_stream

EVENTS_EVERY_S = 0.2
REPORTS_EVERY_S = 1.5
SERIALS = [str(number) for number in range(2001, 2007)]
LARGEST_MEMORY = 64 * 1024 * 1024
# The longest waits before the next attempt are 60 s (EmonCMS) and 30 s (Envoy), a fifth longer by chance.
SETTLES_WITHIN_S = 150.0
WHO = "prod_ph-a_reactPower"


class Soak:
    """The neighbours, the daemons, and what is known of them; `ended` ends the faults, `silent` the Envoy as well."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        self.ended, self.silent = Event(), Event()
        self.sent: list[tuple[float, bool]] = []
        self.sent_wall: list[float] = []
        self.reports: list[tuple[float, frozenset[tuple[str, int]]]] = []
        self.faults = self.restarts = self.memory = self.written = 0
        self.complaints: list[str] = []
        self._seed = seed
        self.emoncms = stack.enter_context(StandInEmonCMS())
        self.envoy = stack.enter_context(SimulatedEnvoy())
        self.to_emoncms = stack.enter_context(FaultProxy("127.0.0.1", urlsplit(self.emoncms.url).port or 0))
        self.to_envoy = stack.enter_context(FaultProxy(*self.envoy.address))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {
            "ENVOY_HOST": f"127.0.0.1:{self.to_envoy.port}",
            "ENVOY_PASSWORD": self.envoy.password,
            "EMONCMS_URL": f"http://127.0.0.1:{self.to_emoncms.port}/emoncms",
            "EMONCMS_APIKEY": self.emoncms.key,
            "STREAM_KEYS": "wNow,reactPower,rmsVoltage,rmsCurrent",
            "STREAM_TIMEOUT_S": 5,
            "INVERTERS_INTERVAL_S": 1,
        }
        self._publish(dict.fromkeys(SERIALS, int(time.time()) - 3600))
        self.daemons = {name: Daemon(name, directory / name, settings) for name in ("stream", "inverters")}
        self.diaries = {name: Diary() for name in self.daemons}
        for name, daemon in self.daemons.items():
            self._start(name)
            stack.callback(daemon.kill)

    def run(self, seconds: float) -> None:
        """Let the neighbours and daemons fail for so long, then let all settle."""
        loops = [self._send_events, self._send_reports, self._fail_emoncms, self._fail_envoy, self._fail_daemons]
        threads = [Thread(target=loop, name=loop.__name__) for loop in loops]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds)
        self.ended.set()
        for thread in threads[2:]:
            thread.join()
        number = len(self.sent)
        self._until(lambda: any(event >= number for event in self._events()[-9:]))
        self.silent.set()
        for thread in threads[:2]:
            thread.join()
        self._until(lambda: self._events()[-1] == len(self.sent) - 1 and self.reports[-1][1] <= self._reports())
        for name, daemon in self.daemons.items():
            daemon.notifications.clear()
            daemon.wait_for_notify(r"backlog 0\b", SETTLES_WITHIN_S)
            self._measure(name)
            code, _ = daemon.terminate()
            left = [path.name for path in daemon.state.iterdir()]
            if code or left:
                self.complaints.append(f"{name}: exit code {code}, left behind {left}")

    def verdicts(self) -> dict[str, Verdict]:
        """Count."""
        events, reports = [], []
        for row in self.emoncms.rows:
            if row.node == "Envoy-S":
                number = int(row.inputs[WHO])
                events.append(Arrival(number, row.time - self.sent_wall[number], row.arrived))
            else:
                serial = next(iter(row.inputs)).partition("_")[0]
                reports.append(Arrival((serial, row.time), 0.0, row.arrived))
        asked = [r.at for r in self.envoy.requests if (r.path, r.status) == (INVERTERS, 200)]
        polls = [(at, [known for since, known in self.reports if since < at][-1]) for at in asked]
        return {
            "stream": judge_stream(self.sent, events, self.diaries["stream"]),
            "inverters": judge_reports(polls, reports, self.diaries["inverters"]),
        }

    def _send_events(self) -> None:
        number, due = 0, time.monotonic()
        while not self.silent.wait(max(0.0, due - time.monotonic())):
            self.sent_wall.append(time.time())
            self.sent.append((time.monotonic(), self.envoy.open_streams > 0))
            self.envoy.emit(THREE_PHASE_EVENT.replace('"q":155.094', f'"q":{number}', 1))
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
        random = Random(f"{self._seed} EmonCMS")
        answers: list[tuple[int, str] | Literal["cut"]] = [
            (500, ""),
            (502, "<h1>"),
            (200, FATAL_ERROR),
            (200, ""),
            "cut",
        ]
        while not self.ended.wait(random.uniform(1, 6)):
            begin, lasts = time.monotonic(), random.choice([0.2, 2.0, 4.0, 8.0, 45.0])
            what = random.choice(["answer", "answer", "answer", "refuse", "reset", "stall", "silence"])
            if what == "answer":
                self.emoncms.fault = Fault(random.choice(answers), random.choice([0, 0, 1, 3, 20, None]))
            elif what == "silence":
                self.emoncms.fault = Fault("hang", applied=None)
            else:
                getattr(self.to_emoncms, what)()
            if what == "reset":
                self.to_emoncms.cut()
            self.ended.wait(lasts)
            self.emoncms.fault = None
            # What waited goes out as one post, or several: that is when an answer that gets lost matters most.
            for _ in range(random.choice([0, 1, 2])):
                self.emoncms.fail_next(Fault(random.choice(answers), random.choice([1, 3, 10, None])))
            if what in {"stall", "silence"}:
                self.to_emoncms.cut()
            self.to_emoncms.pass_through()
            self.emoncms.release()
            self.faults += 1
            for diary in self.diaries.values():
                diary.slow.append((begin, time.monotonic()))

    def _fail_envoy(self) -> None:
        random = Random(f"{self._seed} Envoy")
        garbage = b'data: {"production":\n\n: a comment\n\ndata: []\n\nx'
        while not self.ended.wait(random.uniform(6, 20)):
            begin, lasts = time.monotonic(), random.choice([1.0, 3.0, 8.0])
            what = random.choice(["cut", "end", "garbage", "refuse", "reset", "stall", "drip", "flood", "canned"])
            if what == "garbage":
                self.envoy.emit_raw(garbage)
            elif what == "end":
                self.envoy.end_streams()
            elif what == "cut":
                self.to_envoy.cut(random.randrange(900))
            elif what == "canned":
                self.to_envoy.canned(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                self.to_envoy.cut()
            else:
                getattr(self.to_envoy, what)()
            self.ended.wait(lasts)
            if what in {"stall", "drip", "flood"}:
                self.to_envoy.cut()
            self.to_envoy.pass_through()
            self.faults += 1
            for diary in self.diaries.values():
                # A connection that was cut in the middle is known to be so by both ends a moment later.
                diary.disturbed.append((begin, time.monotonic() + 1))
                diary.slow.append((begin, time.monotonic() + 1))

    def _fail_daemons(self) -> None:
        random = Random(f"{self._seed} daemons")
        while not self.ended.wait(random.uniform(4, 15)):
            name = random.choice(list(self.daemons))
            daemon, diary = self.daemons[name], self.diaries[name]
            if daemon.process.poll() is not None:
                self.complaints.append(f"{name} ended by itself: {daemon.lines[-20:]}")
            self._measure(name)
            begin = time.monotonic()
            if random.random() < 0.4:
                diary.kills.append(begin)
                daemon.kill()
            elif daemon.terminate()[0]:
                self.complaints.append(f"{name} ended badly: {daemon.lines[-20:]}")
            self.ended.wait(random.choice([0.0, 0.0, 2.0]))
            self._start(name)
            diary.disturbed.append((begin, time.monotonic()))
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
        verdicts = soak.verdicts()
    minutes = (soak.sent[-1][0] - soak.sent[0][0]) / 60
    print(f"seed {arguments.seed}: {minutes:.1f} minutes, {soak.faults} faults, {soak.restarts} restarts and kills")
    columns = list(Verdict.__dataclass_fields__)
    print(f"{'':<16}" + "".join(f"{name:>12}" for name in verdicts))
    for column in columns:
        print(f"{column.replace('_', ' '):<16}" + "".join(f"{getattr(v, column):>12}" for v in verdicts.values()))
    print(f"largest memory: {soak.memory / 1e6:.1f} MB; written to disk: {soak.written / 1e6:.1f} MB")
    streams = sum(request.path == STREAM and request.status == 200 for request in soak.envoy.requests)
    print(f"requests to the Envoy per minute: {len(soak.envoy.requests) / minutes:.1f}; streams opened: {streams}")
    for complaint in soak.complaints:
        print(f"BROKEN: {complaint}")
    broken = soak.complaints or any(verdict.broken for verdict in verdicts.values()) or soak.memory > LARGEST_MEMORY
    print("a promise is BROKEN" if broken else "every promise is kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
