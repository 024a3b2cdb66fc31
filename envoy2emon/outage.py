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

    Waits double from 1 s to `most`; jitter only lengthens them. Where `most` is 30 s, connections that come one a wait
    are six in a minute: after 0, 1, 3, 7, 15, 31 s. So each one has to earn a wait, also of two that come at once.
    """

    def __init__(self, neighbour: str, most: float, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.reason = ""
        self._neighbour = neighbour
        self._most = most
        self._clock = clock
        self._jitter = jitter
        self._wait = 1.0
        self._owed = 0  # waits, for connections; below 0 after an attempt that needed none
        self._since = 0.0
        self._ended = float("-inf")
        self._told = 0  # the level at which the journal heard of this outage
        self._last: tuple[str, int] = ("", 0)
        self._proved = True

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 when there is none."""
        return self._clock() - self._since if self.reason else 0.0

    def fails(self, reason: str, *, refused: bool = False, knocks: int = 1) -> float:
        """Note a failed attempt and return the seconds to wait before the next one.

        refused: the neighbour is there but does not want us, which the owner has to mend: an ERROR, and few attempts.
        knocks: how many connections the attempt has cost; none if it lost one that was good.
        """
        now = self._clock()
        reason = " ".join(reason.split())[:_LONGEST_REASON]  # what a neighbour sent may be in it
        level = logging.ERROR if refused else logging.WARNING
        if not self.reason:
            self._since, self._told = now, 0
        flaps_since = self._ended if self._proved else self._since
        flapping = (reason, level) == self._last and now - flaps_since < STEADY_S
        if level != self._told and not flapping:
            _log.log(level, "%s: %s", self._neighbour, reason)
            self._told, self._last = level, (reason, level)
        else:
            _log.debug("%s: %s", self._neighbour, reason)
        self.reason = reason
        if refused:
            self._owed = 0
            return REFUSED_WAIT_S
        self._owed += knocks
        wait = 0.0
        while self._owed > 0 or not wait:
            wait, self._wait = wait + self._wait, min(self._most, self._wait * 2)
            self._owed -= 1
        return min(self._most, wait) * (1 + 0.2 * self._jitter())

    def spent(self, knocks: int) -> None:
        """Note what an attempt has cost that is followed by another one at once."""
        self._owed += knocks

    def ends(self, news: str = "", *, proved: bool = True) -> None:
        """Note that the neighbour answers; `news` says what becomes of what had to wait.

        proved: that it does well what it had failed at. If not, the same trouble is no news when it comes again, unless
        it stays.
        """
        if self.reason:
            level = logging.INFO if self._told else logging.DEBUG
            _log.log(level, "%s: back after %s%s", self._neighbour, duration(self.seconds), news)
            self.reason = ""
            self._ended, self._proved = self._clock(), proved
        self._owed = 0

    def steady(self) -> None:
        """Note that the neighbour has proved reliable: the next wait begins at 1 s."""
        self._wait, self._proved = 1.0, True


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
