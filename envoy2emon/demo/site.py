"""What a simulated Envoy knows of its site: the answers of its endpoints, worked out from one meter event.

The law of this file: all answers tell of the same moment and the same watts, as on a real gateway, where the stream
and /ivp/meters/reports/ have one source (Matthew1471/Enphase-API, commit 929d490).
"""

import json
import time
from collections.abc import Sequence
from typing import Any

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

_EIDS = {"production": 704643328, "net-consumption": 704643584}
_PHASE_MODES = {1: "single", 2: "split", 3: "three"}


def info(firmware: str, serial: str, *, metered: bool) -> str:
    """Make the XML of /info; <web-tokens> is there from firmware 7 on (38 of 38 fixtures of pyenphase)."""
    tokens = "  <web-tokens>true</web-tokens>\n" if version(firmware) >= (7,) else ""
    return (
        f"<?xml version='1.0' encoding='UTF-8'?>\n<envoy_info>\n  <time>{int(time.time())}</time>\n  <device>\n"
        f"    <sn>{serial}</sn>\n    <pn>800-00654-r08</pn>\n    <software>{firmware}</software>\n"
        f"    <euaid>4c8675</euaid>\n    <seqnum>0</seqnum>\n    <apiver>1</apiver>\n"
        f"    <imeter>{str(metered).lower()}</imeter>\n  </device>\n{tokens}</envoy_info>\n"
    )


def version(firmware: str) -> tuple[int, ...]:
    """Take the numbers out of a firmware's name: D7.6.175 -> (7, 6, 175)."""
    return tuple(int(part) for part in firmware[1:].split("."))


def inverters(count: int, reported_at: int) -> list[Json]:
    """Make the list of /api/v1/production/inverters, the newest report of `reported_at` (epoch seconds).

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

    `lines` has one entry for each phase in use; `cumulative` adds them up, the voltages too, as the Envoy does.
    """
    made = []
    for section, phases in json.loads(event).items():
        lines = [_report(values) for values in phases.values() if values.get("v")]
        cumulative = {name: round(sum(line[name] for line in lines), 3) for name in _report({})}
        if lines:
            cumulative |= {"pwrFactor": lines[0]["pwrFactor"], "freqHz": lines[0]["freqHz"]}
        made.append({"createdAt": created_at, "reportType": section, "cumulative": cumulative, "lines": lines})
    return made


def meters(site: Sequence[Json]) -> list[Json]:
    """Make the list of /ivp/meters, the current transformers behind the reports `site`."""
    return [
        {
            "eid": _EIDS[report["reportType"]],
            "state": "enabled",
            "measurementType": report["reportType"],
            "phaseMode": _PHASE_MODES[len(report["lines"])],
            "phaseCount": len(report["lines"]),
            "meteringStatus": "normal",
            "statusFlags": [],
        }
        for report in site
        if report["reportType"] in _EIDS
    ]


def readings(site: Sequence[Json]) -> list[Json]:
    """Make the list of /ivp/meters/readings for the reports `site`, one channel a phase."""
    made = []
    for report in site:
        if eid := _EIDS.get(report["reportType"]):
            channels = [
                {"eid": eid + 1 + number, "timestamp": report["createdAt"], **_reading(line)}
                for number, line in enumerate(report["lines"])
            ]
            total = _reading(report["cumulative"])
            made.append({"eid": eid, "timestamp": report["createdAt"], **total, "channels": channels})
    return made


def production(watts: float) -> Json:
    """Make the answer of /api/v1/production: watts now, and energy in Wh."""
    return {
        "wattHoursToday": 4321,
        "wattHoursSevenDays": 98_765,
        "wattHoursLifetime": 12_345_678,
        "wattsNow": round(watts),
    }


def _report(values: Json) -> Json:
    return {
        "currW": values.get("p", 0.0),
        "actPower": values.get("p", 0.0),
        "apprntPwr": values.get("s", 0.0),
        "reactPwr": values.get("q", 0.0),
        "whDlvdCum": 1_234_500.25,
        "whRcvdCum": 6_789.5,
        "varhLagCum": 321_000.75,
        "varhLeadCum": 0.5,
        "vahCum": 2_000_250.125,
        "rmsVoltage": values.get("v", 0.0),
        "rmsCurrent": values.get("i", 0.0),
        "pwrFactor": values.get("pf", 0.0),
        "freqHz": values.get("f", 0.0),
    }


def _reading(line: Json) -> Json:
    return {
        "actEnergyDlvd": line["whDlvdCum"],
        "actEnergyRcvd": line["whRcvdCum"],
        "apparentEnergy": line["vahCum"],
        "reactEnergyLagg": line["varhLagCum"],
        "reactEnergyLead": line["varhLeadCum"],
        "instantaneousDemand": line["actPower"],
        "activePower": line["actPower"],
        "apparentPower": line["apprntPwr"],
        "reactivePower": line["reactPwr"],
        "pwrFactor": line["pwrFactor"],
        "voltage": line["rmsVoltage"],
        "current": line["rmsCurrent"],
        "freq": line["freqHz"],
    }
