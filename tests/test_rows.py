"""Readings and reports -> rows, and which of them EmonCMS may lack."""

import json
from collections.abc import Mapping
from decimal import Decimal

import pytest

from envoy2emon.demo import site
from envoy2emon.gateway.readings import PHASES, InverterReport, MeterReading, parse_event
from envoy2emon.rows import KEY_NAMES, Row, Selection, inputs_json, inverter_row, not_applied, stream_inputs

FORUM_KEYS = ("wNow", "rmsVoltage", "rmsCurrent", "pwrFactor")

# The project's first event as 36 inputs, named as by the forum scripts; each line has its values in FORUM_KEYS' order.
THREE_PHASES = """
    prod_ph-a 54.745 246.186 0.752 0.31
    prod_ph-b 49.576 248.261 0.723 0.28
    prod_ph-c 42.27 245.835 0.532 0.33
    cons_ph-a 1239.019 246.189 5.71 0.88
    cons_ph-b 579.117 248.352 3.366 0.69
    cons_ph-c 373.775 245.916 2.107 0.72
    net_ph-a 1184.274 246.192 4.958 0.97
    net_ph-b 529.541 248.442 2.644 0.81
    net_ph-c 331.505 245.998 1.575 0.87
"""


def selection(
    sections: tuple[str, ...] = ("prod", "cons", "net"),
    phases: tuple[str, ...] = PHASES,
    keys: tuple[str, ...] = FORUM_KEYS,
    min_production: str = "0",
    *,
    net_calculated: bool = False,
) -> Selection:
    """Return the default selection, with the given changes."""
    return Selection(sections, phases, keys, Decimal(min_production), net_calculated)


def watts(prod: str | None, cons: str | None, net: str | None) -> MeterReading:
    """Make a reading of one phase from these watts; None: the gateway did not send them."""
    values = {"production": prod, "total-consumption": cons, "net-consumption": net}
    return MeterReading(1.0, {name: {"ph-a": {"p": Decimal(p)}} for name, p in values.items() if p})


def digits(inputs: Mapping[str, Decimal]) -> dict[str, str]:
    """Return the inputs' digits."""
    return {name: str(value) for name, value in inputs.items()}


def test_the_three_phase_event_gives_36_inputs() -> None:
    """The project's first event gives the forum scripts' 36 names with exactly the gateway's values."""
    row = stream_inputs(parse_event(site.THREE_PHASE_EVENT, 7.5), selection())
    lines = [line.split() for line in THREE_PHASES.split("\n") if line.strip()]
    expected = {f"{name}_{key}": text for name, *texts in lines for key, text in zip(FORUM_KEYS, texts, strict=True)}
    assert len(expected) == 36
    assert digits(row) == expected


def test_every_key_has_its_quantity() -> None:
    """The seven keys give the gateway's seven quantities of the chosen section and phase, and nothing else."""
    keys = ("wNow", "reactPower", "apprntPwr", "rmsVoltage", "rmsCurrent", "pwrFactor", "frequency")
    row = stream_inputs(parse_event(site.THREE_PHASE_EVENT, 0), selection(("net",), ("ph-b",), keys))
    expected = ("529.541", "-331.655", "655.161", "248.442", "2.644", "0.81", "50.0")
    assert digits(row) == {f"net_ph-b_{key}": text for key, text in zip(keys, expected, strict=True)}
    assert set(keys) == set(KEY_NAMES)


def test_nothing_is_invented() -> None:
    """A section, phase or value that the gateway did not send has no input."""
    whole = stream_inputs(parse_event(site.THREE_PHASE_EVENT, 0), selection())
    event = json.loads(site.THREE_PHASE_EVENT)
    del event["production"]["ph-a"]["p"], event["total-consumption"]["ph-b"], event["net-consumption"]
    assert stream_inputs(parse_event(json.dumps(event), 0), selection()) == {
        name: value
        for name, value in whole.items()
        if name != "prod_ph-a_wNow" and not name.startswith(("cons_ph-b_", "net_"))
    }


@pytest.mark.parametrize(
    ("least", "prod", "expected"),
    [
        ("0", "-2.125", "-2.125"),
        ("0", "-0.0", "-0.0"),
        ("5", "-2.125", "0"),
        ("5", "4.999", "0"),
        ("5", "5.00", "5.00"),
    ],
)
def test_small_production_counts_as_nothing(least: str, prod: str, expected: str) -> None:
    """Production below STREAM_MIN_PRODUCTION_W, even if negative, is posted as 0 W; 0, the default, changes nothing."""
    row = stream_inputs(watts(prod, "3.1", "2.2"), selection(keys=("wNow",), min_production=least))
    assert digits(row) == {"prod_ph-a_wNow": expected, "cons_ph-a_wNow": "3.1", "net_ph-a_wNow": "2.2"}


