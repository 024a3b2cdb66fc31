"""Dates on the way to EmonCMS, and what `input/get` tells of a post that nobody answered."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envoy2emon.emoncms.arrived import Arrived
from envoy2emon.emoncms.dates import ByAge, ByDate, Flight
from envoy2emon.emoncms.delivery import SAVED_SOON_S
from envoy2emon.rows import Row

DAY_S = 86400.0
ELEVEN = [Row(1000.0 + n, "Envoy-S", {"p": Decimal(500 + n), "zero": Decimal(0)}) for n in range(11)]
EQUAL = [replace(row, inputs={"p": Decimal(500)}) for row in ELEVEN]
BEFORE = Row(999.0, "Envoy-S", {"p": Decimal(499), "zero": Decimal(0)})
SENT_AT = 1011.25
SERVER_AHEAD_S = 1_700_000_000.6


def entries(form: str) -> tuple[list[list[object]], dict[str, list[str]]]:
    """Take a form apart into its rows and the other fields."""
    fields = parse_qs(form, strict_parsing=True)
    return json.loads(fields.pop("data")[0]), fields


def after(rows: Sequence[Row], applied_at: float = SENT_AT, asked_at: float = SENT_AT + 1) -> Arrived:
    """Return what EmonCMS tells when these rows were applied at that monotonic time, and it was asked at the other."""
    inputs: dict[str, tuple[int, float]] = {"other": (2_000_000_000, 1.0)}
    for row in rows:
        date = math.floor(applied_at + SERVER_AHEAD_S) - int(SENT_AT - row.at)
        inputs |= {name: (date, float(value)) for name, value in row.inputs.items()}
    return Arrived(inputs, math.floor(asked_at + SERVER_AHEAD_S), asked_at, asked_at)


def applied(rows: Sequence[Row], arrived: Arrived, *, answered: bool = False, before: Row | None = BEFORE) -> int:
    """Return how many of the rows, sent at SENT_AT, need not go again."""
    return ByAge().applied(rows, Flight(len(rows), SENT_AT, answered), arrived, before)


def test_a_form_names_ages_and_the_digits_that_came() -> None:
    """Stream rows go with `sentat` and whole seconds of age below zero, numbers in the Envoy's digits."""
    rows = [Row(7.1, "Envoy-S", {"a": Decimal("-0.0")}), Row(9.9, "Envoy-S", {"a": Decimal("54.740"), "b": Decimal(2)})]
    form = ByAge().form(rows, Flight(2, 10.0), 10.3)
    assert entries(form) == ([[-2, "Envoy-S", {"a": 0.0}], [0, "Envoy-S", {"a": 54.74, "b": 2}]], {"sentat": ["0"]})
    assert '{"a":54.740,"b":2}' in form


def test_a_form_names_the_dates_of_reports() -> None:
    """Inverter rows go as `time=0` with the epoch seconds of the report, whenever they are posted."""
    rows = [Row(1_700_000_000, "roof & shed", {"122_wNow": Decimal(210)})]
    expected = ([[1_700_000_000, "roof & shed", {"122_wNow": 210}]], {"time": ["0"]})
    assert [entries(ByDate().form(rows, Flight(1, 0.0), now)) for now in (0.0, DAY_S)] == [expected, expected]


@given(
    age=st.floats(0, DAY_S),
    server_ahead=st.floats(-1e6, 2e9),
    now=st.floats(DAY_S, 1e7),
    saving=st.builds(float.__add__, st.integers(0, 60).map(float), st.floats(0, SAVED_SOON_S)),
)
def test_a_date_is_right_to_within_a_second(age: float, server_ahead: float, now: float, saving: float) -> None:
    """However old a row is and whatever EmonCMS's clock shows, its date is less than a second off.

    So it is after saving the flight took whole seconds, and hardly more.
    """
    row = Row(now - age, "Envoy-S", {"a": Decimal(1)})
    rows, fields = entries(ByAge().form([row], Flight(1, now), now + saving))
    date = math.floor(now + saving + server_ahead) - int(fields["sentat"][0]) + int(str(rows[0][0]))
    late = date - (row.at + server_ahead)
    assert -1 - 1e-6 < late < 1 + SAVED_SOON_S + 1e-6


def test_no_row_is_dated_into_the_future() -> None:
    """A reading that is younger than the post, which cannot be, counts as read now."""
    assert entries(ByAge().form([Row(20.0, "Envoy-S", {"a": Decimal(1)})], Flight(1, 10.0), 10.0))[0][0][0] == 0


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("delay", [0.0, 0.7, 13.0])
def test_what_arrived_is_known(count: int, delay: float) -> None:
    """Any number of rows applied is recognised: of a part the newest goes again, all of them do not."""
    arrived = after(ELEVEN[:count], SENT_AT + delay, SENT_AT + delay + 1)
    assert applied(ELEVEN, arrived) == (count if count in (0, 11) else count - 1)
    assert applied(ELEVEN, arrived, answered=True) == count


