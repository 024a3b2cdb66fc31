"""From the inverters' reports to EmonCMS's inputs: what is news, and how gently the gateway is asked."""

import time
from contextlib import suppress
from typing import Any

import pytest

from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.connection import Refused
from envoy2emon.inverters import Poller
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.logins import INVERTERS
from envoy2emon.demo.site import inverters
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests import fixtures
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
    """Return what a list of inverters must be posted as."""
    return {
        unit["serialNumber"]: (
            unit["lastReportDate"],
            {"wNow": str(unit["lastReportWatts"]), "wMax": str(unit["maxReportWatts"])},
        )
        for unit in units
    }


def polls(envoy: SimulatedEnvoy) -> list[float]:
    """Return when the inverters were asked for and given."""
    return [request.at for request in envoy.requests if (request.path, request.status) == (INVERTERS, 200)]


def test_only_news(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """At start all reports are posted once in one request with their own dates, then those that have changed.

    The gateway is asked every INVERTERS_INTERVAL_S, from start to start.
    """
    process = daemon("inverters", INVERTERS_INTERVAL_S=1, environment={"WATCHDOG_USEC": "600000"})
    assert f"reads the inverters of the Envoy at {envoy.host}" in process.wait_for_line("INFO envoy2emon 1.*").string
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)
    assert posted(emoncms) == expected(envoy.inverters)
    assert emoncms.requests == 1
    envoy.wait_for(lambda: len(polls(envoy)) >= 3)
    assert 1.8 < polls(envoy)[2] - polls(envoy)[0] < 2.5  # seen from the gateway, which may be late by turns
    assert emoncms.requests == 1
    for unit in envoy.inverters[3:5]:
        unit["lastReportDate"] += 60
        unit["lastReportWatts"] += 1
    emoncms.wait_for(lambda: len(emoncms.rows) >= 14)
    assert posted(emoncms, 12) == expected(envoy.inverters[3:5])
    assert (emoncms.requests, {request.user for request in envoy.requests}) == (2, {None, "envoy"})
    watts = sum(unit["lastReportWatts"] for unit in envoy.inverters)
    process.wait_for_notify(rf"STATUS=12 inverters, {watts} W; newest report \d+ s ago; backlog 0")
    assert process.terminate()[0] == 0
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) >= 26)
    assert posted(emoncms, 14) == expected(envoy.inverters)


def test_not_acknowledged(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A report counts as posted only when EmonCMS says so: after Fatal errors and a restart it still arrives once."""
    emoncms.fault = Fault((200, "<b>Fatal error</b>: out of order"))
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    process.wait_for_line("WARNING EmonCMS: .*Fatal error")
    assert process.terminate()[0] == 0
    emoncms.fault = None
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) >= 12)
    envoy.wait_for(lambda: len(polls(envoy)) >= 3)
    assert posted(emoncms) == expected(envoy.inverters)


def test_skipped_and_dead(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """What has no serial number, date or watts is skipped (WARNING once), who is silent for a week is dead (INFO once).

    devType may be missing or 11, a battery; a date of 0 or of 2018 occurs (HA 103871); 51 units at once occur.
    """
    now = int(time.time())
    units = inverters(51, now)
    del units[0]["devType"]
    units[1]["devType"] = 11
    envoy.inverters = [
        *units,
        {"serialNumber": "122000000001", "lastReportDate": 0, "lastReportWatts": 0, "maxReportWatts": 0},
        {"lastReportDate": now, "lastReportWatts": 5, "maxReportWatts": 5},
        {"serialNumber": "122000000003", "lastReportDate": now, "lastReportWatts": None, "maxReportWatts": 5},
        {"serialNumber": "122000000004", "lastReportDate": 1514764800, "lastReportWatts": 7, "maxReportWatts": 9},
        {"serialNumber": "122000000005", "lastReportDate": now - 6 * 86400, "lastReportWatts": 0, "maxReportWatts": 9},
    ]
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    envoy.wait_for(lambda: len(polls(envoy)) == 3)
    emoncms.wait_for(lambda: len(emoncms.rows) >= 52)
    process.terminate()
    assert posted(emoncms) == expected([*units, envoy.inverters[-1]])
    assert emoncms.requests == 1
    (warning,) = [line for line in process.lines if "WARNING" in line]
    assert warning.endswith("date or watts: entry 53, inverter 122000000001, inverter 122000000003")
    (dead,) = [line for line in process.lines if "dead" in line]
    assert "inverter 122000000004 last reported " in dead


@pytest.mark.parametrize("firmware", fixtures.FIRMWARES[:2])
def test_fixtures(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, firmware: str) -> None:
    """The inverters of firmware 3 and 5 arrive; those of 7 and 8 do in test_firmware."""
    fixtures.load(envoy, firmware)
    daemon("inverters")
    units = [unit for unit in envoy.inverters if unit["lastReportDate"] > time.time() - 86400]
    emoncms.wait_for(lambda: len(emoncms.rows) >= len(units))
    assert posted(emoncms) == expected(units)


def test_bad_answer(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A bad answer is a WARNING, and the next good one is posted."""
    good, envoy.inverters = envoy.inverters, "[]"
    process = daemon("inverters", INVERTERS_INTERVAL_S=1)
    process.wait_for_line("WARNING Envoy: the inverters' answer is an empty list")
    envoy.inverters = good
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)
    process.wait_for_line("INFO Envoy: back after 2 s")