def test_the_rules_change_watts_alone() -> None:
    """Small production and calculated net change watts; voltage, current and power factor are the gateway's."""
    reading = parse_event(site.THREE_PHASE_EVENT, 0)
    measured = stream_inputs(reading, selection())
    changed = stream_inputs(reading, selection(min_production="50", net_calculated=True))
    assert {name: str(changed[name]) for name in changed if changed[name] != measured[name]} == {
        "prod_ph-b_wNow": "0",
        "prod_ph-c_wNow": "0",
        "net_ph-b_wNow": "579.117",
        "net_ph-c_wNow": "373.775",
    }


@pytest.mark.parametrize(
    ("prod", "cons", "least", "net"),
    [
        ("3000.1", "0.2", "0", "-2999.9"),
        ("-2.125", "100.5", "5", "100.5"),
        (None, "100.5", "0", None),
        ("54.745", None, "0", None),
    ],
)
def test_net_can_be_calculated(prod: str | None, cons: str | None, least: str, net: str | None) -> None:
    """With STREAM_NET=calculated net watts are exactly cons - prod, after the rule for small production, or missing."""
    chosen = selection(("net",), ("ph-a",), ("wNow",), least, net_calculated=True)
    assert digits(stream_inputs(watts(prod, cons, "7777"), chosen)) == ({"net_ph-a_wNow": net} if net else {})


def test_a_row_is_written_in_the_gateways_digits() -> None:
    """A row's JSON has each value in the digits in which it came."""
    row = Row(0, {"a": Decimal("-0.0"), "b": Decimal("50.00"), "c": Decimal("1e3")})
    assert inputs_json(row.inputs) == '{"a":-0.0,"b":50.00,"c":1E+3}'


def test_a_phase_without_panels_counts_as_nothing_in_the_calculated_net() -> None:
    """Load-only CTs may measure three phases beside one of production: net is the consumption where no panels are.

    A phase whose production was not sent has no net.
    """
    phases = {phase: {"p": Decimal(400)} for phase in PHASES}
    production = {"ph-a": {"p": Decimal(1000)}, "ph-b": {"v": Decimal(230)}}
    reading = MeterReading(0, {"production": production, "total-consumption": phases})
    chosen = selection(("prod", "net"), keys=("wNow",), net_calculated=True)
    assert digits(stream_inputs(reading, chosen)) == {
        "prod_ph-a_wNow": "1000",
        "net_ph-a_wNow": "-600",
        "net_ph-c_wNow": "400",
    }


@pytest.mark.parametrize("section", ["storage", "backfeed", "load", "evse", "pv3p"])
def test_other_meters_become_inputs_if_they_are_named(section: str) -> None:
    """A battery, a charger and the like have inputs under their own names, but only if STREAM_SECTIONS names them."""
    reading = parse_event(f'{{"{section}":{{"ph-a":{{"p":-2580.5}}}}}}', 0)
    assert digits(stream_inputs(reading, selection((section,)))) == {f"{section}_ph-a_wNow": "-2580.5"}
    assert stream_inputs(reading, selection()) == {}


def test_an_inverters_report_gives_two_inputs() -> None:
    """A report gives {serial}_wNow and, if it has max_watts, {serial}_wMax, dated when the inverter reported."""
    row = inverter_row(InverterReport("121200310052", 1717243001, Decimal(46), Decimal(209), 1))
    assert (row.date, digits(row.inputs)) == (1717243001, {"121200310052_wNow": "46", "121200310052_wMax": "209"})
    without = InverterReport("121200310052", 1717243001, Decimal(0), None, None)
    assert digits(inverter_row(without).inputs) == {"121200310052_wNow": "0"}


ROWS = [Row(date, {"a": Decimal(date), "b": Decimal(0)}) for date in (10, 11, 12, 13)]


@pytest.mark.parametrize(
    ("shown", "first"),
    [
        ({}, 10),  # a node that is new
        ({"a": 12, "b": 12}, 12),  # the newest one shown goes again
        ({"a": 13, "b": 12}, 13),  # EmonCMS stopped in the middle of a row
        ({"a": 11}, 11),  # an input that it does not show yet
        ({"a": 99, "b": 0}, 10),  # another sender's date, and one that a restart of Redis has lost
    ],
)
def test_rows_that_emoncms_shows_are_left_out(shown: dict[str, int], first: int) -> None:
    """Rows older than the newest that EmonCMS shows are left out; that one goes again, as it may be incomplete."""
    assert not_applied(ROWS, shown) == [row for row in ROWS if row.date >= first]


def test_a_row_before_one_that_is_shown_is_there() -> None:
    """A row before the one shown is left out even if the one shown lacks one of its inputs, as a reading may."""
    rows = [Row(11, {"a": Decimal(1), "b": Decimal(1)}), Row(12, {"a": Decimal(2), "b": Decimal(2)})]
    last = Row(13, {"a": Decimal(3)})
    assert not_applied([*rows, last], {"a": 13, "b": 12}) == [last]


def test_each_inverter_has_a_date_of_its_own() -> None:
    """Each row is judged by the dates of its own inputs."""
    rows = [Row(10, {"x": Decimal(1)}), Row(12, {"y": Decimal(1)}), Row(15, {"x": Decimal(2)})]
    assert not_applied(rows, {"x": 15, "y": 7}) == rows[1:]
