"""The reader: stream or reports, outages, sites without meters, and what is logged about the meters."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy, make_token
from envoy2emon.demo.logins import STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT, reports
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.client import METERS, REPORTS, Lost, NotFound, Refused
from envoy2emon.gateway.info import Info
from envoy2emon.gateway.reader import NO_METERS, STREAM_AGAIN_S, Reader
from envoy2emon.gateway.readings import parse_event
from envoy2emon.outage import REFUSED_WAIT_S
from tests import fixtures
from tests.certificates import Certificate
from tests.gateways import asked, client_of, settings_of

EVENT = f"data: {THREE_PHASE_EVENT}\n\n".encode()
LISTED = json.dumps([{"measurementType": "production", "state": "enabled"}])
METERED = Info("https://envoy", "122112345678", "D8.3.6086", needs_token=True, metered=True, ahead=0.0)


class _End(Exception):
    """The script is over."""


class Script:
    """A gateway with its own clock that follows a script: for each request, an error or an answer.

    stream: an error, or a list of chunks: seconds until an event comes, or bytes. reports: an error, the seconds that
    an answer takes (it has a new date every two seconds), or its text. Where the script ends, so does the reader.
    """

    def __init__(
        self,
        *stream: Exception | list[float | bytes],
        reports: list[Any] | None = None,
        meters: str | Exception = LISTED,
        **more: str,
    ) -> None:
        self.info: Info | None = METERED
        self.now = 0.0
        self.asked: list[tuple[str, float]] = []
        self.waits: list[float] = []
        self.inbox: SimpleQueue[Arrival | None] = SimpleQueue()
        self.jitter = 0.0
        self.meters = meters
        self._stream, self._reports = iter(stream), iter(reports or [])
        gateway: Any = self
        self.reader = Reader(
            gateway, self.inbox, settings_of(**more), lambda: self.now, lambda: self.jitter, self._wait
        )

    def run(self) -> list[Arrival]:
        """Run the reader to the end of the script, and return what arrived."""
        with pytest.raises(_End):
            self.reader.run(lambda: None)
        arrived = [self.inbox.get() for _ in range(self.inbox.qsize())]
        return [arrival for arrival in arrived if arrival]

    def times(self, page: str) -> list[float]:
        """Return when a page was asked for."""
        return [at for each, at in self.asked if each == page]

    @contextmanager
    def stream(self, silence: float) -> Iterator[Iterator[bytes]]:
        """Stand in for Gateway.stream."""
        self.asked.append(("stream", self.now))
        yield self._pieces(self._next(self._stream), silence)

    def _pieces(self, happens: list[float | bytes], silence: float) -> Iterator[bytes]:
        for each in happens:
            if isinstance(each, bytes):
                yield each
            else:
                self.now += min(each, silence)
                if each > silence:
                    raise Lost("silent")
                yield EVENT
        raise Lost("the stream has ended")

    def text(self, path: str, _patience: float = 60) -> str:
        """Stand in for Gateway.text."""
        if path == METERS:
            if isinstance(self.meters, Exception):
                raise self.meters
            return str(self.meters)
        assert path == REPORTS
        self.asked.append(("reports", self.now))
        took = self._next(self._reports)
        if isinstance(took, str):
            return took
        self.now += took
        return json.dumps(reports(THREE_PHASE_EVENT, int(self.now / 2) + 1))

    def _next(self, script: Iterator[Any]) -> Any:  # noqa: ANN401
        happens = next(script, _End())
        if isinstance(happens, Exception):
            raise happens
        return happens

    def _wait(self, seconds: float) -> None:
        assert seconds >= 0
        self.waits.append(seconds)
        self.now += seconds


def said(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    """Return what was logged at a level."""
    return [record.getMessage() for record in caplog.records if record.levelname == level]


AWAY, DENIED, MISSING = Lost("away"), NotFound("not for owners"), NotFound("answers 404")


# --- Outages


def test_backoff() -> None:
    """Waits double from 1 s to 30 s, so there are at most six attempts in any minute; jitter only lengthens waits."""
    for jitter in (0.0, 1.0):
        script = Script(*[AWAY] * 30)
        script.jitter = jitter
        script.run()
        assert script.waits == pytest.approx([wait * (1 + 0.2 * jitter) for wait in (1, 2, 4, 8, 16, *[30] * 25)])
        attempts = script.times("stream")
        assert all(len([at for at in attempts if start <= at < start + 60]) <= 6 for start in attempts)


def test_flapping_is_no_recovery() -> None:
    """A stream that breaks off within a minute does not bring the waits back to 1 s; one that lasts a minute does."""
    script = Script(AWAY, [5.0], [5.0], [59.0], [30.0, 30.0], [5.0])
    script.run()
    assert script.waits == [1, 2, 4, 8, 1, 2]


def test_refused_once_in_five_minutes() -> None:
    """After Refused there is one attempt in five minutes; it neither lengthens nor shortens the other waits."""
    script = Script(AWAY, Refused("no"), Refused("no"), AWAY)
    script.run()
    assert script.waits == [1, REFUSED_WAIT_S, REFUSED_WAIT_S, 2]


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A long outage is logged once when it begins and once when it ends, with how long it lasted."""
    caplog.set_level("INFO", "envoy2emon.outage")
    Script(*[AWAY] * 20, [59.0, 2.0], AWAY).run()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if "outage" in record.name]
    assert lines == [
        ("WARNING", "gateway: away"),
        ("INFO", "gateway: back after 9 min"),
        ("WARNING", "gateway: the stream has ended"),
    ]


