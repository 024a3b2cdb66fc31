"""When to try the gateway or EmonCMS again after a failure, and what is logged of an outage."""

import logging

import pytest

from envoy2emon.outage import REFUSED_WAIT_S, STEADY_S, Outage, duration
from tests.clocks import Time


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
    one.fails("502")
    assert [one.refused("wrong key") for _ in range(3)] == [REFUSED_WAIT_S] * 3
    assert caplog.messages == ["EmonCMS: 502", "EmonCMS: wrong key"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_an_outage_is_two_lines(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is logged when it begins and when it ends, with its length and what waited, whatever reasons follow."""
    one = outage(clock)
    one.ends("; 1 row")  # a success without an outage is not logged
    for reason in ("502", "502", "refused", "502"):
        one.fails(reason)
        clock.now += 2000
    assert one.status() == "; EmonCMS failing for 2 h 13 min: 502"
    one.ends("; 8000 rows waited")
    assert caplog.messages == ["EmonCMS: 502", "EmonCMS: back after 2 h 13 min; 8000 rows waited"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert one.status() == ""


# Each outage is its reason, how long it lasts without another attempt, and how long EmonCMS answers after it.
OUTAGES = {
    "flaps": ([("502", 3, 20)] * 20, ["502", "back after 3 s"]),
    "comes later": ([("502", 3, 60)] * 2, ["502", "back after 3 s", "502", "back after 3 s"]),
    "another reason": ([("502", 5, 20), ("refused", 5, 20)], ["502", "back after 5 s", "refused", "back after 5 s"]),
    "lasts": ([("502", 5, 20), ("502", 70, 20)], ["502", "back after 5 s", "back after 70 s"]),
}


@pytest.mark.parametrize(("outages", "messages"), OUTAGES.values(), ids=OUTAGES)
def test_only_flapping_is_not_logged(
    clock: Time, caplog: pytest.LogCaptureFixture, outages: list[tuple[str, float, float]], messages: list[str]
) -> None:
    """A short outage within a minute of the last and for the same reason is not logged; any other is, and its end."""
    one = outage(clock)
    for reason, lasts, answers in outages:
        one.fails(reason)
        clock.now += lasts
        one.ends()
        clock.now += answers
    assert caplog.messages == [f"EmonCMS: {message}" for message in messages]


def test_what_begins_like_flapping_and_stays_is_logged(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """An outage that began like flapping is logged once it lasts a minute, and so is its end."""
    one = outage(clock)
    one.fails("502")
    clock.now += 41
    one.ends()
    clock.now += STEADY_S / 2
    for _ in range(100):
        one.fails("502")
        clock.now += 30
    one.ends()
    lost = "EmonCMS: 502"
    assert caplog.messages == [lost, "EmonCMS: back after 41 s", lost, "EmonCMS: back after 50 min"]


def test_a_neighbours_words_stay_in_one_line(clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A whole page quoted from an answer stays in one line of the log and is cut short."""
    one = outage(clock)
    one.fails("answers 500\n<html>\n" + "x" * 9999)
    assert caplog.messages[0].startswith("EmonCMS: answers 500 <html> xxx")
    assert max(len(caplog.messages[0]), len(one.reason)) < 600


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (41.2, "41 s"),
        (180, "3 min"),
        (7500, "2 h 5 min"),
        (86400 * 1.99, "47 h 45 min"),
        (86400 * 3 + 3600 * 4.9, "3 d 4 h"),
    ],
)
def test_durations_are_written_as_people_do(seconds: float, words: str) -> None:
    """A duration has at most two units and no fractions."""
    assert duration(seconds) == words