def test_user(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Where only the installer may read inverters, the ERROR says what to set, and that helps."""
    envoy.digest.envoy_reads_inverters = False
    process = daemon("inverters")
    line = process.wait_for_line("ERROR Envoy: .*").string
    assert "refuses user envoy (401): are ENVOY_INVERTERS_USER and ENVOY_INVERTERS_PASSWORD right?" in line
    assert "some firmware wants installer" in line
    process.terminate()
    process.settings |= {"ENVOY_INVERTERS_USER": "installer", "ENVOY_INVERTERS_PASSWORD": envoy.password}
    process.start()
    emoncms.wait_for(lambda: len(emoncms.rows) == 12)


class ScriptedEnvoy:
    """Takes so many seconds by a clock of its own for each answer, or raises; the script's end ends the poller."""

    def __init__(self, *script: tuple[float, str | Exception]) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._script = iter(script)

    def inverters(self) -> str:
        """Answer."""
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
        envoy: Any = self
        poller = Poller(envoy, lambda _: None, interval, lambda: self.now, lambda: 1.0, self.wait)
        with suppress(StopIteration):
            poller.run(lambda: None)
        return [later - earlier for earlier, later in zip(self.asked, self.asked[1:], strict=False)]


GOOD = '[{"serialNumber":"1","lastReportDate":1700000000,"lastReportWatts":1,"maxReportWatts":2}]'


def test_slow_gateway_is_polled_less() -> None:
    """An answer that takes more than half the interval doubles the time to the next poll, a quick one ends that."""
    script = [(3.0, GOOD), (11.0, GOOD), (21.0, GOOD), (1.0, GOOD), (0.0, GOOD)]
    assert ScriptedEnvoy(*script).poll(20) == [20, 40, 80, 20]


def test_slow_gateway_rests_as_long_as_it_took() -> None:
    """However short the interval, a gateway that is slow is left in peace for as long as it took."""
    assert ScriptedEnvoy((15.0, GOOD), (15.0, GOOD), (0.0, GOOD), (0.0, GOOD)).poll(1) == [30, 30, 1]


@pytest.mark.parametrize("failure", [StreamLost("away"), "[]"])
def test_failing_gateway_is_polled_less(failure: str | Exception) -> None:
    """A failure doubles the time to the next poll up to five minutes; the next good answer ends that."""
    script = [(0.0, GOOD), *[(5.0, failure)] * 6, (0.0, GOOD), (0.0, GOOD)]
    assert ScriptedEnvoy(*script).poll(20) == [20, 40, 80, 160, 300, 300, 300, 20]


def test_a_good_answer_ends_all_waits() -> None:
    """After a long failure and a good answer the next failure doubles the interval, and no more."""
    away = (0.0, StreamLost("away"))
    assert ScriptedEnvoy(*[away] * 9, (0.0, GOOD), away, (0.0, GOOD)).poll(1)[-2:] == [1, 2]


def test_never_more_often_than_asked() -> None:
    """An interval above five minutes is kept whatever fails."""
    assert ScriptedEnvoy((1.0, StreamLost("away")), (500.0, GOOD), (0.0, GOOD)).poll(900) == [900, 900]


def test_refused_is_polled_every_five_minutes() -> None:
    """Wrong credentials are tried once in five minutes, counted from the refusal."""
    assert ScriptedEnvoy(*[(2.0, Refused("no"))] * 3, (0.0, GOOD), (0.0, GOOD)).poll(1) == [302, 302, 302, 1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("[]", "an empty list"),
        ("<html><body>busy</body></html>", "an HTML page"),
        (GOOD[:30], "not JSON"),
        ('{"error": 3}', "a JSON dict in place of a list"),
        ("[[[" * 1_000, "not JSON"),
        ("", "an empty answer"),
    ],
)
def test_bad_answers(caplog: pytest.LogCaptureFixture, answer: str, words: str) -> None:
    """[] at night, a page, cut JSON, a wrong type: each is said once, in its own words, and is no crash."""
    ScriptedEnvoy((0.0, answer), (0.0, answer), (0.0, GOOD)).poll(20)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()[:34]) == ("WARNING", "Envoy: the inverters' answer is " + words[:2])
    assert words in record.getMessage()
