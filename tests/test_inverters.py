"""From the inverters' reports to EmonCMS's inputs: which reports are posted, and how often the gateway is polled."""

import json
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import inverters
from envoy2emon.gateway.client import INVERTERS, Lost, NotFound, Refused
from envoy2emon.inverters import Inverters, Poller
from tests.conftest import StartDaemon
from tests.gateways import asked


def posted(emoncms: StandInEmonCMS, start: int = 0) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the rows from `start` on by serial number: date, and inputs in the digits in which they came."""
    rows = {}
    for row in emoncms.rows[start:]:
        assert row.node == "Envoy-S-inverters"
        names = {name.partition("_")[2]: str(value) for name, value in row.inputs.items()}
        rows[next(iter(row.inputs)).partition("_")[0]] = (row.time, names)
    assert len(rows) == len(emoncms.rows[start:])
    return rows


def expected(units: list[dict[str, Any]]) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the rows that a list of inverters must become, in the form of posted()."""
    return {
        unit["serialNumber"]: (
            unit["lastReportDate"],
            {"wNow": str(unit["lastReportWatts"]), "wMax": str(unit["maxReportWatts"])},
        )
        for unit in units
    }


def test_only_news(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """At the start all reports are posted in one request with their own dates, later only those that have changed."""
    process = daemon("inverters", INVERTERS_INTERVAL_S=1, environment={"WATCHDOG_USEC": "600000"})
    assert f"reads the inverters of the gateway at {envoy.host}" in process.wait_for_line("INFO envoy2emon 1.*").string
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)
    assert posted(emoncms) == expected(envoy.inverters)
    envoy.wait_for(lambda: asked(envoy).count((INVERTERS, 200)) >= 3)
    assert emoncms.requests == 2  # the first question, and the post
    for unit in envoy.inverters[3:5]:
        unit["lastReportDate"] += 60
        unit["lastReportWatts"] += 1
    emoncms.wait_for(lambda: len(emoncms.rows) >= 14)
    assert posted(emoncms, 12) == expected(envoy.inverters[3:5])
    assert (emoncms.requests, {request.user for request in envoy.requests}) == (3, {None, "envoy"})
    watts = sum(unit["lastReportWatts"] for unit in envoy.inverters)
    process.wait_for_notify(rf"STATUS=12 inverters, {watts} W; newest report \d+ s ago; nothing is waiting")
    assert process.terminate() == 0
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) >= 26)
    assert posted(emoncms, 14) == expected(envoy.inverters)


GOOD = '[{"serialNumber":"1","lastReportDate":1700000000,"lastReportWatts":1,"maxReportWatts":2}]'


class ScriptedGateway:
    """Answers or raises as scripted, after so many seconds by its own clock; the script's end ends the poller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *script: tuple[float, str | Exception]) -> None:
        self.info: Any = None
        self.now = 0.0
        self.asked: list[float] = []
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self._script = iter(script)
        monkeypatch.setattr("envoy2emon.inverters.time.monotonic", lambda: self.now)
        monkeypatch.setattr("envoy2emon.inverters.threading.Event", lambda: self)
        monkeypatch.setattr("envoy2emon.outage.random.random", lambda: 1.0)

    def text(self, _path: str) -> str:
        """Return or raise what the script has next."""
        took, answer = next(self._script)
        self.asked.append(self.now)
        self.now += took
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0
        self.now += seconds

    def poller(self, interval: float) -> Poller:
        """Return the poller after it has played the whole script."""
        gateway: Any = self
        poller = Poller(gateway, self.inbox, interval)
        with suppress(StopIteration):
            poller.run(lambda: None)
        return poller


def test_skipped_dead_and_batteries(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Units without serial number, date or watts, units silent for a week, and batteries are one line each.

    Dates of 0 or of 2018 occur (HA 103871). Batteries are posted, but do not count as production. Silence is measured
    from the newest report, not by this computer's clock.
    """
    caplog.set_level("INFO")
    newest = 1_700_000_000
    units = inverters(12, newest)
    units[1]["devType"] = 11
    never = {"serialNumber": "122000000001", "lastReportDate": 0, "lastReportWatts": 0}
    nameless = {"lastReportDate": newest, "lastReportWatts": 5}
    powerless = {"serialNumber": "122000000003", "lastReportDate": newest, "lastReportWatts": None}
    removed = {"serialNumber": "122000000004", "lastReportDate": 1514764800, "lastReportWatts": 7}
    answer = json.dumps([*units, never, nameless, powerless, removed, removed | {"serialNumber": "122000000005"}])
    gateway = ScriptedGateway(monkeypatch, (0.0, json.dumps([never])), (0.0, answer), (0.0, answer))
    poller = gateway.poller(20)
    rows: list[Any] = []
    ticks: list[int] = []
    other: Any = SimpleNamespace(
        append=rows.extend, status=lambda: "nothing is waiting", tick_now=lambda: ticks.append(len(rows))
    )
    main = Inverters(other, other, lambda: newest + 400 * 86400.0)
    main.take(gateway.inbox.get())
    assert main.status(poller) == "no report yet; nothing is waiting"
    main.take(gateway.inbox.get())
    main.take(gateway.inbox.get())
    assert [row.date for row in rows] == [unit["lastReportDate"] for unit in units]
    assert ticks == [0, 0]  # until there is a report, each answer has the status sent at once
    watts = sum(unit["lastReportWatts"] for unit in units) - units[1]["lastReportWatts"]
    assert main.status(poller) == f"12 inverters, {watts} W; newest report 400 d 0 h ago; nothing is waiting"
    lacks = "gateway: not posted, for lack of a serial number, date or watts"
    assert caplog.messages == [
        f"{lacks}: inverter 122000000001",
        f"{lacks}: entry 14, inverter 122000000003",
        "treated as removed and not posted, because they last reported before 2023-11-07: 122000000004, 122000000005",
        f"AC batteries, posted like inverters but not summed as production: {units[1]['serialNumber']}",
    ]


