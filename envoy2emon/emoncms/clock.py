"""EmonCMS's clock, learned from the Date header of its answers, and readings dated by it."""

import math

# Drift between the clocks lowers the estimate by a second at most. A date goes back further only if one was set.
WOBBLE_S = 2


class ServerClock:
    """Turns moments of the monotonic clock into EmonCMS's dates.

    ahead: epoch seconds by EmonCMS's clock minus monotonic seconds; None until the first answer. It is the least value
    that the answers allow, so a better answer moves dates forward, and they do not go back unless the clock is set.
    """

    def __init__(self) -> None:
        self.ahead: float | None = None
        self._latest = 0

    def learn(self, second: float, asked: float, answered: float) -> None:
        """Adjust `ahead` to the Date of an answer, in whole epoch seconds, sent between two monotonic moments."""
        least, most = second - answered, second + 1 - asked
        self.ahead = least if self.ahead is None else min(max(self.ahead, least), most)

    def date(self, moment: float) -> int:
        """Return a monotonic moment in whole epoch seconds, or the last date if that is at most WOBBLE_S later."""
        assert self.ahead is not None  # noqa: S101 - nothing is dated before EmonCMS has answered
        date = math.floor(moment + self.ahead)
        if 0 < self._latest - date <= WOBBLE_S:
            date = self._latest
        self.note(date)
        return date

    def note(self, date: int) -> None:
        """Note the date of a row, so that later dates do not go back behind it."""
        self._latest = date
