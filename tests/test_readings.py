"""Event text -> MeterReading, meter reports -> the same, inverter list -> InverterReport."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.gateway.readings import (
    PHASES,
    REPORT_NAMES,
    SECTIONS,
    BadReading,
    InverterReport,
    parse_event,
    parse_inverters,
    parse_reports,
)
from tests import fixtures

PARSERS: dict[str, Callable[[str], object]] = {
    "event": lambda text: parse_event(text, 1.0),
    "reports": lambda text: parse_reports(text, 1.0),
    "inverters": parse_inverters,
}

# Any JSON, with the gateway's names among its keys.
NAMES = st.sampled_from([*SECTIONS, *PHASES, *REPORT_NAMES, *REPORT_NAMES.values(), "lines", "reportType", "createdAt"])
KEYS = NAMES | st.sampled_from(["serialNumber", "lastReportDate", "lastReportWatts", "maxReportWatts"]) | st.text()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(SECTIONS),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(KEYS, children, max_size=8),
    max_leaves=30,
)


def phase_a(value: str) -> str:
    """Make an event whose p is this JSON text and whose v is 230.5."""
    return f'{{"production":{{"ph-a":{{"p":{value},"v":230.5}}}}}}'


@pytest.mark.parametrize("digits", ["-0.0", "-2", "50.00", "1.50E-2", "1e3", "1e-400", "1." + "2" * 38])
def test_numbers_keep_their_digits(digits: str) -> None:
    """A number keeps the sign, digits and exponent that the gateway wrote, without the rounding of a float."""
    p = parse_event(phase_a(digits), 1.0).sections["production"]["ph-a"]["p"]
    assert p.as_tuple() == Decimal(digits).as_tuple()


@pytest.mark.parametrize(
    "value", ["NaN", "1e999", "1e99999999999999999999", "9" * 41, "null", "true", '"54.7"', "[1]", '{"p":1}']
)
def test_what_is_no_finite_number_is_left_out(value: str) -> None:
    """A value that is not a finite number of at most 40 characters is left out; the event's other values are kept."""
    reading = parse_event(phase_a(value), 1.0)
    assert reading.sections == {"production": {"ph-a": {"v": Decimal("230.5")}}}


def test_what_is_wrong_or_unknown_is_left_out() -> None:
    """Sections, phases and values of the wrong type, or with the names of a later firmware, do no harm to others."""
    text = """{"production": {"ph-a": {"p": 2, "thd": 3}, "ph-b": [1], "ph-c": {}, "ph-d": {"p": 1}},
               "net-consumption": 0, "total-consumption": {"ph-a": null}, "heat": {"ph-a": {"p": 1}}}"""
    assert parse_event(text, 1.0).sections == {"production": {"ph-a": {"p": Decimal(2)}}}


