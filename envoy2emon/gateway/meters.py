"""The list of a gateway's meters, /ivp/meters: which there are, whether they are on, and advice for their owner.

A meter that is off keeps sending noise or a copy of another meter's values. But plausible watts from one are on record
too (custom_envoy 175), so the owner is warned and no value is dropped. Source: the recordings of pyenphase.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from envoy2emon.gateway.readings import SECTIONS, BadReading, MeterReading
from envoy2emon.rows import SECTION_NAMES
from envoy2emon.words import clean

_MOST_METERS = 100
_NOISE_W = 10  # meters that are off send up to 5 W of noise (7.6.175, 8.2.4264, 8.3.5289)
_STATUS = {"check-wiring": "check its wiring", "not-metering": "it does not measure"}
_FLAGS = {
    "production-imbalance": "its phases produce unequal power",
    "negative-production": "it measures a negative production: is a CT the wrong way round?",
    "power-on-unused-phase": "there is power on a phase that is not in use",
}
_CTS = "are the current transformers (CTs) connected, and enabled in the installer's setup?"
STREAM_OFF = "sudo systemctl disable --now envoy2emon"


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter: kind is one of readings.SECTIONS; status and flags are the gateway's own words."""

    kind: str
    enabled: bool
    phases: int
    status: str
    flags: tuple[str, ...]

    def words(self) -> str:
        """Return the meter and its state in words: "production, 3 phases, on"."""
        if not self.enabled:
            return f"{self.kind}, off"
        text = f"{self.kind}, {self.phases} phase{'s' * (self.phases != 1)}, on"
        return "".join([text, *(f", {trouble}" for trouble in self.troubles())])

    def troubles(self) -> list[str]:
        """Return in words what the gateway finds wrong with it."""
        status = [] if self.status in ("normal", "") else [_STATUS.get(self.status, self.status)]
        return status + [_FLAGS.get(flag, flag) for flag in self.flags]


def parse_meters(text: str) -> list[Meter]:
    """Parse an answer of /ivp/meters; a gateway without meters gives an empty list. Raises BadReading."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, list) or len(answer) > _MOST_METERS:
        raise BadReading("no list of meters")
    return [
        Meter(kind, entry.get("state") == "enabled", _phases(entry), _word(entry.get("meteringStatus")), _flags(entry))
        for entry in answer
        if isinstance(entry, dict) and (kind := entry.get("measurementType")) in SECTIONS
    ]


def advice(
    meters: Sequence[Meter],
    sections: Collection[str],
    reading: MeterReading | None = None,
    *,
    net_calculated: bool = False,
) -> list[str]:
    """Return in words what is wrong with the sections that are posted, and the cure.

    sections: keys of rows.SECTION_NAMES. reading: a reading of this gateway, if there is one. net_calculated: whether
    STREAM_NET is calculated.
    """
    on = {meter.kind for meter in meters if meter.enabled}
    found = []
    if meters and (trouble := _consumption(on, sections, reading, net_calculated=net_calculated)):
        found.append(trouble)
    if reading and "cons" in sections and total_is_net(reading):
        found.append(
            "the gateway sends the same watts as consumption and as net although the panels produce, a fault of its "
            f"firmware (D8.3.5433): consumption is short by all of the production. Set {_setting(sections, {'cons'})}"
        )
    for meter in meters:
        name = next(name for name, kind in SECTION_NAMES.items() if kind == meter.kind)
        if name in sections and not meter.enabled and name not in ("prod", "cons", "net"):
            found.append(f"the meter for {meter.kind} is off: {_CTS} If there are none: {_setting(sections, {name})}")
        if meter.enabled and meter.kind in (SECTION_NAMES[each] for each in sections):
            found += [f"the meter for {meter.kind}: {trouble}" for trouble in meter.troubles()]
    return found


def total_is_net(reading: MeterReading) -> bool:
    """Return whether consumption equals net on every phase although something is produced.

    Firmware D8.3.5433 sends this (pyenphase PR 477).
    """
    production, net, total = (
        {phase: values["p"] for phase, values in reading.sections.get(section, {}).items() if "p" in values}
        for section in ("production", "net-consumption", "total-consumption")
    )
    return bool(net) and net == total and any(abs(watts) > _NOISE_W for watts in production.values())


def _consumption(on: set[str], sections: Collection[str], reading: MeterReading | None, *, net_calculated: bool) -> str:
    """Return in words what is wrong with production, consumption and net; "" if nothing is."""
    production, net, total = (kind in on for kind in ("production", "net-consumption", "total-consumption"))
    posted = {name for name in ("prod", "cons", "net") if name in sections}
    if posted and not (production or net or total):
        trouble = "the meters for production and consumption are off, and what the gateway sends of them is noise"
        return f"{trouble}: {_CTS} If there are none: {STREAM_OFF}"
    if posted - {"prod"} and not (net or total):
        trouble = "the consumption meter is off, so net is noise and consumption only a copy of production"
        return f"{trouble}: {_CTS} If there are none: {_setting(sections, {'cons', 'net'})}"
    if posted - {"net"} and net and not production:
        trouble = "the production meter is off, so production is noise and consumption only a copy of net"
        cure = f"{_setting(sections, {'prod', 'cons'})}, and the inverters tell the production"
        return f"{trouble}: {_CTS} If there are none: {cure}"
    sends_net = reading is not None and "net-consumption" in reading.sections
    if production and total and not net and "net" in posted and not net_calculated and not sends_net:
        return (
            "its consumption CTs measure consumption alone (load-only) and it sends no net: set STREAM_NET=calculated"
        )
    return ""


def _setting(sections: Collection[str], without: set[str]) -> str:
    rest = ",".join(name for name in sections if name not in without)
    return f"STREAM_SECTIONS={rest}" if rest else STREAM_OFF


def _phases(entry: dict[str, Any]) -> int:
    phases = entry.get("phaseCount")
    return phases if isinstance(phases, int) and phases in (1, 2, 3) else 1


def _flags(entry: dict[str, Any]) -> tuple[str, ...]:
    flags = entry.get("statusFlags")
    return tuple(filter(None, map(_word, flags[:10]))) if isinstance(flags, list) else ()


def _word(value: object) -> str:
    return clean(value, 40) if isinstance(value, str) else ""
