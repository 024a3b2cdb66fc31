"""Arrivals -> dated readings: events that a gateway held back and sends together are dated as they were measured.

No reading is dated before the one in front of it, and one that comes a second after another is not delayed.
"""

from dataclasses import dataclass, replace

from envoy2emon.gateway.readings import MeterReading

# Events come about once a second. The first one after more silence than this may begin a burst.
SILENCE_S = 1.5
# So long it waits for the next of its burst: D8.3.6086 sends up to 8 events within 30 ms.
FOLLOWS_S = 0.03
# Two are a burst, and wait longer: Linux repeats a lost packet, which may hold the rest, after 200 ms at the earliest.
BURST_FOLLOWS_S = 0.25
# What never pauses is no burst. Without this bound more than 20 events a second would wait for ever.
LONGEST_WAIT_S = 0.5
# D7.0.88 sends up to 45 together (Matthew1471/Enphase-API); a reading takes 12 kB.
MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came together, at this monotonic time; nothing, when a connection has just been opened."""

    at: float
    readings: tuple[MeterReading, ...] = ()


class Bursts:
    """Dates readings that came together, because the gateway had held them back (22 on D7.0.88), one second apart.

    Where that would go further back than the reading before, the time since then is divided evenly.
    """

    def __init__(self) -> None:
        self._waiting: list[MeterReading] = []
        self._arrived = float("-inf")
        self._dated = float("-inf")
        self._due = float("-inf")

    def take(self, arrival: Arrival) -> list[MeterReading]:
        """Return the readings that are dated now; one that may begin a burst waits for the rest of it."""
        if not arrival.readings:
            self._arrived = float("-inf")  # what comes first after opening may have been held back
            return []
        silent = arrival.at - self._arrived > SILENCE_S
        self._arrived = arrival.at
        if not (self._waiting or silent or len(arrival.readings) > 1):
            self._dated = arrival.at
            return list(arrival.readings)
        self._waiting += arrival.readings
        follows = BURST_FOLLOWS_S if len(self._waiting) > 1 else FOLLOWS_S
        self._due = min(arrival.at + follows, self._waiting[0].at + LONGEST_WAIT_S)
        if len(self._waiting) > MOST_WAITING:
            self._due = arrival.at
        return []

    def wait(self, now: float) -> float | None:
        """Return the seconds until release() has something to give; None if nothing waits."""
        return max(0.0, self._due - now) if self._waiting else None

    def release(self, now: float) -> list[MeterReading]:
        """Return the readings that wait, with their dates, if their time has come and nothing more has followed."""
        if not self._waiting or now < self._due:
            return []
        burst, self._waiting = self._waiting, []
        last = burst[-1].at
        step = min(1.0, (last - self._dated) / len(burst))
        self._dated = last
        return [replace(reading, at=last - step * back) for back, reading in enumerate(burst[::-1])][::-1]
