"""A neighbour that is away: how long to wait before the next attempt, and what to log of it, once."""

import logging
import random
import time
from collections.abc import Callable

from envoy2emon.words import clean

# Wrong credentials do not become right by asking more often, and every attempt costs the gateway a login.
REFUSED_WAIT_S = 300.0
# A connection that held this long was a good one. Below it, gateways flap (D8.3, VINC 261).
STEADY_S = 60.0
_LONGEST_REASON = 500

_log = logging.getLogger(__name__)


class Outage:
    """What one thread knows of its neighbour's trouble; times in seconds on the monotonic clock.

    Waits double from 1 s to `most`; jitter, from 0 to 1, lengthens them so that two daemons do not ask in step. The
    journal hears of an outage when it begins, when only the owner can end it, and when it ends; of one that follows
    another of the same reason within STEADY_S it hears only if it lasts that long.
    """

    def __init__(
        self,
        neighbour: str,
        most: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.reason = ""
        self._neighbour, self._most, self._clock, self._jitter = neighbour, most, clock, jitter
        self._wait = 1.0
        self._since = 0.0
        self._ended = float("-inf")
        self._logged = 0  # the level at which the journal heard of this outage
        self._logged_last = (0, "")  # what it heard last, of this outage or an earlier one

    def status(self) -> str:
        """Say in words for STATUS= how long it has lasted, and why; nothing when there is none."""
        reason = self.reason  # another thread may end it meanwhile
        return f"; {self._neighbour} failing for {duration(self._clock() - self._since)}: {reason}" if reason else ""

    def fails(self, reason: str) -> float:
        """Note a failed attempt and return the seconds to wait before the next."""
        self._note(logging.WARNING, reason)
        wait, self._wait = self._wait, min(self._most, self._wait * 2)
        return wait * (1 + 0.2 * self._jitter())

    def refused(self, reason: str) -> float:
        """Note a trouble that only the owner can end, and return the seconds to wait before the next attempt."""
        self._note(logging.ERROR, reason)
        return REFUSED_WAIT_S

    def ends(self, news: str = "") -> None:
        """Note that the neighbour answers; `news` says what becomes of what had to wait."""
        if self.reason:
            level = logging.INFO if self._logged else logging.DEBUG
            _log.log(level, "%s: back after %s%s", self._neighbour, duration(self._clock() - self._since), news)
            self.reason, self._ended = "", self._clock()

    def steady(self) -> None:
        """Note that the neighbour has proved reliable: the next wait begins at 1 s."""
        self._wait = 1.0

    def _note(self, level: int, reason: str) -> None:
        reason, now = clean(reason, _LONGEST_REASON), self._clock()
        if not self.reason:
            self._since, self._logged = now, 0
        follows, is_short = self._since - self._ended < STEADY_S, now - self._since < STEADY_S
        flaps = (level, reason) == self._logged_last and follows and is_short
        if level > self._logged and not flaps:
            _log.log(level, "%s: %s", self._neighbour, reason)
            self._logged, self._logged_last = level, (level, reason)
        else:
            _log.debug("%s: %s", self._neighbour, reason)
        self.reason = reason


def duration(seconds: float) -> str:
    """Write seconds as a person would: 41 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if minutes < 100:  # noqa: PLR2004
        return f"{minutes:.0f} min"
    if hours < 48:  # noqa: PLR2004
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"
