"""Arrivals -> dated readings: events that a gateway held back and sends at once are dated as they were measured.

No reading is dated before the one in front of it, and one that comes a second after another is not delayed.
"""

from dataclasses import dataclass, replace

from envoy2emon.gateway.readings import MeterReading

# Events come about once a second. After more silence than this, others may follow the first at once.
SILENCE_S = 1.5
# D8.3.6086 sends up to 8 events within 30 ms.
FOLLOWS_S = 0.03
# Two are a burst. A lost packet may hold up its rest, because Linux repeats one after 200 ms at the earliest.
BURST_FOLLOWS_S = 0.25
# What never pauses is no burst. Without this bound more than 20 events a second would be held for ever.
MOST_HELD_S = 0.5
# D7.0.88 sends up to 45 at once (Matthew1471/Enphase-API); a reading takes 12 kB.
MOST_HELD = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came at once, at this monotonic time; nothing, when a connection has just been opened."""

    at: float
    readings: tuple[MeterReading, ...] = ()


class Bursts:
    """Dates readings that came at once, because the gateway had held them back (22 on D7.0.88), one second apart.

    Where that would go further back than the reading before, the time since then is divided evenly.
    """

    def __init__(self) -> None:
        self._held: list[MeterReading] = []
        self._arrived = float("-inf")
        self._dated = float("-inf")
        self._due = float("-inf")

    def take(self, arrival: Arrival) -> list[MeterReading]:
        """Return the readings that are dated now; others may have to wait for what follows at once."""
        silent = arrival.at - self._arrived > SILENCE_S
        self._arrived = arrival.at
        if not arrival.readings:
            self._arrived = float("-inf")  # what comes first after opening may have been held back
        elif self._held or silent or len(arrival.readings) > 1:
            self._held += arrival.readings
            follows = BURST_FOLLOWS_S if len(self._held) > 1 else FOLLOWS_S
            self._due = min(arrival.at + follows, self._held[0].at + MOST_HELD_S)
            if len(self._held) > MOST_HELD:
                self._due = arrival.at
        else:
            self._dated = arrival.at
            return list(arrival.readings)
        return []

    def wait(self, now: float) -> float | None:
        """Return the seconds until release() has something to give; None if nothing is held."""
        return max(0.0, self._due - now) if self._held else None

    def release(self, now: float) -> list[MeterReading]:
        """Return the held readings with their dates if their time has come and nothing more has followed."""
        if not self._held or now < self._due:
            return []
        held, self._held = self._held, []
        last = held[-1].at
        step = min(1.0, (last - self._dated) / len(held))
        self._dated = last
        return [replace(reading, at=last - step * back) for back, reading in enumerate(held[::-1])][::-1]
