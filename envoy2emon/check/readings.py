"""What `check` concludes from the gateway's answers: watts by phase, which sections are posted, the inverters.

It judges by what is on record about gateways (gateway/meters.py has the rules for meters), and says on what grounds.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal

from envoy2emon.check.verdict import Verdict, ok, warn
from envoy2emon.gateway.meters import Meter, advice
from envoy2emon.gateway.readings import InverterReport, MeterReading
from envoy2emon.inverters import AC_BATTERY, DEAD_AFTER_S
from envoy2emon.outage import duration
from envoy2emon.rows import SECTION_NAMES
from envoy2emon.settings import Settings

LONGER_THAN_A_NIGHT_S = 86400.0
# Inverters report every 5 or 15 minutes. An older report says nothing about the present watts.
RECENT_S = 1200.0
# Below this, clouds and dusk are a likelier explanation than a missing current transformer.
MUCH_W = 500
_CTS = "are its current transformers (CTs) connected, and enabled in the installer's setup?"


def watts(reading: MeterReading) -> str:
    """Format every section's watts, phase by phase."""
    return "; ".join(_watts(section, reading) for section in SECTION_NAMES.values() if section in reading.sections)


def _watts(section: str, reading: MeterReading) -> str:
    """Format a section's watts, for the phases in use, because unused ones are all zeros."""
    phases = {
        phase: values["p"]
        for phase, values in reading.sections[section].items()
        if "p" in values and any(values.get(key) for key in ("p", "v"))
    }
    each = ", ".join(f"{phase} {round(power)}" for phase, power in phases.items())
    return f"{section} {_sum(phases.values())} W ({each or 'no phase in use'})"


def posted(reading: MeterReading, meters: Sequence[Meter], settings: Settings) -> Iterator[Verdict]:
    """Report what is wrong with the posted sections, and which other sections the gateway sends."""
    sections = settings.stream_sections
    calculated = settings.stream_net == "calculated"
    troubles = advice(meters, sections, reading, net_calculated=calculated) or _silent(reading, sections, calculated)
    for trouble in troubles:
        yield warn("meters", trouble)
    if not troubles:
        yield ok("meters", f"what is posted ({','.join(sections)}) is measured")
    off = {meter.kind for meter in meters if not meter.enabled}
    if off & {"production", "net-consumption"}:
        off.add("total-consumption")  # the gateway computes it from both
    names = [name for name, section in SECTION_NAMES.items() if section in reading.sections.keys() - off]
    if more := [name for name in names if name not in sections]:
        text = " and ".join(SECTION_NAMES[name] for name in more)
        cure = f"STREAM_SECTIONS={','.join([*sections, *more])} posts all"
        yield ok("meters", f"the gateway also sends {text}, which you do not post: {cure}")


def _silent(reading: MeterReading, sections: Collection[str], calculated: bool) -> list[str]:  # noqa: FBT001
    """Return a complaint if posted sections seem to have no current transformers (CTs), else an empty list.

    At night the production's p is near 0, but its q, s and i are not. Without CTs the section is missing or all zeros.
    """
    lacking = {}
    for name in sections:
        phases = reading.sections.get(SECTION_NAMES[name], {}).values()
        measured = any(values.get(key) for values in phases for key in ("p", "q", "s", "i"))
        if not (measured or (name == "net" and calculated)):
            lacking[name] = f"{SECTION_NAMES[name]} is {'all zeros' if phases else 'missing'}"
    rest = ",".join(name for name in sections if name not in lacking)
    cure = f" If there are none: STREAM_SECTIONS={rest}" if rest else ""
    return [f"{', '.join(lacking.values())}: {_CTS}{cure}"] if lacking else []


def panels(reading: MeterReading, reports: Sequence[InverterReport], now: float) -> Iterator[Verdict]:
    """Warn if the production meter measures far less than the inverters report; `now`: epoch s, the gateway's clock."""
    recent = [each for each in reports if each.dev_type != AC_BATTERY and now - each.reported_at < RECENT_S]
    given = _sum(report.watts for report in recent)
    phases = reading.sections.get("production", {}).values()
    measured = _sum(values["p"] for values in phases if "p" in values)
    if given >= MUCH_W and measured < given / 20:
        text = f"the inverters report {given} W, but the production meter measures {measured} W"
        cure = "If there is none: STREAM_SECTIONS=net, and the inverters tell the production"
        yield warn("meters", f"{text}: {_CTS} {cure}")


def inverters(reports: Sequence[InverterReport], skipped: int, ahead: float) -> Verdict:
    """Say how many inverters report, and how long ago; `ahead`: the seconds by which the gateway's clock is ahead."""
    rest = f"; {skipped} not posted, for lack of a serial number, date or watts" if skipped else ""
    if not reports:
        return warn("inverters", f"none of them has ever reported{rest}: are they off? Look in Enphase's app")
    newest, now = max(report.reported_at for report in reports), time.time() + ahead
    live = sorted((r for r in reports if r.reported_at >= newest - DEAD_AFTER_S), key=lambda r: -r.reported_at)
    batteries = [report.serial for report in live if report.dev_type == AC_BATTERY]
    power = _sum(report.watts for report in live if report.dev_type != AC_BATTERY)
    first, last = (f"{duration(max(0.0, now - r.reported_at))} ago ({r.serial})" for r in (live[0], live[-1]))
    text = f"{len(live) - len(batteries)} with {power} W; newest report {first}, oldest {last}"
    if batteries:
        text += f"; AC batteries, posted beside them but not summed: {', '.join(batteries)}"
    if dead := len(reports) - len(live):
        text += f"; {dead} treated as removed and not posted, because the newest report is 7 days newer than theirs"
    if now - newest > LONGER_THAN_A_NIGHT_S:
        return warn("inverters", f"{text}{rest}. The gateway has heard from none of them since: look in Enphase's app")
    return ok("inverters", text + rest)


def _sum(numbers: Iterator[Decimal] | Collection[Decimal]) -> int:
    return round(sum(numbers, Decimal(0)))
