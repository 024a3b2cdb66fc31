"""Readings and reports -> rows: one node's inputs at one date, with the input names that the forum scripts use.

An input's name is `{section}_{phase}_{key}` or `{serial}_{key}`. Its value is the gateway's own unless the Selection
changes it. What the gateway did not send is not in the row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from envoy2emon.gateway.readings import InverterReport, MeterReading

SECTION_NAMES = {
    "prod": "production",
    "cons": "total-consumption",
    "net": "net-consumption",
    "storage": "storage",
    "backfeed": "backfeed",
    "load": "load",
    "evse": "evse",
    "pv3p": "pv3p",
}
KEY_NAMES = {
    "wNow": "p",
    "reactPower": "q",
    "apprntPwr": "s",
    "rmsVoltage": "v",
    "rmsCurrent": "i",
    "pwrFactor": "pf",
    "frequency": "f",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One node's inputs at one date; `date` is in whole epoch seconds, and numbers keep the gateway's digits."""

    date: int
    inputs: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Undated:
    """A row that has no date yet; `moment` is in seconds on the monotonic clock."""

    moment: float
    inputs: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a reading's values become inputs, by the names of SECTION_NAMES, PHASES and KEY_NAMES.

    min_production: a phase's production below this many watts counts as 0 W; 0 changes no value.
    net_calculated: net wNow is cons - prod instead of the measured value.
    """

    sections: tuple[str, ...]
    phases: tuple[str, ...]
    keys: tuple[str, ...]
    min_production: Decimal
    net_calculated: bool


def stream_inputs(reading: MeterReading, selection: Selection) -> dict[str, Decimal]:
    """Return a reading's selected values by input name; the result may be empty."""
    inputs = {}
    for section in selection.sections:
        phases = reading.sections.get(SECTION_NAMES[section], {})
        for phase in selection.phases:
            values = phases.get(phase, {})
            for key in selection.keys:
                if key == "wNow" and section in ("prod", "net"):
                    value = _power(reading, section, phase, selection)
                else:
                    value = values.get(KEY_NAMES[key])
                if value is not None:
                    inputs[f"{section}_{phase}_{key}"] = value
    return inputs


def inverter_row(report: InverterReport) -> Row:
    """Return a report as a row with its date and the inputs `{serial}_wNow` and `{serial}_wMax` in watts."""
    inputs = {f"{report.serial}_wNow": report.watts}
    if report.max_watts is not None:
        inputs[f"{report.serial}_wMax"] = report.max_watts
    return Row(report.reported_at, inputs)


def not_applied(rows: Iterable[Row], shown: Mapping[str, int]) -> list[Row]:
    """Return the rows that EmonCMS may lack. shown: the date that EmonCMS shows for each input, from its last row.

    EmonCMS applies rows in order, so it has a row if it shows a later date for one of the row's inputs. A row with the
    shown date itself is uncertain, because EmonCMS sets a row's inputs before it runs their processes and may have
    stopped in between (input_methods.php). Posting a row again with the same date changes nothing. A shown date that
    none of these rows has for that input is ignored, because it is another sender's or an earlier clock's.
    """
    rows = list(rows)
    ours = {(name, row.date) for row in rows for name in row.inputs}
    reached = {name: date for name, date in shown.items() if (name, date) in ours}
    return [row for row in rows if all(row.date >= reached.get(name, 0) for name in row.inputs)]


def inputs_json(inputs: Mapping[str, Decimal]) -> str:
    """Return named values as a JSON object whose numbers keep the digits in which they came."""
    return "{" + ",".join([f'"{name}":{value}' for name, value in inputs.items()]) + "}"


def _power(reading: MeterReading, section: str, phase: str, selection: Selection) -> Decimal | None:
    """Return the watts of a phase's production or net, by min_production and net_calculated; None if unknown.

    Load-only CTs measure three phases of consumption but one of production (HA 121781). If there is any production, the
    calculated net therefore takes a phase without production as 0 W.
    """

    def measured(name: str) -> Decimal | None:
        return reading.sections.get(SECTION_NAMES[name], {}).get(phase, {}).get("p")

    if section == "net" and not selection.net_calculated:
        return measured("net")
    prod, cons = measured("prod"), measured("cons")
    if prod is not None and selection.min_production and prod < selection.min_production:
        prod = Decimal(0)
    if section == "prod":
        return prod
    production = reading.sections.get("production", {})
    if prod is None and production and phase not in production:
        prod = Decimal(0)
    return None if prod is None or cons is None else cons - prod
