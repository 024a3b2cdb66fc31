"""EmonCMS's clock, learned from the Date of its answers, which is in whole seconds."""

from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms.clock import ServerClock

EPOCH = 1_700_000_000.0
DELAYS = st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 5)), min_size=1, max_size=50)


@given(DELAYS, st.floats(0, 1), st.floats(0.999, 1.001))
def test_dates_follow_the_server_and_never_go_back(
    delays: list[tuple[float, float, float]], phase: float, rate: float
) -> None:
    """Whatever the delays and the drift, each date is within two seconds of the server's clock, and none goes back."""
    clock, now, latest = ServerClock(), 100.0, 0
    for there, back, pause in delays:
        asked = now
        second = float(int(EPOCH + phase + (asked + there) * rate))
        now = asked + there + back
        clock.learn(second, asked, now)
        date = clock.date(now)
        assert -1.75 < date - (EPOCH + phase + now * rate) < 0.1
        assert date >= latest
        latest, now = date, now + pause


def test_an_answer_that_tells_less_does_not_move_the_clock() -> None:
    """An answer late in its second, or one that took a minute, leaves the earlier and better estimate as it is."""
    clock = ServerClock()
    clock.learn(EPOCH + 100, 100.0, 100.01)
    before = clock.ahead
    clock.learn(EPOCH + 101, 101.9, 101.9)
    assert clock.ahead == before
    clock.learn(EPOCH + 160, 102.0, 160.9)
    assert clock.ahead == before


def test_a_clock_that_was_set_is_followed() -> None:
    """If an answer is outside the known bounds, EmonCMS's clock was set ahead or back, and dates follow it."""
    for jump in (7200.0, -7200.0):
        clock = ServerClock()
        clock.learn(EPOCH + 100, 100.0, 100.0)
        assert clock.date(100.0) == EPOCH + 100
        clock.learn(EPOCH + jump + 101, 101.0, 101.0)
        assert abs(clock.date(101.0) - (EPOCH + jump + 101)) <= 1


def test_a_clock_that_is_slower_moves_no_date_back() -> None:
    """If an answer shows that EmonCMS's clock is a little slower than was thought, no date goes back for that."""
    clock = ServerClock()
    clock.learn(EPOCH + 100, 100.0, 100.0)
    assert clock.date(102.0) == EPOCH + 102
    clock.learn(EPOCH + 101, 102.5, 102.5)
    assert clock.date(102.4) == EPOCH + 102
