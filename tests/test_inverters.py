"""From the inverters' reports to EmonCMS's inputs: which reports are posted, and how often the gateway is polled."""

import time
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import pytest

from envoy2emon.demo.emoncms import MARIADB_DOWN, StandInEmonCMS
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy
from envoy2emon.demo.site import inverters
from envoy2emon.gateway.client import INVERTERS, Lost, NotFound, Refused
from envoy2emon.inverters import Poller
from tests.conftest import StartDaemon


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


def polls(envoy: SimulatedEnvoy) -> list[float]:
    """Return the times of the requests to which the gateway answered with its inverters."""
    return [request.at for request in envoy.requests if (request.path, request.status) == (INVERTERS, 200)]


def test_only_news(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """At the start all reports are posted in one request with their own dates, later only those that have changed.

    The gateway is asked every INVERTERS_INTERVAL_S, counted from the start of each poll.
    """
    process = daemon("inverters", INVERTERS_INTERVAL_S=1, environment={"WATCHDOG_USEC": "600000"})
    assert f"reads the inverters of the gateway at {envoy.host}" in process.wait_for_line("INFO envoy2emon 1.*").string
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)
    assert posted(emoncms) == expected(envoy.inverters)
    envoy.wait_for(lambda: len(polls(envoy)) >= 3)
    assert 1.8 < polls(envoy)[2] - polls(envoy)[0] < 2.5  # as the gateway sees it, give or take its own delay
    assert emoncms.requests == 2  # the first question, and the post
    for unit in envoy.inverters[3:5]:
        unit["lastReportDate"] += 60
        unit["lastReportWatts"] += 1
    emoncms.wait_for(lambda: len(emoncms.rows) >= 14)
    assert posted(emoncms, 12) == expected(envoy.inverters[3:5])
    assert (emoncms.requests, {request.user for request in envoy.requests}) == (3, {None, "envoy"})
    watts = sum(unit["lastReportWatts"] for unit in envoy.inverters)
    process.wait_for_notify(rf"STATUS=12 inverters, {watts} W; newest report \d+ s ago; nothing is waiting")
    assert process.terminate()[0] == 0
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) >= 26)
    assert posted(emoncms, 14) == expected(envoy.inverters)


