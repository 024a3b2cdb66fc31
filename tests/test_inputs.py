"""Readings and reports -> rows."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.demo import site
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES, Row, Selection, inverter_row, stream_row
from envoy2emon.gateway.readings import PHASES, InverterReport, MeterReading, parse_event

FORUM_KEYS = ("wNow", "rmsVoltage", "rmsCurrent", "pwrFactor")

# The 36 inputs of the event with which the project began, as the forum scripts named them: values in FORUM_KEYS' order.
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
    """Select what the defaults select, but for what is given."""
    return Selection(sections, phases, keys, Decimal(min_production), net_calculated)


def watts(prod: str | None, cons: str | None, net: str | None) -> MeterReading:
    """Make a reading of one phase from these watts; None: the Envoy did not send them."""
    values = {"production": prod, "total-consumption": cons, "net-consumption": net}
    return MeterReading(1.0, {name: {"ph-a": {"p": Decimal(p)} if p else {}} for name, p in values.items()})


def shown(row: Row) -> dict[str, str]:
    """Return the inputs' digits."""
    return {name: str(value) for name, value in row.inputs.items()}


def test_the_three_phase_event_gives_36_inputs() -> None:
    """The event with which the project began gives the forum scripts' 36 names with exactly the Envoy's values."""
    row = stream_row(parse_event(site.THREE_PHASE_EVENT, 7.5), "Envoy-S", selection())
    lines = [line.split() for line in THREE_PHASES.split("\n") if line.strip()]
    expected = {f"{name}_{key}": text for name, *texts in lines for key, text in zip(FORUM_KEYS, texts, strict=True)}
    assert len(expected) == 36
    assert shown(row) == expected
    assert (row.at, row.node) == (7.5, "Envoy-S")


def test_every_key_has_its_quantity() -> None:
    """All seven keys, in the owner's order, give the seven quantities of the Envoy."""
    keys = ("wNow", "reactPower", "apprntPwr", "rmsVoltage", "rmsCurrent", "pwrFactor", "frequency")
    row = stream_row(parse_event(site.THREE_PHASE_EVENT, 0), "n", selection(("net",), ("ph-b",), keys))
    digits = ("529.541", "-331.655", "655.161", "248.442", "2.644", "0.81", "50.0")
    assert shown(row) == {f"net_ph-b_{key}": text for key, text in zip(keys, digits, strict=True)}
    assert set(keys) == set(KEY_NAMES)


@settings(deadline=None)
@given(
    sections=st.lists(st.sampled_from(list(SECTION_NAMES)), unique=True),
    phases=st.lists(st.sampled_from(PHASES), unique=True),
    keys=st.lists(st.sampled_from(list(KEY_NAMES)), unique=True),
    net_calculated=st.booleans(),
)
def test_a_selection_selects_and_changes_nothing(
    sections: list[str], phases: list[str], keys: list[str], *, net_calculated: bool
) -> None:
    """STREAM_SECTIONS, STREAM_PHASES and STREAM_KEYS choose among all inputs; what they leave out changes no other."""
    reading = parse_event(site.THREE_PHASE_EVENT, 0)
    everything = selection(keys=tuple(KEY_NAMES), min_production="50", net_calculated=net_calculated)
    some = selection(tuple(sections), tuple(phases), tuple(keys), "50", net_calculated=net_calculated)
    names = {f"{section}_{phase}_{key}" for section in sections for phase in phases for key in keys}
    every = stream_row(reading, "n", everything).inputs
    assert stream_row(reading, "n", some).inputs == {name: every[name] for name in names}


@pytest.mark.parametrize("section", SECTION_NAMES)
def test_nothing_is_invented(section: str) -> None:
    """What the Envoy did not send has no input: a section, a phase, a value; nothing of an earlier event is used."""
    event = json.loads(site.THREE_PHASE_EVENT)
    whole = shown(stream_row(parse_event(site.THREE_PHASE_EVENT, 0), "n", selection()))
    del event[SECTION_NAMES[section]]["ph-a"]["v"], event[SECTION_NAMES[section]]["ph-b"]
    gone = [f"{section}_ph-a_rmsVoltage", *(f"{section}_ph-b_{key}" for key in FORUM_KEYS)]
    row = stream_row(parse_event(json.dumps(event), 0), "n", selection())
    assert shown(row) == {name: text for name, text in whole.items() if name not in gone}
    del event[SECTION_NAMES[section]]
    row = stream_row(parse_event(json.dumps(event), 0), "n", selection())
    assert shown(row) == {name: text for name, text in whole.items() if not name.startswith(section)}


