"""Arrivals -> dated readings."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.gateway.bursts import FOLLOWS_S, LONGEST_WAIT_S, MOST_WAITING, Arrival, Bursts
from envoy2emon.gateway.readings import MeterReading


def arrival(at: float, count: int) -> Arrival:
    """Make the arrival of `count` readings at the same moment."""
    return Arrival(at, tuple(MeterReading(at, {}) for _ in range(count)))


def dates(arrivals: list[Arrival]) -> list[float]:
    """Return the dates in order, calling release() as the main thread does: after each arrival, and when due."""
    bursts, dated = Bursts(), []
    for one, following in pairwise([*arrivals, Arrival(float("inf"))]):
        dated += bursts.take(one) + bursts.release(one.at)
        wait = bursts.wait(one.at)
        if wait is not None and one.at + wait < following.at:
            dated += bursts.release(one.at + wait)
    return [reading.at for reading in dated]


def test_a_stream_that_keeps_the_beat_is_not_touched() -> None:
    """Events a second apart are passed on at once, dated on arrival, except the first one after opening."""
    bursts = Bursts()
    assert bursts.take(Arrival(9.9)) == []
    assert bursts.take(arrival(10.0, 1)) == []
    assert bursts.wait(10.0) == pytest.approx(FOLLOWS_S)
    assert [reading.at for reading in bursts.release(10.0 + FOLLOWS_S)] == [10.0]
    for at in (11.0, 12.4, 13.0, 13.5):
        assert [reading.at for reading in bursts.take(arrival(at, 1))] == [at]
        assert bursts.wait(at) is None
        assert bursts.release(at + 1) == []
    bursts.take(Arrival(13.9))
    assert bursts.take(arrival(14.0, 1)) == []


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        # D7.0.88 sends 22 events after 22 s of silence: they are a second apart, the last one dated on arrival ...
        ([arrival(100.0, 1), arrival(122.0, 22)], [100.0, *(101.0 + number for number in range(22))]),
        # ... also if they come in pieces, one of them late because its packet was lost.
        (
            [arrival(100.0, 1), arrival(122.0, 2), *(arrival(122.2 + 0.01 * number, 1) for number in range(20))],
            [100.0, *(101.39 + number for number in range(22))],
        ),
        # What comes together at the start of a connection was held back too.
        ([Arrival(50.0), arrival(50.2, 8)], [43.2 + number for number in range(8)]),
        # More events than seconds since the event before are spread over that time.
        ([arrival(100.0, 1), arrival(104.0, 8)], [100.0, *(100.5 + 0.5 * number for number in range(8))]),
        ([arrival(100.0, 1), arrival(101.0, 1), arrival(101.5, 2)], [100.0, 101.0, 101.25, 101.5]),
        # One that comes late and alone keeps its time.
        ([arrival(100.0, 1), arrival(113.0, 1), arrival(114.0, 1)], [100.0, 113.0, 114.0]),
    ],
)
def test_what_was_held_back_is_dated_as_it_was_measured(arrivals: list[Arrival], expected: list[float]) -> None:
    """Events that come together are a second apart, the last one dated on arrival, none before the event in front."""
    assert dates(arrivals) == pytest.approx(expected)


def test_what_was_held_is_given_when_the_connection_breaks() -> None:
    """A burst whose connection broke is released before the readings of the next connection."""
    bursts = Bursts()
    assert bursts.take(arrival(10.0, 3)) == bursts.release(10.01) == []
    assert bursts.take(Arrival(11.0)) == []
    assert bursts.wait(11.0) == 0.0
    assert [reading.at for reading in bursts.release(11.0)] == [8.0, 9.0, 10.0]


def test_a_stream_without_pause_is_no_burst() -> None:
    """Events that never pause are held for half a second and then not at all, and never more than a burst has."""
    bursts = Bursts()
    for number in range(1000):
        at = 10.0 + number / 100
        given = bursts.take(arrival(at, 1)) + bursts.release(at)
        if at > 10.0 + LONGEST_WAIT_S + 0.02:
            assert [reading.at for reading in given] == [at]
    assert bursts.take(arrival(30.0, MOST_WAITING + 1)) == []
    assert bursts.wait(30.0) == 0.0


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.6, 22.0]), st.integers(0, 25)), max_size=30))
def test_no_reading_is_lost_or_dated_before_the_one_in_front(steps: list[tuple[float, int]]) -> None:
    """All readings come out, none dated before the previous one or over LONGEST_WAIT_S after its arrival."""
    at, arrivals = 1000.0, []
    for pause, count in steps:
        at += pause
        arrivals.append(arrival(at, count))
    arrived = [one.at for one in arrivals for _ in one.readings]
    dated = dates(arrivals)
    assert len(dated) == len(arrived)
    assert dated == sorted(dated)
    assert all(date <= came + LONGEST_WAIT_S for date, came in zip(dated, arrived, strict=True))
