"""Event text -> MeterReading, meter reports -> MeterReading, inverter list -> InverterReport.

Values are as the gateway sent them, and none is made up. Numbers are Decimals, so that they leave this program with the
digits in which they came. A value that is not a finite number of at most 40 characters is left out; the others of its
event are kept. No value is rejected as implausible, because |p| > s, a negative s and a wrong f are all on record
(vincentwolsink's integration).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

# The measurementType of each kind of meter (pyenphase).
SECTIONS = (
    "production",
    "net-consumption",
    "total-consumption",
    "storage",
    "backfeed",
    "load",
    "evse",
    "pv3p",
)
PHASES = ("ph-a", "ph-b", "ph-c")

# p: real power W, q: reactive power var, s: apparent power VA, v: V rms, i: A rms, pf: power factor, f: Hz.
# The right-hand names are those of /ivp/meters/reports/, the source of the stream's data (Matthew1471/Enphase-API).
REPORT_NAMES = {
    "p": "actPower",
    "q": "reactPwr",
    "s": "apprntPwr",
    "v": "rmsVoltage",
    "i": "rmsCurrent",
    "pf": "pwrFactor",
    "f": "freqHz",
}

# The greatest float is 1.8e308. adjusted() returns the exponent in a fifth of the time that float() takes.
_INFINITE = 308
_LONGEST_NUMBER = 40
_LONGEST_SERIAL = 20  # a recorded one has twelve digits
_MOST_INVERTERS = 1000  # 51 entries are on record


class BadReading(Exception):
    """The gateway's answer is not what the page should hold; the text says what it is instead."""


@dataclass(frozen=True, slots=True)
class MeterReading:
    """The values of all meters at one moment.

    at: seconds on the monotonic clock. sections: values by section, phase and quantity, a key of REPORT_NAMES. Its p is
    positive while producing (production), consuming (total-consumption) or importing (net-consumption).
    """

    at: float
    sections: Mapping[str, Mapping[str, Mapping[str, Decimal]]]


@dataclass(frozen=True, slots=True)
class InverterReport:
    """An inverter's last report.

    reported_at: epoch seconds by the gateway's clock. watts: power in this report. max_watts: the highest reported.
    dev_type: 1 is a microinverter, 11 an AC battery; None if the gateway does not send it, as up to M4.2.33.
    """

    serial: str
    reported_at: int
    watts: Decimal
    max_watts: Decimal | None
    dev_type: int | None = None


def parse_event(text: str, at: float) -> MeterReading:
    """Parse one event of /stream/meter. Raises BadReading if it holds no known value."""
    return MeterReading(at, _known_sections(_object(_load(text))))


def parse_reports(text: str, at: float) -> tuple[int, MeterReading]:
    """Parse an answer of /ivp/meters/reports/; return createdAt (epoch seconds) and a reading like those of the stream.

    Only `lines` is used, one entry per phase in order, because `cumulative` adds up voltages too. Raises BadReading.
    """
    sections: dict[str, Any] = {}
    created = 0
    for report in _list(_load(text)):
        if isinstance(report, dict) and isinstance(lines := report.get("lines"), list):
            phases = zip(PHASES, lines, strict=False)
            sections[str(report.get("reportType"))] = {
                phase: {key: line.get(name) for key, name in REPORT_NAMES.items()}
                for phase, line in phases
                if isinstance(line, dict)
            }
            created = max(created, _positive(report.get("createdAt")) or 0)
    reading = MeterReading(at, _known_sections(sections))
    if not created:
        raise BadReading("reports without createdAt")
    return created, reading


def parse_inverters(text: str) -> tuple[list[InverterReport], list[str]]:
    """Parse an answer of /api/v1/production/inverters; return its reports and, in words, the entries that are unusable.

    An entry needs a serial number, a positive date and watts. If a serial number is listed twice, its newest report
    counts. Raises BadReading unless the answer is a list of 1 to 1000 entries.
    """
    entries = _list(_load(text))
    if not entries:
        raise BadReading("an empty list")
    if len(entries) > _MOST_INVERTERS:
        raise BadReading(f"a list of {len(entries)} entries")
    reports: dict[str, InverterReport] = {}
    skipped = []
    for number, entry in enumerate(entries, 1):
        unit = entry if isinstance(entry, dict) else {}
        serial, date = unit.get("serialNumber"), _positive(unit.get("lastReportDate"))
        watts = _number(unit.get("lastReportWatts"))
        if not (isinstance(serial, str) and serial.isalnum() and serial.isascii() and len(serial) <= _LONGEST_SERIAL):
            skipped.append(f"entry {number}")
        elif date and watts is not None:
            if serial not in reports or reports[serial].reported_at < date:
                most, kind = _number(unit.get("maxReportWatts")), _positive(unit.get("devType"))
                reports[serial] = InverterReport(serial, date, watts, most, kind)
        else:
            skipped.append(f"inverter {serial}")
    return list(reports.values()), skipped


def _known_sections(answer: dict[str, Any]) -> dict[str, dict[str, dict[str, Decimal]]]:
    """Return the known values; sections and phases without any are left out. Raises BadReading if there are none."""
    sections = {}
    for section in SECTIONS:
        if isinstance(phases := answer.get(section), dict):
            known = {
                phase: values
                for phase in PHASES
                if isinstance(sent := phases.get(phase), dict)
                and (values := {key: number for key in REPORT_NAMES if (number := _number(sent.get(key))) is not None})
            }
            if known:
                sections[section] = known
    if not sections:
        raise BadReading("no reading, because it holds no value of a meter")
    return sections


def _load(text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        kind = "an HTML page" if text.lstrip()[:1] == "<" else "an empty answer" if not text.strip() else "not JSON"
        raise BadReading(f"{kind}: {text.strip()[:60]!r}") from error


def _literal(digits: str) -> Decimal | None:
    try:
        return Decimal(digits) if len(digits) <= _LONGEST_NUMBER else None
    except InvalidOperation:  # an exponent of twenty digits
        return None


# json.loads() would make a new decoder for each event.
_JSON = json.JSONDecoder(parse_float=_literal, parse_int=_literal, parse_constant=lambda _: None)


def _object(value: Any) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise BadReading(f"a JSON {type(value).__name__} in place of an object")
    return value


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise BadReading(f"a JSON {type(value).__name__} in place of a list")
    return value


def _number(value: Any) -> Decimal | None:  # noqa: ANN401
    # EmonCMS turns text and null into 0, and an infinity (PHP reads 1e999 as one) spoils a feed for good.
    return value if isinstance(value, Decimal) and value.adjusted() < _INFINITE else None


def _positive(value: Any) -> int | None:  # noqa: ANN401
    number = _number(value)
    return int(number) if number is not None and 0 < number < 2**33 else None