# --- The stream


def test_what_comes_goes_on_at_once() -> None:
    """An opened connection gives an Arrival without readings; each chunk's events give one with the time they came."""
    half = EVENT[:500]
    script = Script([1.0, half, EVENT[500:] + EVENT, b": nothing\n\n", 2.0])
    arrivals = script.run()
    assert [(arrival.at, len(arrival.readings)) for arrival in arrivals] == [(0.0, 0), (1.0, 1), (1.0, 2), (3.0, 1)]
    assert arrivals[1].readings == (parse_event(THREE_PHASE_EVENT, 1.0),)


def test_a_half_of_an_event_is_not_joined_with_the_next_connection() -> None:
    """A connection that breaks in mid-event loses only that event."""
    arrivals = Script([EVENT[:500]], [EVENT[500:], EVENT]).run()
    assert [len(arrival.readings) for arrival in arrivals] == [0, 0, 1]


def test_garbage_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Events that are not readings are skipped and counted, and logged once."""
    garbage = [b"data: " + each + b"\n\n" for each in (b'{"production":', b"[1]", b"\xff", b"[" * 50_000, b"{}")]
    script = Script([1.0, *garbage, 1.0])
    assert len(script.run()) == 3
    assert script.reader.bad == 5
    assert [words for words in said(caplog, "WARNING") if "skipped" in words] == [
        "gateway: skipped something that is not a reading: not JSON: '{\"production\":'"
    ]


# --- The reports


def test_fixed_rate() -> None:
    """Reports are asked for once a second; after a slow answer the gateway is left alone for as long as it took."""
    script = Script(DENIED, reports=[0.25, 0.5, 0.125, 2.0, 0.75, 0.25, 0.25])
    arrivals = script.run()
    assert [later - earlier for earlier, later in pairwise(script.times("reports"))] == [1, 1, 1, 4, 1.5, 1, 1]
    assert len(arrivals) == len({int(arrival.at / 2) for arrival in arrivals}) == 5  # each createdAt once


def test_stream_is_asked_again_once_a_day() -> None:
    """While reports are read the stream is tried once a day, and if it is still refused, reports are read on."""
    script = Script(DENIED, DENIED, DENIED, reports=[5000.0] * 20, STREAM_TIMEOUT_S="3600")
    script.run()
    times = script.times("stream")
    assert len(times) == 3
    assert all(STREAM_AGAIN_S <= later - earlier < STREAM_AGAIN_S + 10_001 for earlier, later in pairwise(times))


def test_neither() -> None:
    """A gateway that offers neither, like one that is starting, is asked for both with the waits of an outage."""
    script = Script(MISSING, MISSING, [1.0], reports=[MISSING, MISSING])
    assert len(script.run()) == 2
    assert script.asked == [("stream", 0), ("reports", 0), ("stream", 1), ("reports", 1), ("stream", 3), ("stream", 8)]


@pytest.mark.parametrize("source", ["stream", "reports"])
def test_source(source: str) -> None:
    """With STREAM_SOURCE=stream or =reports only that source is asked for, even after Refused."""
    script = Script(*[MISSING, Refused("no")] * 3, reports=[MISSING, Refused("no")] * 3, STREAM_SOURCE=source)
    script.run()
    assert {page for page, _ in script.asked} == {source}
    hint = "; set STREAM_SOURCE=auto to read the meter reports instead" if source == "stream" else ""
    script = Script(MISSING, reports=[MISSING], STREAM_SOURCE=source)
    script.run()
    assert script.reader.outage.reason == f"answers 404{hint}"


def test_reports_that_stand_still() -> None:
    """Reports whose date does not change for STREAM_TIMEOUT_S are an outage, like a stream that stalls."""
    still = json.dumps(reports(THREE_PHASE_EVENT, 1717243199))
    script = Script(DENIED, reports=[still] * 20, STREAM_TIMEOUT_S="10")
    script.run()
    assert script.reader.outage.reason == "the meter reports have not changed for 10 s"


# --- No meters


@pytest.mark.parametrize(
    ("reports", "metered", "meters"),
    [
        ([MISSING], False, MISSING),
        (["[]"], False, MISSING),
        (["[]"], True, "[]"),
        (['[{"createdAt":1,"reportType":"production","lines":[]}]'], True, "[]"),
        ([MISSING], True, "[]"),
    ],
)
def test_no_meters(
    caplog: pytest.LogCaptureFixture, reports: list[Any], meters: str | Exception, *, metered: bool
) -> None:
    """A lack of meters is logged once, with the cure but not as an ERROR, and is checked again every five minutes."""
    script = Script(*[MISSING] * 3, reports=reports * 3, meters=meters)
    script.info = Info("http://envoy", "122112345678", "R3.9.36", needs_token=False, metered=metered, ahead=None)
    assert script.run() == []
    assert script.times("stream") == [0, REFUSED_WAIT_S, 2 * REFUSED_WAIT_S, 3 * REFUSED_WAIT_S]
    assert said(caplog, "ERROR") == []
    assert [words for words in said(caplog, "WARNING") if "skipped" not in words] == [f"gateway: {NO_METERS}"]
    assert script.reader.outage.reason == NO_METERS
    assert "sudo systemctl disable --now envoy2emon" in NO_METERS


def test_meters_that_are_only_silent() -> None:
    """Empty reports from a gateway that lists meters are not a reading, and reports are still asked for."""
    script = Script(DENIED, reports=["[]", "[]", 0.0])
    assert len(script.run()) == 1
    assert script.waits[:2] == [1, 1]


# --- What is logged about the meters


def test_the_meters_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """At the first reading it is logged, once, which meters there are and what is wrong with what is posted."""
    caplog.set_level(logging.INFO)
    meters = json.dumps(fixtures.site_of("net_off")["meters"])
    Script([1.0, 1.0], [1.0], meters=meters).run()
    words = "gateway: its meters: production, 1 phase, on; net-consumption, off"
    assert [each for each in said(caplog, "INFO") if "meters" in each] == [words]
    (told,) = [each for each in said(caplog, "WARNING") if "meter is off" in each]
    assert told.endswith("STREAM_SECTIONS=prod")


@pytest.mark.parametrize("meters", [MISSING, AWAY, Refused("no"), "<html>"])
def test_meters_that_are_not_listed(caplog: pytest.LogCaptureFixture, meters: str | Exception) -> None:
    """If the meters are not listed, as by firmware before 4, or the page fails, readings arrive without a warning."""
    assert len(Script([1.0, 1.0], meters=meters).run()) == 3
    assert not [words for words in said(caplog, "WARNING") if "meter" in words]


# --- With a gateway


@pytest.fixture
def follow() -> Iterator[Callable[[SimulatedEnvoy], SimpleQueue[Arrival | None]]]:
    """Return a function that starts a reader of a gateway and returns its inbox; waits are a tenth as long."""
    ended, threads = Event(), list[Thread]()

    def alive() -> None:
        if ended.is_set():
            raise _End

    def start(envoy: SimulatedEnvoy) -> SimpleQueue[Arrival | None]:
        inbox: SimpleQueue[Arrival | None] = SimpleQueue()
        gateway = client_of(envoy, ENVOY_TOKEN=make_token(envoy.serial, time.time() + 86_400))
        reader = Reader(gateway, inbox, settings_of(), wait=lambda seconds: ended.wait(seconds / 10))

        def run() -> None:
            with suppress(_End):
                reader.run(alive)

        threads.append(Thread(target=run, daemon=True))
        threads[-1].start()
        return inbox

    yield start
    ended.set()
    for thread in threads:
        thread.join(10)


Follow = Callable[[SimulatedEnvoy], SimpleQueue[Arrival | None]]


def sections(inbox: SimpleQueue[Arrival | None]) -> Any:  # noqa: ANN401
    """Return the sections of the next reading."""
    while True:
        arrival = inbox.get(timeout=10)
        assert arrival
        if arrival.readings:
            return arrival.readings[0].sections


@pytest.mark.parametrize("firmware", ["D5.0.62", "D7.0.88", "D7.6.175", "D8.3.6086"])
def test_firmware(certificate: Certificate, follow: Follow, firmware: str) -> None:
    """With an owner's token each firmware gives its readings, by the stream or by the reports."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        fixtures.load(envoy, firmware)
        envoy.metered = True
        event = envoy.event = fixtures.events(firmware)[0]
        envoy.reports = reports(event, int(time.time()))
        inbox = follow(envoy)
        if firmware != "D7.6.175":
            envoy.wait_for_stream()
            envoy.emit(event)
        got = sections(inbox)
        sent = parse_event(event, 0.0).sections
        assert {name: {phase: sent[name][phase] for phase in phases} for name, phases in got.items()} == got
        assert list(got) == list(sent)
        envoy.wait_for(lambda: any(path == METERS for path, _ in asked(envoy)))


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("one_line", [(STREAM, 401), (STREAM, 401), (REPORTS, 200)]),
        ("load_only", [(STREAM, 200)]),
        ("empty_reports", [(STREAM, 401), (REPORTS, 200)]),
    ],
)
def test_site(certificate: Certificate, follow: Follow, name: str, pages: list[tuple[str, int]]) -> None:
    """A site's reading is what its reports say; where they are empty, the list of meters is asked for."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        fixtures.load_site(envoy, name)
        inbox = follow(envoy)
        if pages == [(STREAM, 200)]:
            envoy.wait_for_stream()
            envoy.emit(envoy.event)
        if envoy.reports:
            assert sections(inbox) == parse_event(envoy.event, 0.0).sections
        else:
            envoy.wait_for(lambda: (METERS, 200) in asked(envoy))
        seen = [(path, status) for path, status in asked(envoy) if path in (STREAM, REPORTS)]
        assert set(pages) <= set(seen)


def test_from_stream_to_reports_and_back(certificate: Certificate, follow: Follow) -> None:
    """After an update that closes the stream to owners, the reports give the same readings."""
    with SimulatedEnvoy("D7.0.88", tls=certificate.context) as envoy:
        inbox = follow(envoy)
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
        before = sections(inbox)
        envoy.reports = reports(THREE_PHASE_EVENT, int(time.time()))
        envoy.upgrade("D7.6.175")
        assert sections(inbox) == before
        assert envoy.open_streams == 0
