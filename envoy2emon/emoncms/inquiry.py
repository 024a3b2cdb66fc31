"""What became of a post whose answer got lost: told by what EmonCMS shows of its rows.

The law of this file: what EmonCMS showed before a post was sent is no proof of it, unless it answered the post in
words, and a row in doubt goes again.
"""

from collections.abc import Mapping, Sequence

from envoy2emon.emoncms.arrived import Arrived
from envoy2emon.emoncms.dates import Dating, Flight
from envoy2emon.rows import Row


class Inquiry:
    """What is known of the rows that EmonCMS applied so far, for one daemon's node."""

    def __init__(self, dating: Dating) -> None:
        self._dating = dating
        self._before: Row | None = None  # what it applied last
        self._shown: Mapping[str, tuple[int, float]] | None = None  # and its inputs since then
        self._count: int | None = None  # by the answer a second ago

    def sent(self) -> None:
        """Note that a post is under way."""
        self._count = None

    def acknowledged(self, rows: Sequence[Row]) -> None:
        """Note that rows were applied, by EmonCMS's own words."""
        self._before, self._shown = rows[-1], None

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived) -> int | None:
        """Return how many of the rows of an unclear post need not go again; None: ask once more, a second later.

        A server that lost its client goes on applying the batch: only two equal answers tell that it has ended. A
        single row is the newest, which may go again: after a connection that had been closed it goes at once.
        """
        count = self._dating.applied(rows, flight, arrived, self._before)
        if arrived.inputs == self._shown and not flight.answered:
            count = 0
        if count < len(rows) and count != self._count and len(rows) > 1 and not flight.answered:
            self._count = count
            return None
        self._shown = arrived.inputs
        if count:
            self._before = rows[count - 1]
        return count
