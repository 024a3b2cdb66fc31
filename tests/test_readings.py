"""Event text -> MeterReading, meter reports -> the same, inverter list -> InverterReport."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.demo import site
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

Parse = Callable[[str], object]
PARSERS: list[Parse] = [lambda text: parse_event(text, 1.0), lambda text: parse_reports(text, 1.0), parse_inverters]

# Any JSON, with the gateway's names among its keys.
NAMES = st.sampled_from([*SECTIONS, *PHASES, *REPORT_NAMES, *REPORT_NAMES.values(), "lines", "reportType", "createdAt"])
KEYS = NAMES | st.sampled_from(["serialNumber", "lastReportDate", "lastReportWatts", "maxReportWatts"]) | st.text()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(SECTIONS),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(KEYS, children, max_size=8),
    max_leaves=30,
)

NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e99999999999999999999", "9" * 41, "9" * 9999]
NO_NUMBERS = ["null", "true", "false", '"54.7"', '""', "[]", "[1]", "{}", '{"p":1}']


def phase_a(value: str) -> str:
    """Make an event whose p is this JSON text and whose v is 230.5."""
    return f'{{"production":{{"ph-a":{{"p":{value},"v":230.5}}}}}}'


@pytest.mark.parametrize(
    "digits",
    [
        "-0.0",
        "0.0",
        "0",
        "-2",
        "50.00",
        "1e3",
        "1.50E-2",
        "246.186",
        "1E+3",
        "1e-400",
        "1234567890123456789.12345678901234567890",
    ],
)
def test_numbers_keep_their_digits(digits: str) -> None:
    """A number keeps the sign, digits and exponent that the gateway wrote, without the rounding of a float."""
    p = parse_event(phase_a(digits), 1.0).sections["production"]["ph-a"]["p"]
    assert p.as_tuple() == Decimal(digits).as_tuple()


@pytest.mark.parametrize("value", NOT_FINITE + NO_NUMBERS)
def test_what_is_no_finite_number_is_left_out(value: str) -> None:
    """A value that is not a finite number of at most 40 characters is left out; the event's other values are kept."""
    reading = parse_event(phase_a(value), 1.0)
    assert reading.sections == {"production": {"ph-a": {"v": Decimal("230.5")}}}


@pytest.mark.parametrize("firmware", ["D5.0.62", "D7.0.88", "D7.6.175", "D8.3.6086"])
def test_each_recorded_event_comes_out_whole(firmware: str) -> None:
    """A reading has exactly what its event has: sections, phases, quantities, digits, and the given time."""
    for text in fixtures.events(firmware):
        reading = parse_event(text, 12.5)
        assert reading.at == 12.5
        assert reading.sections == json.loads(text, parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize("section", ["production", "net-consumption", "total-consumption"])
def test_what_is_missing_stays_missing(section: str) -> None:
    """A section, phase or value that the event lacks, or gives with the wrong type, is not in the reading."""
    event = json.loads(site.THREE_PHASE_EVENT, parse_float=Decimal)
    del event[section]["ph-b"], event[section]["ph-a"]["p"]
    text = json.dumps(event, default=float)
    assert parse_event(text, 1.0).sections == event
    for wrong in (None, 0, "", [], [1], True):
        assert parse_event(json.dumps(event | {section: wrong}, default=float), 1.0).sections == {
            name: phases for name, phases in event.items() if name != section
        }
    event[section]["ph-c"] = wrong_phase = [1]
    shown = parse_event(json.dumps(event, default=float), 1.0).sections[section]
    assert "ph-c" not in shown, wrong_phase


def test_a_stream_without_production_has_none() -> None:
    """The site without production meters gives a reading of its other two sections."""
    (text,) = fixtures.events("D8.3.6086", "stream_meter_without_production.txt")
    assert list(parse_event(text, 1.0).sections) == ["net-consumption", "total-consumption"]


def test_names_that_we_do_not_know_are_ignored() -> None:
    """Unknown sections, phases and quantities, as of a later firmware, are left out and do no harm."""
    text = '{"heat":{"ph-a":{"p":1}},"production":{"ph-d":{"p":1},"ph-a":{"p":2,"thd":3}},"production ":1}'
    assert parse_event(text, 1.0).sections == {"production": {"ph-a": {"p": Decimal(2)}}}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_kind_of_meter_comes_out(section: str) -> None:
    """Stream and reports may hold storage, backfeed, load, evse and pv3p too."""
    expected = {section: {"ph-b": {"p": Decimal("-2580.5")}}}
    assert parse_event(f'{{"{section}":{{"ph-b":{{"p":-2580.5}}}}}}', 1.0).sections == expected
    report = f'[{{"createdAt":7,"reportType":"{section}","lines":[0,{{"actPower":-2580.5}}]}}]'
    assert parse_reports(report, 1.0)[1].sections == expected


BAD = {
    "": "an empty answer",
    " \r\n": "an empty answer",
    "<!DOCTYPE html>\n<p>503": "an HTML page: '<!DOCTYPE html>",
    " <html>": "an HTML page",
    '{"production":{"ph-a":{"p":1': 'not JSON: \'{"production"',
    "[" * 60_000: "not JSON",
    "{'production': 1}": "not JSON",
    "\N{BYTE ORDER MARK}[]": "not JSON",
    "7": "a JSON Decimal in place of",
    "null": "a JSON NoneType in place of",
    "NaN": "a JSON NoneType in place of",
    '"text"': "a JSON str in place of",
}


@pytest.mark.parametrize("parse", PARSERS, ids=["event", "reports", "inverters"])
@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_what_is_no_answer_is_a_bad_reading(parse: Parse, text: str) -> None:
    """HTML, truncated JSON, an empty answer and the wrong type raise a BadReading that says which, in a short line."""
    with pytest.raises(BadReading) as caught:
        parse(text)
    assert str(caught.value).startswith(BAD[text])
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (PARSERS[0], "[]", "a JSON list in place of an object"),
        (PARSERS[0], "{}", "no reading"),
        (PARSERS[0], '{"production":[]}', "no reading"),
        (PARSERS[0], '{"production":{"ph-a":{"p":null}}}', "no reading"),
        (PARSERS[1], "{}", "a JSON dict in place of a list"),
        (PARSERS[1], "[]", "no reading"),
        (PARSERS[1], '[{"createdAt":1717243199,"reportType":"production","lines":[]}]', "no reading"),
        (PARSERS[1], '[{"reportType":"production","lines":[{"actPower":1}]}]', "reports without createdAt"),
        (PARSERS[1], '[{"createdAt":1e17,"reportType":"load","lines":[{"actPower":1}]}]', "reports without createdAt"),
        (PARSERS[2], "{}", "a JSON dict in place of a list"),
        (PARSERS[2], "[]", "an empty list"),
        (PARSERS[2], "[" + "0," * 1000 + "0]", "a list of 1001 entries"),
    ],
)
def test_json_of_another_kind_is_a_bad_reading(parse: Parse, text: str, words: str) -> None:
    """JSON that is not what the endpoint sends raises a BadReading that says so."""
    with pytest.raises(BadReading, match=words):
        parse(text)


