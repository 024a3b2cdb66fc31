"""Arrivals -> dated readings: events that the gateway held back and sends together are dated as they were measured.

No reading is dated before the previous one. A reading that comes a second after another is not delayed.
"""

from dataclasses import dataclass, replace

from envoy2emon.gateway.readings import MeterReading

# Events come about once a second. The first one after a longer silence than this may begin a burst.
SILENCE_S = 1.5
# How long such an event waits for the next one of its burst: D8.3.6086 sends up to 8 events within 30 ms.
FOLLOWS_S = 0.03
# Two or more events wait longer, because the rest may be in a lost packet, and Linux resends that after 200 ms or more.
BURST_FOLLOWS_S = 0.25
# Events that never pause are not a burst. Without this limit, a burst that goes on at more than 4 events a second would
# wait until there are more than MOST_WAITING.
LONGEST_WAIT_S = 0.5
# D7.0.88 sends up to 45 events together (Matthew1471/Enphase-API); a reading takes 12 kB of memory.
MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """The readings that came together at this monotonic time; none means that a connection has just been opened."""

    at: float
    readings: tuple[MeterReading, ...] = ()


class Bursts:
    """Dates readings one second apart if the gateway held them back and sent them together (22 on D7.0.88).

    Where the time since the previous reading is too short for that, it is divided evenly.
    """

    def __init__(self) -> None:
        self._waiting: list[MeterReading] = []
        self._arrived = float("-inf")
        self._dated = float("-inf")
        self._due = float("-inf")

    def take(self, arrival: Arrival) -> list[MeterReading]:
        """Return the readings that can be dated now; one that may begin a burst waits for the rest of it."""
        if not arrival.readings:
            self._arrived = float("-inf")  # the first readings of a connection may have been held back
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
        """Return the seconds until release() will return readings; None if none are waiting."""
        return max(0.0, self._due - now) if self._waiting else None

    def release(self, now: float) -> list[MeterReading]:
        """Return the waiting readings, dated, or none while more of their burst may still come."""
        if not self._waiting or now < self._due:
            return []
        burst, self._waiting = self._waiting, []
        last = burst[-1].at
        step = min(1.0, (last - self._dated) / len(burst))
        self._dated = last
        return [replace(reading, at=last - step * back) for back, reading in enumerate(burst[::-1])][::-1]
