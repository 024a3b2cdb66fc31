"""A neighbour that is away: how long to wait before the next attempt, and what to log of it, once.

The law of this file: the journal hears of an outage when it begins, when its kind changes, and when it ends.
"""

import logging
import random
from collections.abc import Callable

_log = logging.getLogger(__name__)

# Wrong credentials do not become right by asking more often, and every attempt costs the Envoy a login.
REFUSED_WAIT_S = 300.0
# A connection that held this long was a good one: the next loss begins anew. Below it, gateways flap (D8.3, VINC 261).
STEADY_S = 60.0
_LONGEST_REASON = 500


class Outage:
    """What one loop knows of its neighbour's trouble; times in seconds on the monotonic clock.

    Waits double from 1 s to `most`; jitter only lengthens them, so that six attempts a minute stay the limit.
    """

    def __init__(self, neighbour: str, most: float, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.reason = ""
        self._neighbour = neighbour
        self._most = most
        self._clock = clock
        self._jitter = jitter
        self._wait = 1.0
        self._since = 0.0
        self._ended = float("-inf")
        self._told = 0  # the level at which the journal heard of this outage
        self._last: tuple[str, int] = ("", 0)

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 when there is none."""
        return self._clock() - self._since if self.reason else 0.0

    def fails(self, reason: str, *, refused: bool = False) -> float:
        """Note a failed attempt and return the seconds to wait before the next one.

        refused: the neighbour is there but does not want us, which the owner has to mend: an ERROR, and few attempts.
        """
        now = self._clock()
        reason = " ".join(reason.split())[:_LONGEST_REASON]  # what a neighbour sent may be in it
        level = logging.ERROR if refused else logging.WARNING
        if not self.reason:
            self._since, self._told = now, 0
        flapping = (reason, level) == self._last and now - self._ended < STEADY_S
        if level != self._told and not flapping:
            _log.log(level, "%s: %s", self._neighbour, reason)
            self._told, self._last = level, (reason, level)
        else:
            _log.debug("%s: %s", self._neighbour, reason)
        self.reason = reason
        if refused:
            return REFUSED_WAIT_S
        wait, self._wait = self._wait, min(self._most, self._wait * 2)
        return wait * (1 + 0.2 * self._jitter())

    def ends(self, news: str = "") -> None:
        """Note that the neighbour answers; `news` says what becomes of what had to wait."""
        if self.reason:
            level = logging.INFO if self._told else logging.DEBUG
            _log.log(level, "%s: back after %s%s", self._neighbour, duration(self.seconds), news)
            self.reason = ""
            self._ended = self._clock()

    def steady(self) -> None:
        """Note that the neighbour has proved reliable: the next wait begins at 1 s."""
        self._wait = 1.0


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


def default_jitter() -> float:
    """Return a number from 0 to 1, so that two daemons do not knock in step."""
    return random.random()  # noqa: S311 - no secret
