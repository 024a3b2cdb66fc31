"""When to try the gateway or EmonCMS again after a failure, and what is logged of an outage."""

import logging

import pytest

from envoy2emon.outage import REFUSED_WAIT_S, STEADY_S, Outage, duration


class Time:
    """A monotonic clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Time:
    """Return a stopped clock, and capture the log from INFO up."""
    caplog.set_level(logging.INFO)
    return Time()


def outage(clock: Time, jitter: float = 0.0) -> Outage:
    """Return an Outage of EmonCMS whose waits grow to 60 s."""
    return Outage("EmonCMS", 60.0, clock, lambda: jitter)


def test_waits_double(clock: Time) -> None:
    """Waits double from 1 s to the limit, and start at 1 s again after steady(); jitter only lengthens them."""
    one = outage(clock)
    assert [one.fails("away") for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    one.ends()
    assert one.fails("away") == 60
    one.steady()
    assert one.fails("away") == 1
    assert outage(clock, 1.0).fails("away") == pytest.approx(1.2)


def test_a_refusal_is_retried_every_five_minutes(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A trouble that only the owner can end is logged once, as an ERROR, and tried again every five minutes."""
    one = outage(clock)
    assert [one.refused("wrong key") for _ in range(3)] == [REFUSED_WAIT_S] * 3
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", "EmonCMS: wrong key")]


def test_an_outage_is_two_lines(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is logged when it begins and when it ends, with its length and what waited, whatever reasons follow."""
    one = outage(clock)
    for reason in ("502", "502", "refused", "502"):
        one.fails(reason)
        clock.now += 2000
    assert one.status() == "; EmonCMS failing for 2 h 13 min: 502"
    one.ends("; 8000 rows waited")
    assert caplog.messages == ["EmonCMS: 502", "EmonCMS: back after 2 h 13 min; 8000 rows waited"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert one.status() == ""


def test_another_kind_of_trouble_is_news(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """If EmonCMS was away and then refuses us, that is logged too."""
    one = outage(clock)
    one.fails("502")
    one.refused("wrong key")
    one.refused("wrong key")
    assert caplog.messages == ["EmonCMS: 502", "EmonCMS: wrong key"]


def test_flapping_is_logged_once(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A trouble that comes and goes within a minute for the same reason does not fill the journal."""
    one = outage(clock)
    for _ in range(20):
        one.fails("closed the connection")
        clock.now += 3
        one.ends()
        clock.now += STEADY_S / 3
    assert len(caplog.messages) == 2
    clock.now += STEADY_S
    one.fails("closed the connection")
    assert len(caplog.messages) == 3


def test_what_begins_like_flapping_and_stays_is_logged(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """An outage that began like flapping is logged once it lasts a minute, and so is its end."""
    one = outage(clock)
    one.fails("closed the connection")
    clock.now += 41
    one.ends()
    clock.now += STEADY_S / 2
    for _ in range(100):
        one.fails("closed the connection")
        clock.now += 30
    one.ends()
    lost = "EmonCMS: closed the connection"
    assert caplog.messages == [lost, "EmonCMS: back after 41 s", lost, "EmonCMS: back after 50 min"]


def test_a_long_outage_is_logged_even_if_nobody_asked_meanwhile(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """The end of an outage that began like flapping is logged if it lasted a minute without a further attempt."""
    one = outage(clock)
    for lasts in (5, 70):
        one.fails("closed the connection")
        clock.now += lasts
        one.ends()
        clock.now += STEADY_S / 2
    lost, *ends = caplog.messages
    assert lost == "EmonCMS: closed the connection"
    assert ends == ["EmonCMS: back after 5 s", "EmonCMS: back after 70 s"]


def test_each_logged_outage_has_a_logged_end(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """Two outages for different reasons within a minute are four lines, because each end is logged too."""
    one = outage(clock)
    for reason in ("502", "refused"):
        one.fails(reason)
        clock.now += 5
        one.ends()
        clock.now += 10
    back = "EmonCMS: back after 5 s"
    assert caplog.messages == ["EmonCMS: 502", back, "EmonCMS: refused", back]
    assert {record.levelname for record in caplog.records if record.getMessage() == back} == {"INFO"}


def test_a_neighbours_words_stay_in_one_line(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A whole page quoted from an answer stays in one line of the log and is cut short."""
    one = outage(clock)
    one.fails("answers 500\n<html>\n" + "x" * 9999)
    assert caplog.messages[0].startswith("EmonCMS: answers 500 <html> xxx")
    assert max(len(caplog.messages[0]), len(one.reason)) < 600


def test_ending_without_an_outage_says_nothing(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A success without an outage is not logged."""
    outage(clock).ends("; 1 row")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (41.2, "41 s"),
        (99.4, "99 s"),
        (180, "3 min"),
        (5999, "100 min"),
        (7500, "2 h 5 min"),
        (86400 * 1.99, "47 h 45 min"),
        (86400 * 3 + 3600 * 4.9, "3 d 4 h"),
    ],
)
def test_durations_are_written_as_people_do(seconds: float, words: str) -> None:
    """A duration has at most two units and no fractions."""
    assert duration(seconds) == words
