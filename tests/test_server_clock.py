"""EmonCMS's clock, learned from the Date of its answers, which is in whole seconds."""

from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms.clock import ServerClock

EPOCH = 1_700_000_000.0
DELAYS = st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 5)), min_size=1, max_size=50)


@given(DELAYS, st.floats(0, 1))
def test_dates_follow_the_server_and_never_go_back(delays: list[tuple[float, float, float]], phase: float) -> None:
    """Whatever the delays, each date is the server's second at that moment or the one before; none goes back."""
    clock, now, latest = ServerClock(), 100.0, 0
    for there, back, pause in delays:
        asked = now
        second = float(int(EPOCH + phase + asked + there))
        now = asked + there + back
        clock.learn(second, asked, now)
        date = clock.date(now)
        assert EPOCH + phase + now - 1.7 < date <= EPOCH + phase + now
        assert date >= latest
        latest, now = date, now + pause


def test_a_late_answer_does_not_move_the_clock() -> None:
    """An answer that took a minute bounds the clock only loosely, so the earlier estimate stays."""
    clock = ServerClock()
    clock.learn(EPOCH + 100, 100.0, 100.01)
    before = clock.ahead
    clock.learn(EPOCH + 160, 101.0, 160.9)
    assert clock.ahead == before


def test_a_clock_that_was_set_is_followed() -> None:
    """If an answer is outside the known bounds, EmonCMS's clock was set ahead or back, and dates follow it."""
    for jump in (7200.0, -7200.0, 86400.0 * 365):
        clock = ServerClock()
        clock.learn(EPOCH + 100, 100.0, 100.0)
        assert clock.date(100.0) == EPOCH + 100
        clock.learn(EPOCH + jump + 101, 101.0, 101.0)
        assert abs(clock.date(101.0) - (EPOCH + jump + 101)) <= 1


def test_drift_does_not_make_dates_go_back() -> None:
    """While the two clocks drift apart, in either direction, dates of readings a second apart do not go back."""
    for rate in (1 + 1e-4, 1 - 1e-4):
        clock, latest = ServerClock(), 0
        for second in range(50_000):
            now = 100.0 + second
            clock.learn(float(int(EPOCH + now * rate)), now, now + 0.01)
            date = clock.date(now)
            assert date >= latest
            assert abs(date - (EPOCH + now * rate)) < 2.1
            latest = date
