"""Outages of a neighbour (the gateway or EmonCMS): how long to wait before the next attempt, and what to log once."""

import logging
import random
import time
from collections.abc import Callable

from envoy2emon.words import clean

# Wrong credentials do not become right by asking more often, and every attempt costs the gateway a login.
REFUSED_WAIT_S = 300.0
# A connection that lasts this long is steady. Gateways that flap lose it sooner (D8.3, VINC 261).
STEADY_S = 60.0
_LONGEST_REASON = 500

_log = logging.getLogger(__name__)


class Outage:
    """One neighbour's outages as one thread sees them; times are in seconds on the monotonic clock.

    Waits double from 1 s to `most`; jitter, from 0 to 1, lengthens them so that two daemons do not ask in step. An
    outage is logged when it begins, when only the owner can end it, and when it ends. One that begins within STEADY_S
    of the end of the last, for the reason logged last, is logged above DEBUG only if it lasts for STEADY_S.
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
        self._logged = 0  # the highest level at which this outage was logged, 0 if it was not
        self._logged_last = (0, "")  # level and reason logged last, for this outage or an earlier one

    def status(self) -> str:
        """Return, in words for STATUS=, how long the outage has lasted and why; "" if there is none."""
        reason = self.reason  # another thread may end the outage meanwhile
        return f"; {self._neighbour} failing for {duration(self._clock() - self._since)}: {reason}" if reason else ""

    def fails(self, reason: str) -> float:
        """Note a failed attempt and return the seconds to wait before the next."""
        self._note(logging.WARNING, reason)
        wait, self._wait = self._wait, min(self._most, self._wait * 2)
        return wait * (1 + 0.2 * self._jitter())

    def refused(self, reason: str) -> float:
        """Note a failure that only the owner can put right, and return the seconds to wait before the next attempt."""
        self._note(logging.ERROR, reason)
        return REFUSED_WAIT_S

    def ends(self, news: str = "") -> None:
        """Note that the neighbour answers; `news`, on the rows that waited, is added to the log line."""
        if self.reason:
            lasted = self._clock() - self._since
            # The last wait may be longer than STEADY_S, so a long outage may end before it was logged.
            level = logging.INFO if self._logged or lasted >= STEADY_S else logging.DEBUG
            _log.log(level, "%s: back after %s%s", self._neighbour, duration(lasted), news)
            self.reason, self._ended = "", self._clock()

    def steady(self) -> None:
        """Note that the neighbour has proved reliable, so the next wait is 1 s again."""
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
    """Return seconds as a person would write them: 41 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if minutes < 100:  # noqa: PLR2004
        return f"{minutes:.0f} min"
    if hours < 48:  # noqa: PLR2004
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"