def test_a_reading_without_selected_values_gives_an_empty_row() -> None:
    """A reading that has none of the selected inputs gives a row without any."""
    assert stream_row(watts("1", None, None), "n", selection(("cons", "net"))).inputs == {}


@pytest.mark.parametrize(
    ("least", "prod", "expected"),
    [
        ("0", "-2.125", "-2.125"),
        ("0", "-0.0", "-0.0"),
        ("5", "-2.125", "0"),
        ("5", "-0.0", "0"),
        ("5", "4.999", "0"),
        ("5", "5.00", "5.00"),
        ("5", "1200.5", "1200.5"),
        ("0.5", "0.499", "0"),
    ],
)
def test_small_production_counts_as_nothing(least: str, prod: str, expected: str) -> None:
    """Production below STREAM_MIN_PRODUCTION_W is 0 W, also when negative; 0, the default, leaves all as it is."""
    row = stream_row(watts(prod, "3.1", "2.2"), "n", selection(keys=("wNow",), min_production=least))
    assert shown(row) == {"prod_ph-a_wNow": expected, "cons_ph-a_wNow": "3.1", "net_ph-a_wNow": "2.2"}


def test_small_production_touches_watts_alone() -> None:
    """Voltage, current and all other values of a phase that counts as 0 W stay the Envoy's."""
    reading = parse_event(site.THREE_PHASE_EVENT, 0)
    before, after = (stream_row(reading, "n", selection(min_production=least)).inputs for least in ("0", "50"))
    assert {name: str(after[name]) for name in after if after[name] != before[name]} == {
        "prod_ph-b_wNow": "0",
        "prod_ph-c_wNow": "0",
    }


@pytest.mark.parametrize(
    ("prod", "cons", "least", "net"),
    [
        ("54.745", "1239.019", "0", "1184.274"),
        ("3000.1", "0.2", "0", "-2999.9"),
        ("-2.125", "100.5", "0", "102.625"),
        ("-2.125", "100.5", "5", "100.5"),
        ("5", "100.5", "5", "95.5"),
        (None, "100.5", "0", None),
        ("54.745", None, "0", None),
    ],
)
def test_net_can_be_calculated(prod: str | None, cons: str | None, least: str, net: str | None) -> None:
    """STREAM_NET=calculated: net watts are cons - prod after the rule for small production, exactly, or not there."""
    chosen = selection(("net",), ("ph-a",), ("wNow",), least, net_calculated=True)
    assert shown(stream_row(watts(prod, cons, "7777"), "n", chosen)) == ({"net_ph-a_wNow": net} if net else {})


def test_calculated_net_keeps_its_other_values() -> None:
    """Voltage, current and power factor of net are measured, whatever STREAM_NET says."""
    reading = parse_event(site.THREE_PHASE_EVENT, 0)
    measured = stream_row(reading, "n", selection()).inputs
    calculated = stream_row(reading, "n", selection(net_calculated=True)).inputs
    assert {name for name in measured if measured[name] != calculated[name]} <= {
        f"net_{phase}_wNow" for phase in PHASES
    }


@settings(deadline=None)
@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3) | st.sampled_from([Decimal("-0.0"), Decimal("1e3")])
)
def test_a_row_is_written_in_the_envoys_digits(value: Decimal) -> None:
    """A row's JSON gives each value with the digits that it came with."""
    text = Row(0, "n", {"prod_ph-a_wNow": value, "b": Decimal("50.00")}).text()
    numbers = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    assert numbers["prod_ph-a_wNow"].as_tuple() == value.as_tuple()
    assert text.endswith('"b":50.00}')


def test_an_empty_row_is_an_empty_object() -> None:
    """Without inputs the text is still JSON."""
    assert Row(0, "n", {}).text() == "{}"


def test_an_inverters_report_gives_two_inputs() -> None:
    """A report gives {serial}_wNow and {serial}_wMax, dated when the inverter reported; without a wMax, one."""
    report = InverterReport("121200310052", 1717243001, Decimal(46), Decimal(209))
    row = inverter_row(report, "Envoy-S-inverters")
    assert (row.at, row.node) == (1717243001, "Envoy-S-inverters")
    assert shown(row) == {"121200310052_wNow": "46", "121200310052_wMax": "209"}
    without = InverterReport("121200310052", 1717243001, Decimal(0), None)
    assert shown(inverter_row(without, "n")) == {"121200310052_wNow": "0"}
