"""What a simulated gateway knows of its site: the answers of its endpoints, made from one event of its meters.

All answers give the same watts of the same moment, as on a real gateway, where the stream and /ivp/meters/reports/ have
one source (Matthew1471/Enphase-API, commit 929d490). Names and shapes are those of pyenphase's fixtures, without the
fields that nothing here reads.
"""

import json
import time
from collections.abc import Collection, Sequence
from typing import Any

from envoy2emon.gateway.readings import REPORT_NAMES

Json = dict[str, Any]

# The event in the forum post that began this project; real, three phases, a dull morning.
THREE_PHASE_EVENT = (
    '{"production":{"ph-a":{"p":54.745,"q":155.094,"s":185.367,"v":246.186,"i":0.752,"pf":0.31,"f":50.0},'
    '"ph-b":{"p":49.576,"q":139.221,"s":179.72,"v":248.261,"i":0.723,"pf":0.28,"f":50.0},'
    '"ph-c":{"p":42.27,"q":119.811,"s":131.106,"v":245.835,"i":0.532,"pf":0.33,"f":50.0}},'
    '"net-consumption":{"ph-a":{"p":1184.274,"q":247.115,"s":1220.902,"v":246.192,"i":4.958,"pf":0.97,"f":50.0},'
    '"ph-b":{"p":529.541,"q":-331.655,"s":655.161,"v":248.442,"i":2.644,"pf":0.81,"f":50.0},'
    '"ph-c":{"p":331.505,"q":-159.651,"s":387.287,"v":245.998,"i":1.575,"pf":0.87,"f":50.0}},'
    '"total-consumption":{"ph-a":{"p":1239.019,"q":92.021,"s":1405.839,"v":246.189,"i":5.71,"pf":0.88,"f":50.0},'
    '"ph-b":{"p":579.117,"q":-470.876,"s":836.026,"v":248.352,"i":3.366,"pf":0.69,"f":50.0},'
    '"ph-c":{"p":373.775,"q":-279.463,"s":518.086,"v":245.916,"i":2.107,"pf":0.72,"f":50.0}}}'
)


def version(firmware: str) -> tuple[int, ...]:
    """Return the numbers in a firmware's name: D7.6.175 -> (7, 6, 175)."""
    return tuple(int(part) for part in firmware[1:].split("."))


def info(firmware: str, serial: str, *, metered: bool) -> str:
    """Make the XML of /info: no <imeter> on firmware 3 without meters, <web-tokens> from firmware 7 on."""
    imeter = f"    <imeter>{str(metered).lower()}</imeter>\n" if metered or version(firmware) >= (4,) else ""
    tokens = "  <web-tokens>true</web-tokens>\n" if version(firmware) >= (7,) else ""
    return (
        f"<?xml version='1.0' encoding='UTF-8'?>\n<envoy_info>\n  <time>{int(time.time())}</time>\n  <device>\n"
        f"    <sn>{serial}</sn>\n    <pn>800-00654-r08</pn>\n    <software>{firmware}</software>\n"
        f"    <euaid>4c8675</euaid>\n    <seqnum>0</seqnum>\n    <apiver>1</apiver>\n"
        f"{imeter}  </device>\n{tokens}</envoy_info>\n"
    )


def inverters(count: int, reported_at: int) -> list[Json]:
    """Make the list of /api/v1/production/inverters, whose newest report is dated `reported_at` (epoch seconds).

    Each inverter reports every five minutes, staggered.
    """
    return [
        {
            "serialNumber": f"1220{number * 7919:08}",
            "lastReportDate": reported_at - 300 * (number - 1) // count,
            "devType": 1,
            "lastReportWatts": 180 + number * 13 % 40,
            "maxReportWatts": 290 + number % 7,
        }
        for number in range(1, count + 1)
    ]


def reports(event: str, created_at: int) -> list[Json]:
    """Make the list of /ivp/meters/reports/ for an event of the stream; created_at in epoch seconds.

    `lines` has one entry for each phase in use.
    """
    made = []
    for section, phases in json.loads(event).items():
        used = [phase for phase in phases.values() if phase.get("v")]
        lines = [{name: phase.get(key, 0.0) for key, name in REPORT_NAMES.items()} for phase in used]
        made.append({"createdAt": created_at, "reportType": section, "lines": lines})
    return made


def meters(site: Sequence[Json], off: Collection[str] = ()) -> list[Json]:
    """Make the list of /ivp/meters for these reports; the kinds of meters in `off` are disabled.

    With net-consumption, total-consumption has no meter, because the gateway computes it. Load-only CTs measure it.
    """
    kinds = {report["reportType"]: report for report in site}
    if "net-consumption" in kinds:
        kinds.pop("total-consumption", None)
    return [
        {
            "state": "disabled" if kind in off else "enabled",
            "measurementType": kind,
            "phaseCount": len(report["lines"]),
            "meteringStatus": "normal",
            "statusFlags": [],
        }
        for kind, report in kinds.items()
    ]
