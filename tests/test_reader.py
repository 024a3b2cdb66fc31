"""The reader: stream or reports, outages, sites without meters, and what is logged about the meters."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import pytest

from envoy2emon.demo.site import THREE_PHASE_EVENT, reports
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.client import METERS, REPORTS, Lost, NotFound, Refused
from envoy2emon.gateway.info import Info
from envoy2emon.gateway.reader import NO_METERS, STREAM_AGAIN_S, Reader
from envoy2emon.gateway.readings import parse_event
from envoy2emon.outage import REFUSED_WAIT_S
from tests import fixtures
from tests.gateways import settings_of

EVENT = f"data: {THREE_PHASE_EVENT}\n\n".encode()
LISTED = json.dumps([{"measurementType": "production", "state": "enabled"}])
METERED = Info("https://envoy", "122112345678", "D8.3.6086", needs_token=True, metered=True, ahead=0.0)


class _End(Exception):
    """The script is over."""


class Script:
    """A gateway with its own clock that follows a script: for each request, an error or an answer.

    stream: an error, or a list of chunks: bytes, which come after a second, or the seconds until an event comes.
    reports: an error, the seconds that an answer takes (it has a new date every two seconds), or its text. Where the
    script ends, so does the reader.
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
        self._inbox: SimpleQueue[Arrival | None] = SimpleQueue()
        self._meters = meters
        self._stream, self._reports = iter(stream), iter(reports or [])
        gateway: Any = self
        self.reader = Reader(gateway, self._inbox, settings_of(**more), lambda: self.now, lambda: 0.0, self._wait)

    def run(self) -> list[Arrival]:
        """Run the reader to the end of the script, and return what arrived."""
        with pytest.raises(_End):
            self.reader.run(lambda: None)
        arrived = [self._inbox.get() for _ in range(self._inbox.qsize())]
        return [arrival for arrival in arrived if arrival]

    def times(self, page: str) -> list[float]:
        """Return when a page was asked for."""
        return [at for each, at in self.asked if each == page]

    @contextmanager
    def stream(self, _silence: float) -> Iterator[Iterator[bytes]]:
        """Stand in for Gateway.stream."""
        self.asked.append(("stream", self.now))
        yield self._chunks(self._next(self._stream))

    def _chunks(self, script: list[float | bytes]) -> Iterator[bytes]:
        for each in script:
            took, data = (1.0, each) if isinstance(each, bytes) else (each, EVENT)
            self.now += took
            yield data
        raise Lost("the stream has ended")

    def text(self, path: str, _patience: float) -> str:
        """Stand in for Gateway.text."""
        if path == METERS:
            if isinstance(self._meters, Exception):
                raise self._meters
            return self._meters
        assert path == REPORTS
        self.asked.append(("reports", self.now))
        answer = self._next(self._reports)
        if isinstance(answer, str):
            return answer
        self.now += answer
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
    """Waits double from 1 s to 30 s, so there are at most six attempts in any minute."""
    script = Script(*[AWAY] * 8)
    script.run()
    assert script.waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_flapping_is_no_recovery() -> None:
    """A stream that breaks off within a minute does not bring the waits back to 1 s; one that lasts a minute does."""
    script = Script(AWAY, [5.0], [5.0], [59.0], [30.0, 30.0], [5.0])
    script.run()
    assert script.waits == [1, 2, 4, 8, 1, 2]


def test_refused_once_in_five_minutes() -> None:
    """After Refused there is one attempt in five minutes, at the stream; the other waits stay as they are."""
    script = Script(AWAY, DENIED, Refused("no"), AWAY, reports=[Refused("no")])
    script.run()
    assert script.waits == [1, REFUSED_WAIT_S, REFUSED_WAIT_S, 2]


# --- The stream


def test_what_comes_goes_on_at_once() -> None:
    """An opened connection gives an Arrival without readings; each chunk's events give one with the time they came."""
    arrivals = Script([1.0, EVENT[:500], EVENT[500:] + EVENT, b": nothing\n\n", 2.0]).run()
    assert [(arrival.at, len(arrival.readings)) for arrival in arrivals] == [(0.0, 0), (1.0, 1), (3.0, 2), (6.0, 1)]
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


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([b"d"] * 61, "the stream has sent no event for 60 s"),
        ([b"d" * 70_000], "the stream sends a line of more than 65536 bytes"),
    ],
    ids=["dripping", "flooding"],
)
def test_bytes_without_events(caplog: pytest.LogCaptureFixture, chunks: list[float | bytes], words: str) -> None:
    """A stream that sends bytes but no events is an outage, is logged once, and is opened again."""
    script = Script(chunks, AWAY)
    script.run()
    assert said(caplog, "WARNING") == [f"gateway: {words}"]
    assert len(script.times("stream")) == 3


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
    ("answer", "metered", "meters"), [(MISSING, False, MISSING), ("[]", True, "[]")], ids=["firmware 3", "8"]
)
def test_no_meters(
    caplog: pytest.LogCaptureFixture, answer: str | Exception, meters: str | Exception, *, metered: bool
) -> None:
    """A lack of meters is logged once, with the cure but not as an ERROR, and is checked again every five minutes."""
    script = Script(*[MISSING] * 3, reports=[answer] * 3, meters=meters)
    script.info = replace(METERED, metered=metered)
    assert script.run() == []
    assert script.times("stream") == [0, REFUSED_WAIT_S, 2 * REFUSED_WAIT_S, 3 * REFUSED_WAIT_S]
    assert said(caplog, "ERROR") == []
    assert [words for words in said(caplog, "WARNING") if "skipped" not in words] == [f"gateway: {NO_METERS}"]
    assert script.reader.outage.reason == NO_METERS
    assert "sudo systemctl disable --now envoy2emon" in NO_METERS


@pytest.mark.parametrize("meters", [LISTED, MISSING, "<html>"])
def test_meters_that_are_only_silent(meters: str | Exception) -> None:
    """Empty reports are not a reading, but unless the gateway says that it has no meters, they are asked for again."""
    script = Script(DENIED, reports=["[]", "[]", 0.0], meters=meters)
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