@pytest.mark.parametrize("count", range(12))
def test_equal_rows_are_told_apart_by_their_dates(count: int) -> None:
    """Rows that are equal in every digit: none is skipped that has not arrived, and at most the newest goes again."""
    assert applied(EQUAL, after(EQUAL[:count])) in {max(0, count - 1), count}
    assert applied(EQUAL, after([replace(EQUAL[0], at=999.0)])) == 0


@pytest.mark.parametrize("count", range(11))
def test_a_row_of_which_a_half_arrived_goes_again(count: int) -> None:
    """EmonCMS sets one input after the other: what it did before the row at which it died is recognised."""
    half = replace(ELEVEN[count], inputs={"p": ELEVEN[count].inputs["p"]})
    assert applied(ELEVEN, after([*ELEVEN[:count], half])) == max(0, count - 1)


def test_a_missing_section_hides_nothing() -> None:
    """The inputs that the newest rows do not have may stand at older rows."""
    rows = [*ELEVEN[:9], *(replace(row, inputs={"p": row.inputs["p"]}) for row in ELEVEN[9:])]
    assert applied(rows, after(rows)) == 11
    assert applied(rows, after(rows[:10])) == 9


def test_an_earlier_equal_row_is_not_taken_for_one_of_the_post() -> None:
    """Values that stood there before the post was sent prove nothing, however long ago it was."""
    old = {
        "p": (math.floor(SENT_AT + SERVER_AHEAD_S) - 15, 510.0),
        "zero": (math.floor(SENT_AT + SERVER_AHEAD_S) - 15, 0.0),
    }
    assert applied(ELEVEN, Arrived(old, math.floor(SENT_AT + 1 + SERVER_AHEAD_S), SENT_AT + 1, SENT_AT + 1)) == 0


@pytest.mark.parametrize("later", [0.0, 0.5, 1.5, 1.95])
def test_the_row_before_is_not_taken_for_its_equal(later: float) -> None:
    """A row alone that looks like the one before it goes again; so it does if nobody knows what was before it."""
    one, last = Row(SENT_AT, "Envoy-S", {"p": Decimal(500)}), Row(SENT_AT - 1.05, "Envoy-S", {"p": Decimal(500)})
    assert applied([one], after([last], SENT_AT, SENT_AT + later), before=last) == 0
    assert applied([one], after([last], SENT_AT, SENT_AT + later), before=None) == 0
    assert applied([one], after([one], SENT_AT, SENT_AT + later)) == 1


def test_half_a_day_later_the_same_is_known() -> None:
    """The clocks drift apart by up to 100 us a second while EmonCMS is away."""
    for drift in (-4.0, 4.0):
        asked_at = SENT_AT + DAY_S / 2
        late = replace(after(ELEVEN[:6], SENT_AT, asked_at), date=math.floor(asked_at + SERVER_AHEAD_S + drift))
        assert applied(ELEVEN, late) == 5


@pytest.mark.parametrize("took", [0.0, 2.0, 8.0, 20.0])
@pytest.mark.parametrize("dated", ["asked", "answered"])
@pytest.mark.parametrize("later", [1.0, DAY_S])
def test_doubt_loses_no_row(took: float, dated: str, later: float) -> None:
    """An answer that took long, or came a day later, does not make equal rows arrive that never were sent before."""
    before = replace(EQUAL[0], at=EQUAL[0].at - 1)
    at = SENT_AT + later
    date = math.floor(at + SERVER_AHEAD_S + (took if dated == "answered" else 0.0))
    nothing = after([before], SENT_AT)
    assert applied(EQUAL, replace(nothing, date=date, asked_at=at, answered_at=at + took)) <= 0
    part = replace(after(ELEVEN[:6], SENT_AT), date=date, asked_at=at, answered_at=at + took)
    assert applied(ELEVEN, part) == 5


def test_a_reboot_with_a_wrong_clock_doubles_nothing() -> None:
    """When it was sent is not known then: values and distances tell what arrived; rows that are equal go again."""
    for wrong in (-6600.0, 6600.0):
        flight = Flight(11, SENT_AT + wrong, bridged=True)
        rows = [replace(row, at=row.at + wrong) for row in ELEVEN]
        assert ByAge().applied(rows, flight, after(ELEVEN), None) == 11
        assert ByAge().applied(rows, flight, after(ELEVEN[:6]), None) == 5
        equal = [replace(row, at=row.at + wrong) for row in EQUAL]
        assert ByAge().applied(equal, flight, after([replace(EQUAL[0], at=EQUAL[0].at - 1)]), None) == 0