def test_not_acknowledged(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A report counts as posted only when EmonCMS says so: after Fatal errors and a restart it still arrives once."""
    emoncms.fault = MARIADB_DOWN
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    process.wait_for_line("WARNING EmonCMS: .*out of order")
    assert process.terminate()[0] == 0
    emoncms.fault = None
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) >= 12)
    envoy.wait_for(lambda: len(polls(envoy)) >= 3)
    assert posted(emoncms) == expected(envoy.inverters)


def test_skipped_dead_and_batteries(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Units without serial number, date or watts are one WARNING and skipped; units silent for a week are one line.

    Dates of 0 or of 2018 occur (HA 103871), and so do 51 units; a serial number listed twice is posted with its newest
    report. Batteries are posted, but do not count as production. Silence is measured from the newest report, not by
    this computer's clock.
    """
    newest = int(time.time()) - 400 * 86400
    units = inverters(51, newest)
    units[1]["devType"] = 11
    again = {**units[5], "lastReportDate": units[5]["lastReportDate"] - 300}
    envoy.inverters = [
        *units,
        again,
        {"serialNumber": "122000000001", "lastReportDate": 0, "lastReportWatts": 0, "maxReportWatts": 0},
        {"lastReportDate": newest, "lastReportWatts": 5, "maxReportWatts": 5},
        {"serialNumber": "122000000003", "lastReportDate": newest, "lastReportWatts": None, "maxReportWatts": 5},
        {"serialNumber": "122000000004", "lastReportDate": 1514764800, "lastReportWatts": 7, "maxReportWatts": 9},
        {"serialNumber": "122000000006", "lastReportDate": 1514764900, "lastReportWatts": 7, "maxReportWatts": 9},
    ]
    process = daemon("inverters", INVERTERS_INTERVAL_S=1, environment={"WATCHDOG_USEC": "600000"})
    envoy.wait_for(lambda: len(polls(envoy)) == 3)
    emoncms.wait_for(lambda: len(emoncms.rows) >= 51)
    watts = sum(unit["lastReportWatts"] for unit in units) - units[1]["lastReportWatts"]
    process.wait_for_notify(rf"STATUS=51 inverters, {watts} W; newest report 400 d \d+ h ago")
    process.terminate()
    assert posted(emoncms) == expected(units)
    (warning,) = [line for line in process.lines if "WARNING gateway: not posted" in line]
    assert warning.endswith("date or watts: entry 54, inverter 122000000001, inverter 122000000003")
    (dead,) = [line for line in process.lines if "treated as removed" in line]
    assert dead.endswith(": 122000000004, 122000000006")
    (batteries,) = [line for line in process.lines if "AC batteries" in line]
    assert batteries.endswith(units[1]["serialNumber"])


def test_inverters_that_never_reported(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A list of units that have never reported posts nothing and is no failure."""
    good, envoy.inverters = envoy.inverters, [{**unit, "lastReportDate": 0} for unit in envoy.inverters]
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    process.wait_for_line("WARNING gateway: not posted, for lack of a serial number, date or watts")
    envoy.inverters = good
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)


def test_a_gateways_clock_that_is_off_is_logged(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """The gateway's clock dates the inverters' reports: if it is more than an hour off, one WARNING says so."""
    serial = f"<device><sn>{envoy.serial}</sn><software>{envoy.firmware}</software><imeter>true</imeter></device>"
    now = int(time.time()) - 3 * 3600
    envoy.answers["/info"] = Answer(200, f"<envoy_info><time>{now}</time>{serial}</envoy_info>")
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    process.wait_for_line("WARNING the gateway's clock, which dates the inverters' reports, is 3 h 0 min behind")
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)


def test_no_page_of_inverters(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """R3 answers 404 to the inverters' page: a WARNING says so, with the cure."""
    envoy.answers[INVERTERS] = Answer(404)
    process = daemon("inverters")
    process.wait_for_line("WARNING gateway: this gateway does not list its inverters .*disable --now envoy2emon_inv")


def test_user(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """If only the installer may read inverters, the ERROR says what to set, and that works."""
    envoy.digest.envoy_reads_inverters = False
    process = daemon("inverters")
    line = process.wait_for_line("ERROR gateway: .*").string
    assert "refuses user envoy (401): are ENVOY_INVERTERS_USER and ENVOY_INVERTERS_PASSWORD right?" in line
    assert "some firmware needs installer" in line
    process.terminate()
    process.settings |= {"ENVOY_INVERTERS_USER": "installer", "ENVOY_INVERTERS_PASSWORD": envoy.password}
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)


GOOD = '[{"serialNumber":"1","lastReportDate":1700000000,"lastReportWatts":1,"maxReportWatts":2}]'


class ScriptedGateway:
    """Answers or raises as scripted, after so many seconds by its own clock; the script's end ends the poller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *script: tuple[float, str | Exception]) -> None:
        self.info = None
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

    def poll(self, interval: float) -> list[float]:
        """Return the times between the starts of all polls."""
        gateway: Any = self
        with suppress(StopIteration):
            Poller(gateway, self.inbox, interval).run(lambda: None)
        return [round(later - earlier, 3) for earlier, later in pairwise(self.asked)]


@pytest.mark.parametrize(
    ("interval", "script", "expected"),
    [
        # An answer that takes more than half the interval doubles the time to the next poll; a quick one resets it.
        (20, [(3.0, GOOD), (11.0, GOOD), (21.0, GOOD), (1.0, GOOD), (0.0, GOOD)], [20, 40, 80, 20]),
        # However short the interval, a slow gateway is left alone for as long as its answer took.
        (1, [(15.0, GOOD), (15.0, GOOD), (0.0, GOOD), (0.0, GOOD)], [30, 30, 1]),
        # A failure doubles the time, up to five minutes; the next good answer resets it.
        (20, [(0.0, GOOD), *[(5.0, Lost("away"))] * 6, (0.0, GOOD), (0.0, GOOD)], [20, 40, 80, 160, 300, 300, 300, 20]),
        (20, [(0.0, GOOD), *[(5.0, "[]")] * 6, (0.0, GOOD), (0.0, GOOD)], [20, 40, 80, 160, 300, 300, 300, 20]),
        (20, [*[(0.0, NotFound("404"))] * 2, (0.0, GOOD), (0.0, GOOD)], [40, 80, 20]),
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
    assert ScriptedGateway(monkeypatch, *script).poll(interval) == expected


@pytest.mark.parametrize(
    "answer", ["[]", "<html><body>busy</body></html>", GOOD[:30], '{"error": 3}', "[[[" * 1_000, ""]
)
def test_bad_answers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str) -> None:
    """[] at night, an HTML page, cut JSON, a wrong type: each is logged once and crashes nothing."""
    ScriptedGateway(monkeypatch, (0.0, answer), (0.0, answer), (0.0, GOOD)).poll(20)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("gateway: the inverters' answer is ")
