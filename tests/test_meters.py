"""/ivp/meters -> meters, and the advice that the owner gets about them."""

import json
from typing import Any

import pytest

from envoy2emon.gateway.meters import Meter, advice, parse_meters
from envoy2emon.gateway.readings import BadReading, MeterReading, parse_reports
from tests import fixtures

ALL = ("prod", "cons", "net")
SETUP = "are the current transformers (CTs) connected, and enabled in the installer's setup? If there are none: "
OFF = "sudo systemctl disable --now envoy2emon"


def site(name: str) -> tuple[list[Meter], MeterReading]:
    """Return the meters of a site and its reading."""
    found = fixtures.site_of(name)
    return parse_meters(json.dumps(found["meters"])), parse_reports(json.dumps(found["reports"]), 1.0)[1]


def meter(kind: str, state: str = "enabled", **more: Any) -> str:  # noqa: ANN401
    """Return the answer of a gateway that has only this meter."""
    return json.dumps([{"measurementType": kind, "state": state, "phaseCount": 3, "meteringStatus": "normal"} | more])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (meter("net-consumption", "disabled"), "net-consumption, off"),
        (meter("production", meteringStatus="check-wiring"), "production, 3 phases, on, check its wiring"),
        (meter("storage", meteringStatus="not-metering"), "storage, 3 phases, on, it does not measure"),
        (
            meter("production", statusFlags=["production-imbalance", "power-on-unused-phase"]),
            "production, 3 phases, on, its phases produce unequal power, there is power on a phase that is not in use",
        ),
        (
            meter("production", phaseCount=1, statusFlags=["negative-production"]),
            "production, 1 phase, on, it measures a negative production: is a CT the wrong way round?",
        ),
        (meter("evse", meteringStatus="new\x1b[31m\nword" + "x" * 99), f"evse, 3 phases, on, new?[31m word{'x' * 27}"),
        (meter("load", statusFlags=[1, None, "odd"], phaseCount=10**30), "load, 1 phase, on, odd"),
    ],
)
def test_a_meter_is_said_in_plain_words(answer: str, words: str) -> None:
    """A meter's words are its kind, phases, on or off, and what the gateway finds wrong, cleaned and cut short."""
    assert [each.words() for each in parse_meters(answer)] == [words]


@pytest.mark.parametrize("text", ["{}", "<html>", "[" * 60_000, "[" + "0," * 100 + "0]"], ids=lambda text: text[:10])
def test_what_is_no_list_of_meters_is_a_bad_reading(text: str) -> None:
    """An answer that is not a list, or has more than a hundred entries, is a BadReading."""
    with pytest.raises(BadReading, match="no list of meters"):
        parse_meters(text)


def test_what_is_no_meter_is_left_out() -> None:
    """Entries of the list that are not meters, or of a kind that we do not know, are left out."""
    assert parse_meters('[7, null, {}, {"measurementType": {}}, {"measurementType": "heat"}]') == []


METERS_OFF = "the meters for production and consumption are off, and what the gateway sends of them is noise: " + SETUP
NET_OFF = "the consumption meter is off, so net is noise and consumption only a copy of production: " + SETUP
NET_ONLY = "the production meter is off, so production is noise and consumption only a copy of net: " + SETUP
LOAD_ONLY = "its consumption CTs measure consumption alone (load-only) and it sends no net: "
COPIED = (
    "the gateway sends the same watts as consumption and as net although the panels produce, a fault of its firmware "
    "(D8.3.5433): consumption is short by all of the production. Set "
)


@pytest.mark.parametrize(
    ("name", "sections", "told"),
    [
        ("one_line", ALL, ""),
        ("meters_off", ALL, METERS_OFF + OFF),
        ("net_off", ALL, NET_OFF + "STREAM_SECTIONS=prod"),
        ("net_off_noise", ("cons", "prod", "evse"), NET_OFF + "STREAM_SECTIONS=prod,evse"),
        ("net_off", ("cons", "net"), NET_OFF + OFF),
        ("net_off", ("prod",), ""),
        ("net_only", ALL, NET_ONLY + "STREAM_SECTIONS=net, and the inverters tell the production"),
        ("net_only", ("net",), ""),
        ("load_only", ALL, LOAD_ONLY + "set STREAM_NET=calculated"),
        ("load_only", ("prod", "cons"), ""),
        ("total_is_net", ALL, COPIED + "STREAM_SECTIONS=prod,net"),
        ("total_is_net", ("prod", "net"), ""),
    ],
)
def test_an_owner_is_told_what_is_wrong_with_what_is_posted(name: str, sections: tuple[str, ...], told: str) -> None:
    """Each kind of fault has its own advice with the right cure, and there is none if nothing wrong is posted."""
    meters, reading = site(name)
    assert advice(meters, sections, reading) == [told][: bool(told)]


def test_a_net_that_is_calculated_needs_no_advice() -> None:
    """STREAM_NET=calculated is the cure for load-only CTs, so where it is set there is no advice."""
    meters, reading = site("load_only")
    assert advice(meters, ALL, reading, net_calculated=True) == []
    assert advice([], ALL, reading) == []


def test_other_meters_that_are_off_or_wired_wrongly() -> None:
    """Other meters that are off, and meters with faults, are reported only if their section is posted."""
    both = parse_meters(meter("production", meteringStatus="check-wiring")) + parse_meters(meter("storage", "disabled"))
    wiring = "the meter for production: check its wiring"
    assert advice(both, ("prod",)) == [wiring]
    storage = f"the meter for storage is off: {SETUP}STREAM_SECTIONS=prod"
    assert advice(both, ("prod", "storage")) == [wiring, storage]
    assert advice(both, ("pv3p",)) == []


def test_at_night_total_may_equal_net() -> None:
    """While nothing is produced, consumption and net are equal on every gateway, so that is not reported."""
    watts = {"production": -2.1, "net-consumption": 5, "total-consumption": 5}
    reports = [{"createdAt": 1, "reportType": kind, "lines": [{"actPower": p}]} for kind, p in watts.items()]
    _, reading = parse_reports(json.dumps(reports), 1.0)
    assert advice([], ALL, reading) == []