@pytest.mark.parametrize(
    ("ahead", "words"), [(-3 * 3600.0, "3 h 0 min behind"), (4000.0, "67 min ahead of"), (60.0, "")]
)
def test_a_gateways_clock_that_is_off_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ahead: float, words: str
) -> None:
    """The gateway's clock dates the inverters' reports: if it is more than an hour off, one WARNING says so."""
    gateway = ScriptedGateway(monkeypatch, (0.0, GOOD), (0.0, GOOD))
    gateway.info = SimpleNamespace(ahead=ahead)
    gateway.poller(20)
    said = f"the gateway's clock, which dates the inverters' reports, is {words} this computer's"
    assert caplog.messages == [said] * bool(words)


@pytest.mark.parametrize(
    ("interval", "script", "expected"),
    [
        # An answer that takes more than half the interval doubles the time to the next poll; a quick one resets it.
        (20, [(3.0, GOOD), (11.0, GOOD), (21.0, GOOD), (1.0, GOOD), (0.0, GOOD)], [20, 40, 80, 20]),
        # However short the interval, a slow gateway is left alone for as long as its answer took.
        (1, [(15.0, GOOD), (15.0, GOOD), (0.0, GOOD), (0.0, GOOD)], [30, 30, 1]),
        # A failure doubles the time, up to five minutes; the next good answer resets it.
        (
            20,
            [(0.0, GOOD), *[(5.0, Lost("away")), (5.0, "[]"), (5.0, NotFound("404"))] * 2, (0.0, GOOD), (0.0, GOOD)],
            [20, 40, 80, 160, 300, 300, 300, 20],
        ),
        # An interval above five minutes is kept whatever fails.
        (900, [(1.0, Lost("away")), (500.0, GOOD), (0.0, GOOD)], [900, 900]),
        # Wrong credentials are tried again five minutes after each refusal.
        (1, [*[(2.0, Refused("no"))] * 3, (0.0, GOOD), (0.0, GOOD)], [302, 302, 302, 1]),
    ],
)
def test_when_the_gateway_is_polled(
    monkeypatch: pytest.MonkeyPatch, interval: float, script: list[tuple[float, str | Exception]], expected: list[float]
) -> None:
    """The gateway is never polled more often than the owner says, and less while it is slow, fails or refuses."""
    gateway = ScriptedGateway(monkeypatch, *script)
    gateway.poller(interval)
    assert [round(later - earlier, 3) for earlier, later in pairwise(gateway.asked)] == expected


SWITCH_OFF = "if it never does, switch this daemon off: sudo systemctl disable --now envoy2emon_inv"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("[]", "the inverters' answer is an empty list"),  # at night
        (NotFound("404"), f"this gateway does not list its inverters (404): {SWITCH_OFF}"),  # R3
    ],
)
def test_no_inverters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str | Exception, words: str
) -> None:
    """An answer without inverters is one WARNING, with the cure if the gateway may never list them."""
    ScriptedGateway(monkeypatch, (0.0, answer), (0.0, answer), (0.0, GOOD)).poller(20)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", f"gateway: {words}")
