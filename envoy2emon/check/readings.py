"""What `check` reads out of the Envoy's answers: watts by phase, current transformers, inverters.

The law of this file: it judges by what is on record of gateways, and says by what it judges.
"""

import time
from collections.abc import Callable
from decimal import Decimal

from envoy2emon.gateway.answer import StreamLost
from envoy2emon.check.verdict import Verdict, fail, ok, warn
from envoy2emon.gateway.connection import Refused
from envoy2emon.gateway.client import Envoy
from envoy2emon.rows import SECTION_NAMES
from envoy2emon.inverters import DEAD_AFTER_S
from envoy2emon.outage import duration
from envoy2emon.gateway.readings import BadReading, MeterReading, parse_event, parse_inverters
from envoy2emon.gateway.sse import Decoder, LineTooLong

# Longer than a night.
STALE_S = 86400.0
_WORDS = {"prod": "production", "cons": "consumption", "net": "net"}


def first_event(read: Callable[[], bytes], patience: float) -> MeterReading:
    """Return the stream's first reading, within `patience` s. Raises StreamLost."""
    decoder, opened = Decoder(), time.monotonic()
    bad = ""
    while data := _next(read):
        now = time.monotonic()
        try:
            for text in decoder.feed(data):
                try:
                    return parse_event(text, now)
                except BadReading as trouble:
                    bad = f"; what it sends is {trouble}"
        except LineTooLong as trouble:
            raise StreamLost(f"the stream sends {trouble}") from None
        if now - opened > patience:
            raise StreamLost(f"the stream is open but sends no reading within {patience:.0f} s{bad}")
    raise StreamLost(f"the stream ends without a reading{bad}")


def _next(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except StreamLost as lost:
        raise StreamLost(f"the stream opens, but then {lost}") from None


def watts(reading: MeterReading) -> str:
    """Write every section's watts, phase by phase."""
    return "; ".join(_watts(name, reading) for name, section in SECTION_NAMES.items() if section in reading.sections)


def _watts(name: str, reading: MeterReading) -> str:
    """Write a section's watts, for the phases in use: unused ones are all zeros."""
    phases = {
        phase: values["p"]
        for phase, values in reading.sections[SECTION_NAMES[name]].items()
        if "p" in values and any(values.get(key) for key in ("p", "v"))
    }
    each = ", ".join(f"{phase} {round(watts)}" for phase, watts in phases.items())
    return f"{_WORDS[name]} {round(sum(phases.values(), Decimal(0)))} W ({each or 'no phase in use'})"


def transformers(reading: MeterReading, sections: tuple[str, ...]) -> Verdict:
    """Look for current transformers behind the sections that are posted.

    At night a production's p is near 0, but its q, s and i are not; without CTs the section is missing or all zeros.
    """
    lacking = {}
    for name in sections:
        phases = reading.sections.get(SECTION_NAMES[name], {}).values()
        if not any(values.get(key) for values in phases for key in ("p", "q", "s", "i")):
            lacking[name] = f"{_WORDS[name]} is {'all zeros' if phases else 'missing'}"
    if not lacking:
        return ok("meters", "every section that is posted shows current")
    cure = "are its current transformers (CTs) connected, and enabled in the installer's setup?"
    if rest := ",".join(name for name in sections if name not in lacking):
        cure += f" If there are none: STREAM_SECTIONS={rest}"
    return warn("meters", f"{', '.join(lacking.values())}: {cure}")


def inverters(envoy: Envoy, clock: float) -> Verdict:
    """Ask for the inverters; `clock` is how far ahead the Envoy's clock is, in seconds."""
    try:
        text = envoy.inverters()
        if text.strip() == "[]":
            return warn("inverters", "the Envoy lists none, as it does now and then by night: check again by day")
        reports, skipped = parse_inverters(text)
    except Refused as trouble:
        return fail("inverters", str(trouble))
    except (StreamLost, BadReading) as trouble:
        return fail("inverters", f"the answer is {trouble}. Wait five minutes and check again")
    ages = {report.serial: time.time() + clock - report.reported_at for report in reports}
    dead = len([age for age in ages.values() if age > DEAD_AFTER_S])
    rest = f"; {dead} with a last report of more than 7 days ago: taken for dead and not posted" if dead else ""
    rest += f"; {len(skipped)} without serial number, date or watts: not posted" if skipped else ""
    live = sorted((max(0.0, age), serial) for serial, age in ages.items() if age <= DEAD_AFTER_S)
    if not live:
        return warn("inverters", f"none of them reports{rest}: are they off? Look into Enphase's app")
    (newest, first), (oldest, last) = live[0], live[-1]
    told = f"{len(live)}; newest report {duration(newest)} ago ({first}), oldest {duration(oldest)} ago ({last}){rest}"
    if newest > STALE_S:
        return warn("inverters", f"{told}: since then the Envoy hears none of them; look into Enphase's app")
    return ok("inverters", told)