@pytest.mark.parametrize(
    ("firmware", "name"),
    [
        ("D5.0.62", "stream_meter.txt"),
        ("D7.0.88", "stream_meter.txt"),
        ("D7.6.175", "stream_meter.txt"),
        ("D8.3.6086", "stream_meter.txt"),
        ("D8.3.6086", "stream_meter_without_production.txt"),
    ],
)
def test_each_recorded_event_comes_out_whole(firmware: str, name: str) -> None:
    """A reading has exactly what its event has: sections, phases, quantities, digits, and the given time."""
    for text in fixtures.events(firmware, name):
        reading = parse_event(text, 12.5)
        assert reading.at == 12.5
        assert reading.sections == json.loads(text, parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize(
    ("page", "text", "words"),
    [
        ("event", "\r\n", "an empty answer"),
        ("event", " <!DOCTYPE html>\n<p>503", "an HTML page: '<!DOCTYPE html>"),
        ("event", '{"production":{"ph-a":{"p":1', 'not JSON: \'{"production"'),
        ("event", "[" * 60_000, "not JSON"),
        ("event", "[]", "a JSON list in place of an object"),
        ("event", "7", "a JSON Decimal in place of an object"),
        ("event", '{"production":{"ph-a":{"p":null}}}', "no reading"),
        ("reports", "{}", "a JSON dict in place of a list"),
        ("reports", '[{"createdAt":1717243199,"reportType":"production","lines":[]}]', "no reading"),
        ("reports", '[{"reportType":"production","lines":[{"actPower":1}]}]', "reports without createdAt"),
        ("reports", '[{"createdAt":1e17,"reportType":"load","lines":[{"actPower":1}]}]', "reports without createdAt"),
        ("inverters", "{}", "a JSON dict in place of a list"),
        ("inverters", "[]", "an empty list"),
        ("inverters", "[" + "0," * 1000 + "0]", "a list of 1001 entries"),
    ],
    ids=lambda each: each[:30],
)
def test_what_is_no_answer_is_a_bad_reading(page: str, text: str, words: str) -> None:
    """HTML, truncated JSON, an empty answer and the wrong type raise a BadReading that says which, in a short line."""
    with pytest.raises(BadReading) as caught:
        PARSERS[page](text)
    assert str(caught.value).startswith(words)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(st.text() | JSON.map(json.dumps), st.sampled_from(list(PARSERS)))
def test_nothing_else_is_ever_raised(text: str, page: str) -> None:
    """Any text and any JSON give a result or a BadReading whose words fit on one line of the log."""
    words = "a result"
    try:
        PARSERS[page](text)
    except BadReading as trouble:
        words = str(trouble)
    assert len(words.splitlines()) == 1


@pytest.mark.parametrize("firmware", ["D7.0.88", "D7.6.175", "D8.3.6086"])
def test_reports_give_the_reading_that_the_stream_gives(firmware: str) -> None:
    """For each phase in use, the reports and the stream's event of the same moment give the same MeterReading."""
    created, reading = parse_reports(fixtures.text(firmware, "ivp_meters_reports.json"), 3.25)
    streamed = parse_event(fixtures.events(firmware)[0], 3.25)
    used = {section: len(phases) for section, phases in reading.sections.items()}
    assert created == 1717243199
    assert reading.at == streamed.at == 3.25
    assert list(used) == list(streamed.sections)
    assert reading.sections == {
        section: {phase: values for phase, values in phases.items() if phase in PHASES[: used[section]]}
        for section, phases in streamed.sections.items()
    }


def test_reports_use_lines_and_the_newest_date() -> None:
    """`cumulative` is ignored, a line that is not an object leaves its phase out, and the newest createdAt counts."""
    text = """[{"reportType": "production", "createdAt": 1717243198, "cumulative": {"actPower": 9},
                "lines": [{"actPower": 50.00, "rmsVoltage": null}, 7, {"freqHz": -0.0}, {"actPower": 4}]},
               {"reportType": "net-consumption", "createdAt": 1717243199, "lines": []}, 5,
               {"reportType": "total-consumption", "createdAt": "now", "lines": []}]"""
    created, reading = parse_reports(text, 1.0)
    assert created == 1717243199
    assert str(reading.sections) == str(
        {"production": {"ph-a": {"p": Decimal("50.00")}, "ph-c": {"f": Decimal("-0.0")}}}
    )


@pytest.mark.parametrize("firmware", fixtures.FIRMWARES)
def test_each_recorded_inverter_comes_out(firmware: str) -> None:
    """A recorded list gives each inverter's report, except those of date 0, which are skipped and named."""
    text = fixtures.text(firmware, "inverters.json")
    units = json.loads(text)
    reports, skipped = parse_inverters(text)
    assert [(r.serial, r.reported_at, r.watts, r.max_watts) for r in reports] == [
        (unit["serialNumber"], unit["lastReportDate"], unit["lastReportWatts"], unit["maxReportWatts"])
        for unit in units
        if unit["lastReportDate"]
    ]
    assert skipped == [f"inverter {unit['serialNumber']}" for unit in units if not unit["lastReportDate"]]


GOOD = {"serialNumber": "121200310052", "lastReportDate": 1717243001, "lastReportWatts": 46, "maxReportWatts": 209}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lastReportDate": -1}, "inverter 121200310052"),
        ({"lastReportDate": None}, "inverter 121200310052"),
        ({"lastReportDate": 1e300}, "inverter 121200310052"),
        ({"lastReportWatts": None}, "inverter 121200310052"),
        ({"serialNumber": None}, "entry 2"),
        ({"serialNumber": 121200310052}, "entry 2"),
        ({"serialNumber": "12\n<3>34"}, "entry 2"),
        ({"serialNumber": "\N{SUPERSCRIPT TWO}"}, "entry 2"),
        ({"serialNumber": "1" * 21}, "entry 2"),
    ],
    ids=str,
)
def test_an_entry_that_is_no_report_is_skipped_and_named(change: dict[str, Any], name: str) -> None:
    """An entry without a valid serial number, date or watts is skipped and named; the entries around it are kept."""
    reports, skipped = parse_inverters(json.dumps([GOOD, GOOD | change, GOOD | {"serialNumber": "121200310053"}]))
    assert len(reports) == 2
    assert skipped == [name]


def test_devtype_and_greatest_watts_may_be_missing() -> None:
    """Neither maxReportWatts nor devType (11: an AC battery) is needed; devType is missing up to M4.2.33."""
    unit = {name: GOOD[name] for name in GOOD if name != "maxReportWatts"}
    battery = unit | {"serialNumber": "121200310053", "devType": 11}
    assert parse_inverters(json.dumps([unit, battery])) == (
        [
            InverterReport("121200310052", 1717243001, Decimal(46), None, None),
            InverterReport("121200310053", 1717243001, Decimal(46), None, 11),
        ],
        [],
    )


def test_a_serial_that_is_listed_twice_gives_its_newest_report() -> None:
    """If a serial number is listed more than once, its newest report counts, in any order."""
    units = [GOOD | {"lastReportDate": 1717243001 - age, "lastReportWatts": age} for age in (5, 0, 9)]
    assert parse_inverters(json.dumps(units)) == (
        [InverterReport("121200310052", 1717243001, Decimal(0), Decimal(209))],
        [],
    )
