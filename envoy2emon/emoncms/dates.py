"""How rows are dated on their way to EmonCMS, and how many of them an unclear post left there.

The law of this file: a row's date does not depend on when it is posted, and a row is taken for applied only if EmonCMS
shows it. Source: `input/bulk` and `input/get` as measured against EmonCMS 11.16.8.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from envoy2emon.emoncms.arrived import Arrived, same
from envoy2emon.rows import Row

# JSON's own characters need no escape in a form; quote() is fast when it finds nothing to escape.
_SAFE_IN_FORM = '{}[]":,'
# A Raspberry Pi's clock without NTP is off by up to 100 us a second: 9 s in a day.
_DRIFT = 1e-4
# What a Date header and ages, all cut to whole seconds, make of a date at most.
_ABOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Flight:
    """A post whose fate is not known: rows up to sequence number `end`, sent at this monotonic time in seconds.

    answered: EmonCMS has answered in words, so it is through with them and has left no row half done.
    bridged: it was sent before a reboot, so `sent_at` is by a wall clock, and as wrong as that was.
    """

    end: int
    sent_at: float
    answered: bool = False
    bridged: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far delivery has come: rows before number `delivered` are done; `flight` is under way or unclear."""

    delivered: int
    flight: Flight | None = None


class Dating(Protocol):
    """One of the two ways in which a daemon's rows are dated."""

    def form(self, rows: Sequence[Row], flight: Flight, now: float) -> str:
        """Return the form that posts the rows of a flight at monotonic time `now`, a little after its `sent_at`."""

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived, before: Row | None) -> int:
        """Return how many of the rows, from the first, need not be sent again: EmonCMS has applied them.

        before: the row that it applied before them, None if that is not known.
        """

    def resumed(self, rows: Iterable[Row], arrived: Arrived, *, bridged: bool) -> int:
        """Return how many of the rows of an earlier run EmonCMS has for certain, whatever the disk took note of.

        bridged: the rows' times came over a reboot by a wall clock, and are as wrong as that was.
        """


class ByAge:
    """Stream rows carry their age in whole seconds: EmonCMS's own clock dates them, ours may be wrong or jump.

    Age and clock are both cut to whole seconds, which keeps a date within one second of the truth.
    """

    def form(self, rows: Sequence[Row], flight: Flight, now: float) -> str:
        """Return the form with ages at `sent_at`, times of 0 and below, and `sentat`, the whole seconds since then.

        Between the two the flight is saved, which a worn SD card may take seconds for: whole ones, to be exact.
        """
        return _form("sentat", round(now - flight.sent_at), ((self._time(row, flight.sent_at), row) for row in rows))

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived, before: Row | None) -> int:
        """Find out in which second of EmonCMS's clock it can have applied rows, and how many.

        It is a second from which the latest input time follows as that of one of the rows, and not before the rows were
        sent. If more will do, rows are equal in every digit, and Date headers tell no more than whole seconds: then it
        is the first or the second of them. When exactly the rows were sent by EmonCMS's clock is not known if its
        answer took long, if clocks drifted apart meanwhile, or across a reboot: then an earlier second counts only if
        it is the only one, and rows that are equal in every digit go again. (If EmonCMS's clock, not ours, was set
        since, nothing will do.) What looks like a row of the first second may be the row before, if that is its equal.
        """
        ages = [self._time(row, flight.sent_at) for row in rows]
        names = {name for row in rows for name in row.inputs}
        latest = max((time for name, (time, _) in arrived.inputs.items() if name in names), default=0)
        sent = math.floor(arrived.date - (arrived.asked_at - flight.sent_at))
        earliest = math.floor(arrived.date - (arrived.answered_at - flight.sent_at) * (1 + _DRIFT))
        counts = {
            second: count
            for second in sorted({latest - age for age in ages})
            if (second >= earliest or flight.bridged) and second <= arrived.latest
            if (count := arrived.reached(rows, [second + age for age in ages]))
        }
        fitting = [count for second, count in counts.items() if second >= sent and not flight.bridged]
        if not fitting and len(counts) == 1:
            fitting = [*counts.values()]
        if not fitting or self._may_be(before, rows[: fitting[0]], ages):
            return 0
        return _sure(rows, flight, fitting[0], doubtful=len(fitting) > 1)

    def resumed(self, rows: Iterable[Row], arrived: Arrived, *, bridged: bool) -> int:
        """Look for the one row that has all the values that EmonCMS shows, and about their date: it was the last one.

        Both clocks may show up to two seconds more or less. So near to the first row it may be the one before it, which
        in a house where nothing moves is its equal. If no row has the values, and they are newer than all rows, they
        are those of a later row: rows go oldest first.
        """
        count, first, date, latest, found = 0, 0.0, 0.0, 0, []
        for count, row in enumerate(rows, 1):
            first = first if count > 1 else row.at
            date = arrived.date - (arrived.asked_at - row.at)
            times = {arrived.inputs.get(name, (0, 0.0))[0] for name in row.inputs}
            latest = max(latest, *times)
            if len(times) == 1 and arrived.reached([row], [*times]):
                found.append(count if abs(latest - date) <= _ABOUT_S < row.at - first else 0)
        if not found and not bridged and date + _ABOUT_S < latest <= arrived.date + _ABOUT_S:
            return count
        return found[0] if len(found) == 1 else 0

    @staticmethod
    def _may_be(before: Row | None, rows: Sequence[Row], ages: Sequence[int]) -> bool:
        """Tell whether what looks like the last of these rows may be the row before the first one."""
        return ages[len(rows) - 1] == ages[0] and _alike(before or rows[0], rows[-1])

    @staticmethod
    def _time(row: Row, now: float) -> int:
        return min(0, -int(now - row.at))


class ByDate:
    """Inverter rows keep the date of their report, epoch seconds by the Envoy's clock."""

    def form(self, rows: Sequence[Row], flight: Flight, now: float) -> str:  # noqa: ARG002 - dates depend on neither
        """Return the form with `time=0` and times in epoch seconds."""
        return _form("time", 0, ((int(row.at), row) for row in rows))

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived, before: Row | None) -> int:  # noqa: ARG002
        """Compare dates and values; a report that EmonCMS had before need not be sent again either."""
        return _sure(rows, flight, arrived.reached(rows, [int(row.at) for row in rows]))

    def resumed(self, rows: Iterable[Row], arrived: Arrived, *, bridged: bool) -> int:  # noqa: ARG002 - dates are the Envoy's
        """Compare dates and values."""
        rows = [*rows]
        return arrived.reached(rows, [int(row.at) for row in rows])


def _alike(one: Row, other: Row) -> bool:
    """Tell whether EmonCMS may show the same of both."""
    return all(name in one.inputs and same(one.inputs[name], value) for name, value in other.inputs.items())


def _sure(rows: Sequence[Row], flight: Flight, count: int, *, doubtful: bool = False) -> int:
    """Return how many rows need not go again: where EmonCMS broke off, the newest one's processes may not have run."""
    broke_off = count < len(rows) and not flight.answered
    return max(0, count - 1) if broke_off or doubtful else count


def _form(reference: str, seconds: int, rows: Iterable[tuple[int, Row]]) -> str:
    texts = [f'[{time},"{row.node}",{row.text()}]' for time, row in rows]
    data = quote(f"[{','.join(texts)}]", safe=_SAFE_IN_FORM)
    return f"data={data}&{reference}={seconds}"
