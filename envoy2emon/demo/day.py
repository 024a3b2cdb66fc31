"""A solar day at a house with three phases, as its meters would report it; for `envoy2emon demo`.

The sections add up as in every recorded event (consumption = production + net), and at night production is about zero.
"""

import json
import math
from random import Random
from typing import Any

SUNRISE_H, SUNSET_H = 6.0, 20.5
PEAK_W = 2400.0  # per phase
# Hour of the day, how long in hours, phase, watts: kettle, dishwasher, oven, kettle, television.
HABITS = (
    (7.2, 0.15, "ph-a", 2200.0),
    (9.0, 1.2, "ph-b", 1900.0),
    (12.2, 0.15, "ph-a", 2200.0),
    (18.3, 0.9, "ph-c", 2700.0),
    (19.5, 3.5, "ph-b", 140.0),
)


class Day:
    """Day after day, at a pace that the caller sets; the same seed gives the same clouds."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - weather is no secret
        self._clear = 1.0

    def event(self, hour: float) -> str:
        """Return the event of /stream/meter for this hour of the day, 0 to 24."""
        # Clouds come and go: the share of the sun that gets through wanders between a fifth and all.
        self._clear = min(1.0, max(0.2, self._clear + self._random.gauss(0.02, 0.12)))
        height = math.sin(math.pi * (hour - SUNRISE_H) / (SUNSET_H - SUNRISE_H))
        sun = PEAK_W * max(0.0, height) ** 1.3 * self._clear if SUNRISE_H < hour < SUNSET_H else 0.0
        sections: dict[str, dict[str, Any]] = {"production": {}, "net-consumption": {}, "total-consumption": {}}
        for phase in ("ph-a", "ph-b", "ph-c"):
            volts = round(232 + sun / 600 + self._random.gauss(0, 0.4), 3)
            made = round(sun * self._random.uniform(0.98, 1.02) if sun else self._random.uniform(-2, 0), 3)
            used = 110 + 60 * (int(hour * 3 + ord(phase[-1])) % 2) + self._random.uniform(0, 25)
            used += sum(
                watts for start, long, where, watts in HABITS if where == phase and start <= hour < start + long
            )
            used = round(used, 3)
            for section, watts in zip(sections, (made, round(used - made, 3), used), strict=True):
                sections[section][phase] = self._values(watts, volts)
        return json.dumps(sections, separators=(",", ":"))

    def _values(self, watts: float, volts: float) -> dict[str, float]:
        reactive = round(150 + self._random.gauss(0, 3), 3)
        apparent = round(math.hypot(watts, reactive), 3)
        return {
            "p": watts,
            "q": reactive,
            "s": apparent,
            "v": volts,
            "i": round(apparent / volts, 3),
            "pf": round(watts / apparent, 2),
            "f": round(50 + self._random.gauss(0, 0.01), 2),
        }
