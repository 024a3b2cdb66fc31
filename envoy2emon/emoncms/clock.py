"""EmonCMS's clock, learned from the Date of its answers, and the dates of readings by it."""

import math

# The estimate can sink by a second at most while two clocks drift apart; what goes back further was set.
WOBBLE_S = 2


class ServerClock:
    """Turns moments of the monotonic clock into EmonCMS's dates.

    ahead: epoch seconds by EmonCMS's clock minus monotonic seconds; None until an answer was heard. It is the least
    that the answers allow, so a better answer moves dates forward: they do not go back while nobody sets the clock.
    """

    def __init__(self) -> None:
        self.ahead: float | None = None
        self._latest = 0

    def learn(self, second: float, asked: float, answered: float) -> None:
        """Take the Date of an answer, whole epoch seconds, which EmonCMS named between two monotonic moments."""
        least, most = second - answered, second + 1 - asked
        self.ahead = least if self.ahead is None else min(max(self.ahead, least), most)

    def date(self, moment: float) -> int:
        """Return a monotonic moment in whole epoch seconds; not before a date that was given, within WOBBLE_S."""
        assert self.ahead is not None  # noqa: S101 - nothing is dated before EmonCMS was heard
        date = math.floor(moment + self.ahead)
        if 0 < self._latest - date <= WOBBLE_S:
            date = self._latest
        self.note(date)
        return date

    def note(self, date: int) -> None:
        """Note a date that a row has: later ones shall not go behind it."""
        self._latest = date