def test_six_digits_are_enough() -> None:
    """Without Redis EmonCMS keeps values as MySQL FLOATs: 123456.789 comes back as 123457."""
    rows = [replace(row, inputs={"p": Decimal("123456.789") + 10 * number}) for number, row in enumerate(ELEVEN)]
    arrived = after(rows)
    rounded = {name: (date, float(f"{value:.6g}")) for name, (date, value) in arrived.inputs.items()}
    assert applied(rows, replace(arrived, inputs=rounded)) == 11


REPORTS = [
    Row(date, "roof", {f"{serial}_wNow": Decimal(watts), f"{serial}_wMax": Decimal(295)})
    for date, serial, watts in [(100, "A", 1), (101, "B", 2), (102, "C", 3), (400, "A", 4), (401, "B", 5)]
]


def reported(rows: Sequence[Row], before: Mapping[str, tuple[int, float]] | None = None) -> Arrived:
    """Return what EmonCMS tells after these reports."""
    inputs = dict(before or {})
    for row in rows:
        inputs |= {name: (int(row.at), float(value)) for name, value in row.inputs.items()}
    return Arrived(inputs, 500, 7.0, 7.0)


@pytest.mark.parametrize("count", range(6))
def test_reports_are_known_by_date_and_value(count: int) -> None:
    """Of a part of the reports the newest goes again; all of them do not."""
    flight = Flight(5, 6.0)
    expected = count if count in (0, 5) else count - 1
    assert ByDate().applied(REPORTS, flight, reported(REPORTS[:count]), None) == expected


def test_a_report_that_came_before_hides_no_other() -> None:
    """At a restart current reports go once more: that EmonCMS has those of A and C does not mean that it has B's."""
    before = {**reported([REPORTS[0], REPORTS[2]]).inputs, "B_wNow": (50, 9.0), "B_wMax": (50, 9.0)}
    assert ByDate().applied(REPORTS[:3], Flight(3, 6.0, answered=True), reported([], before), None) == 1


def test_a_report_older_than_the_last_is_not_lost() -> None:
    """A gateway whose clock was set back sends older dates: a later date in EmonCMS is no proof of them."""
    back = replace(REPORTS[3], at=90)
    assert ByDate().applied([REPORTS[0], back], Flight(2, 6.0, answered=True), reported(REPORTS[:1]), None) == 1


def resumed(shown: Arrived, rows: Sequence[Row] = ELEVEN, *, bridged: bool = False) -> int:
    """Return how many rows of an earlier run EmonCMS has for certain."""
    return ByAge().resumed(iter(rows), shown, bridged=bridged)


@pytest.mark.parametrize("count", range(4, 12))
@pytest.mark.parametrize("later", [0.0, 0.9, 40.0])
def test_what_an_earlier_run_had_delivered_is_seen(count: int, later: float) -> None:
    """The row with the values and about the date that EmonCMS shows is the last that arrived."""
    assert resumed(after(ELEVEN[:count], SENT_AT, SENT_AT + later)) == count


def test_newer_values_than_all_rows_have_came_after_them() -> None:
    """Rows go oldest first: if a later one has arrived, all have; unless a wrong clock dated them."""
    newer = Row(SENT_AT + 20, "Envoy-S", {"p": Decimal(9999), "zero": Decimal(0)})
    shown = after([*ELEVEN, newer], SENT_AT, SENT_AT + 25)
    assert resumed(shown) == 11
    assert resumed(shown, bridged=True) == 0
    ahead = {name: (at + 3600, value) for name, (at, value) in shown.inputs.items()}
    assert resumed(replace(shown, inputs=ahead)) == 0  # EmonCMS's clock was set: it shows the future


def test_what_is_not_certain_goes() -> None:
    """Older values, equal rows, and a post that was applied late prove nothing."""
    before = replace(ELEVEN[0], at=ELEVEN[0].at - 20, inputs={"p": Decimal(7), "zero": Decimal(0)})
    assert resumed(after([before])) == 0
    assert resumed(after([])) == 0
    assert resumed(after(EQUAL), EQUAL) == 0
    assert resumed(after(ELEVEN, SENT_AT + 60, SENT_AT + 61)) == 0


def test_reports_of_an_earlier_run_are_known_by_their_dates() -> None:
    """All that EmonCMS has of the inverters' reports need not go again, and no other is taken for one of them."""
    reports = [Row(1_700_000_000 + n, "roof", {f"{n % 3}_wNow": Decimal(n)}) for n in range(9)]
    for count in range(10):
        shown = {name: (int(row.at), float(value)) for row in reports[:count] for name, value in row.inputs.items()}
        assert ByDate().resumed(reports, Arrived(shown, 0.0, 0.0, 0.0), bridged=False) == count
