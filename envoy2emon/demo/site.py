"""What a simulated gateway knows of its site: the answers of its endpoints, made from one event of its meters.

All answers tell of the same moment and the same watts, as on a real gateway, where the stream and /ivp/meters/reports/
have one source (Matthew1471/Enphase-API, commit 929d490). Names and shapes are those of pyenphase's fixtures.
"""

import json
import time
from collections.abc import Collection, Sequence
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

AC_BATTERY = 11  # the devType of an AC battery in the list of inverters
# The consumption meter measures the net or, as load-only CTs, the total: one eid.
_METERS = ("production", "net-consumption", "storage", "backfeed", "load", "evse", "pv3p")
_EIDS = {name: 704643328 + 256 * number for number, name in enumerate(_METERS)}
_EIDS["total-consumption"] = _EIDS["net-consumption"]
_FIRST_CHANNEL = 1778385169 - 704643328
_PHASE_MODES = {2: "split", 3: "three"}

# One quantity a line: in the stream, in /ivp/meters/reports/, in /ivp/meters/readings, in /production.json.
_NOW = (
    ("p", "currW", "instantaneousDemand", ""),
    ("p", "actPower", "activePower", "wNow"),
    ("s", "apprntPwr", "apparentPower", "apprntPwr"),
    ("q", "reactPwr", "reactivePower", "reactPwr"),
    ("v", "rmsVoltage", "voltage", "rmsVoltage"),
    ("i", "rmsCurrent", "current", "rmsCurrent"),
    ("pf", "pwrFactor", "pwrFactor", "pwrFactor"),
    ("f", "freqHz", "freq", ""),
)
# Energy since the installation: the same there, and what it is here, in Wh, varh and VAh.
_EVER = (
    ("whDlvdCum", "actEnergyDlvd", "whLifetime", 1_234_500.25),
    ("whRcvdCum", "actEnergyRcvd", "", 6_789.5),
    ("varhLagCum", "reactEnergyLagg", "varhLagLifetime", 321_000.75),
    ("varhLeadCum", "reactEnergyLead", "varhLeadLifetime", 0.5),
    ("vahCum", "apparentEnergy", "vahLifetime", 2_000_250.125),
)


def version(firmware: str) -> tuple[int, ...]:
    """Take the numbers out of a firmware's name: D7.6.175 -> (7, 6, 175)."""
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

    `lines` has one entry for each phase in use; `cumulative` adds them up, the voltages too, as a gateway does.
    """
    made = []
    for section, phases in json.loads(event).items():
        energy = {name: amount for name, _, _, amount in _EVER}
        lines = [
            {name: phase.get(key, 0.0) for key, name, _, _ in _NOW} | energy
            for phase in phases.values()
            if phase.get("v")
        ]
        cumulative = {name: round(sum(line[name] for line in lines), 3) for line in lines[:1] for name in line}
        if lines:
            cumulative |= {"pwrFactor": lines[0]["pwrFactor"], "freqHz": lines[0]["freqHz"]}
        made.append({"createdAt": created_at, "reportType": section, "cumulative": cumulative, "lines": lines})
    return made


def meters(site: Sequence[Json], off: Collection[str] = ()) -> list[Json]:
    """Make the list of /ivp/meters, the meters behind these reports, of which those in `off` are disabled."""
    return [
        {
            "eid": _EIDS[report["reportType"]],
            "state": "disabled" if report["reportType"] in off else "enabled",
            "measurementType": report["reportType"],
            "phaseMode": _PHASE_MODES.get(len(report["lines"]), "single"),
            "phaseCount": len(report["lines"]),
            "meteringStatus": "normal",
            "statusFlags": [],
        }
        for report in _metered(site)
    ]


def readings(site: Sequence[Json]) -> list[Json]:
    """Make the list of /ivp/meters/readings for these reports: each meter's sum, and a channel for each phase."""
    made = []
    for report in _metered(site):
        eid, at = _EIDS[report["reportType"]], report["createdAt"]
        channels = [
            {"eid": eid + _FIRST_CHANNEL + number, "timestamp": at, **_reading(line)}
            for number, line in enumerate(report["lines"])
        ]
        made.append({"eid": eid, "timestamp": at, **_reading(report["cumulative"]), "channels": channels})
    return made


def production(units: Sequence[Json]) -> Json:
    """Make the answer of /api/v1/production for these inverters: watts now, and energy in Wh."""
    watts = sum(unit["lastReportWatts"] for unit in units if unit.get("devType") != AC_BATTERY)
    return {"wattHoursToday": 4321, "wattHoursSevenDays": 98_765, "wattHoursLifetime": 12_345_678, "wattsNow": watts}


def production_json(units: Sequence[Json], meters: Sequence[Json], site: Sequence[Json], *, details: bool) -> Json:
    """Make the answer of /production.json for these inverters, meters and reports; with details each phase's line.

    A meter that is off has activeCount 0 and goes on measuring (7.3.466 with disabled CTs).
    """
    enabled = {meter["eid"] for meter in meters if meter["state"] == "enabled"}
    entries = {}
    for report in site:
        entry = {
            "type": "eim",
            "activeCount": int(_EIDS[report["reportType"]] in enabled),
            "measurementType": report["reportType"],
            "readingTime": report["createdAt"],
            **_entry(report["cumulative"]),
        }
        if details:
            entry["lines"] = [_entry(line) for line in report["lines"]]
        entries[report["reportType"]] = entry
    batteries = [unit for unit in units if unit.get("devType") == AC_BATTERY]
    panels = [unit for unit in units if unit.get("devType") != AC_BATTERY]
    found = {
        "production": [
            {"type": "inverters", "activeCount": len(panels), **_sum(panels), "whLifetime": 12_345_678},
            *(entries[name] for name in ("production",) if name in entries),
        ],
        "consumption": [entries[name] for name in ("total-consumption", "net-consumption") if name in entries],
        "storage": [{"type": "acb", "activeCount": len(batteries), **_sum(batteries), "whNow": 0, "state": "idle"}],
    }
    return {name: entry for name, entry in found.items() if entry}


def _metered(site: Sequence[Json]) -> list[Json]:
    """Return the reports of what is measured: beside net-consumption, total-consumption is only worked out."""
    net = any(report["reportType"] == "net-consumption" for report in site)
    return [report for report in site if not (net and report["reportType"] == "total-consumption")]


def _reading(line: Json) -> Json:
    energy = {name: line.get(report, 0.0) for report, name, _, _ in _EVER}
    return energy | {name: line.get(report, 0.0) for _, report, name, _ in _NOW}


def _entry(line: Json) -> Json:
    now = {name: line.get(report, 0.0) for _, report, _, name in _NOW if name}
    ever = {name: line.get(report, 0.0) for report, _, name, _ in _EVER if name}
    return now | ever | {"whToday": 4321.0, "whLastSevenDays": 98_765.0, "vahToday": 5432.0}


def _sum(units: Sequence[Json]) -> Json:
    newest = max((unit["lastReportDate"] for unit in units), default=0)
    return {"readingTime": newest, "wNow": sum(unit["lastReportWatts"] for unit in units)}