@settings(deadline=None, max_examples=200)
@given(st.text() | JSON.map(json.dumps), st.sampled_from(PARSERS))
def test_nothing_else_is_ever_raised(text: str, parse: Parse) -> None:
    """Any text and any JSON give a result or a BadReading whose words fit on one line of the log."""
    words = "a result"
    try:
        parse(text)
    except BadReading as trouble:
        words = str(trouble)
    assert len(words.splitlines()) == 1


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2000), st.sampled_from(["D5.0.62", "D7.6.175"]))
def test_an_answer_cut_anywhere_is_a_bad_reading(length: int, firmware: str) -> None:
    """Truncated JSON never passes for a smaller answer."""
    answers = [fixtures.events(firmware)[0], fixtures.text("D7.6.175", "ivp_meters_reports.json")]
    for parse, text in zip(PARSERS, [*answers, fixtures.text(firmware, "inverters.json")], strict=True):
        with pytest.raises(BadReading):
            parse(text.strip()[: min(length, len(text.strip()) - 1)])


@settings(deadline=None, max_examples=100)
@given(JSON, st.sampled_from(SECTIONS[:3]), st.sampled_from(PHASES), st.sampled_from(list(REPORT_NAMES)))
def test_one_wrong_value_harms_no_other(value: object, section: str, phase: str, key: str) -> None:
    """Whatever replaces one value, the other 62 come out as they were sent."""
    event = json.loads(site.THREE_PHASE_EVENT)
    expected = {name: dict(phases) for name, phases in parse_event(site.THREE_PHASE_EVENT, 1.0).sections.items()}
    event[section][phase][key] = value
    sections = {name: dict(phases) for name, phases in parse_event(json.dumps(event), 1.0).sections.items()}
    for values in (sections, expected):
        values[section][phase] = {name: number for name, number in values[section][phase].items() if name != key}
    assert sections == expected


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
        ({"lastReportDate": 0}, "inverter 121200310052"),
        ({"lastReportDate": None}, "inverter 121200310052"),
        ({"lastReportDate": -1}, "inverter 121200310052"),
        ({"lastReportDate": 1e300}, "inverter 121200310052"),
        ({"lastReportDate": "1717243001"}, "inverter 121200310052"),
        ({"lastReportWatts": None}, "inverter 121200310052"),
        ({"lastReportWatts": "46"}, "inverter 121200310052"),
        ({"lastReportWatts": True}, "inverter 121200310052"),
        ({"serialNumber": None}, "entry 2"),
        ({"serialNumber": 121200310052}, "entry 2"),
        ({"serialNumber": ""}, "entry 2"),
        ({"serialNumber": 'x"y'}, "entry 2"),
        ({"serialNumber": "12\n<3>34"}, "entry 2"),
        ({"serialNumber": "\ud800"}, "entry 2"),
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


@pytest.mark.parametrize("ages", [(5, 0, 9), (0, 5, 9), (9, 5, 0)])
def test_a_serial_that_is_listed_twice_gives_its_newest_report(ages: tuple[int, ...]) -> None:
    """If a serial number is listed more than once, its newest report counts, in any order."""
    date = GOOD["lastReportDate"]
    assert isinstance(date, int)
    units = [GOOD | {"lastReportDate": date - age, "lastReportWatts": age} for age in ages]
    assert parse_inverters(json.dumps(units)) == ([InverterReport("121200310052", date, Decimal(0), Decimal(209))], [])


def test_load_only_meters_give_a_reading() -> None:
    """One line of production, three of consumption and no net give a reading of what is there."""
    _, reading = parse_reports(json.dumps(fixtures.site_of("load_only")["reports"]), 1.0)
    assert {section: list(phases) for section, phases in reading.sections.items()} == {
        "production": ["ph-a"],
        "total-consumption": ["ph-a", "ph-b", "ph-c"],
    }
