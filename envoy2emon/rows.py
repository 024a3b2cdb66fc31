"""Readings and reports -> rows: one node's named inputs, by the names that the forum scripts gave them.

The law of this file: a name is `{section}_{phase}_{key}` or `{serial}_{key}`, a value is the Envoy's own; what the
Envoy did not send is not in the row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from envoy2emon.gateway.readings import InverterReport, MeterReading

SECTION_NAMES = {"prod": "production", "cons": "total-consumption", "net": "net-consumption"}
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
    """What EmonCMS receives at once for one node.

    `at` is in seconds: on the monotonic clock for the stream, the Envoy's epoch seconds for an inverter.
    """

    at: float
    node: str
    inputs: Mapping[str, Decimal]

    def text(self) -> str:
        """Return the inputs as a JSON object, each number in the Envoy's digits."""
        return "{" + ",".join([f'"{name}":{value}' for name, value in self.inputs.items()]) + "}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a reading's values become inputs, by the names of SECTION_NAMES, PHASES and KEY_NAMES.

    min_production: a phase's production below so many watts counts as 0 W; 0 leaves every value as it is.
    net_calculated: net wNow is cons - prod in place of the measured one.
    """

    sections: tuple[str, ...]
    phases: tuple[str, ...]
    keys: tuple[str, ...]
    min_production: Decimal
    net_calculated: bool


def stream_row(reading: MeterReading, node: str, selection: Selection) -> Row:
    """Name a reading's selected values; the row is empty when it has none of them."""
    inputs = {}
    for section in selection.sections:
        phases = reading.sections.get(SECTION_NAMES[section], {})
        for phase in selection.phases:
            values = phases.get(phase, {})
            for key in selection.keys:
                value = values.get(KEY_NAMES[key])
                if key == "wNow" and section != "cons":
                    value = _power(reading, section, phase, selection)
                if value is not None:
                    inputs[f"{section}_{phase}_{key}"] = value
    return Row(reading.at, node, inputs)


def inverter_row(report: InverterReport, node: str) -> Row:
    """Name a report's values: `{serial}_wNow` and `{serial}_wMax`, in watts."""
    inputs = {f"{report.serial}_wNow": report.watts}
    if report.max_watts is not None:
        inputs[f"{report.serial}_wMax"] = report.max_watts
    return Row(report.reported_at, node, inputs)


def _power(reading: MeterReading, section: str, phase: str, selection: Selection) -> Decimal | None:
    """Watts of a phase's production or net, by the owner's two rules."""

    def measured(name: str) -> Decimal | None:
        return reading.sections.get(SECTION_NAMES[name], {}).get(phase, {}).get("p")

    if section == "net" and not selection.net_calculated:
        return measured("net")
    prod, cons = measured("prod"), measured("cons")
    if prod is not None and selection.min_production and prod < selection.min_production:
        prod = Decimal(0)
    if section == "prod":
        return prod
    return None if prod is None or cons is None else cons - prod
