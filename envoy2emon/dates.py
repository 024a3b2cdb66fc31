"""How rows are dated on their way to EmonCMS, and how many of them an unclear post left there.

The law of this file: a row's date does not depend on when it is posted, and a row is taken for applied only if EmonCMS
shows it. Source: `input/bulk` and `input/get` as measured against EmonCMS 11.16.8.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol
from urllib.parse import quote

from envoy2emon.inputs import Row

# JSON's own characters need no escape in a form; quote() is fast when it finds nothing to escape.
_SAFE_IN_FORM = '{}[]":,'
# Without Redis, EmonCMS keeps an input's value as a MySQL FLOAT, which shows six digits.
_FLOAT_DIGITS = 1e-5
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


@dataclass(frozen=True, slots=True)
class Arrived:
    """EmonCMS's answer to `input/get?node=`: each input's (epoch seconds, value) of the last row applied.

    date: the answer's Date header, epoch seconds by EmonCMS's clock, of a moment between asked_at and answered_at in
    monotonic seconds: Apache tells when the question came, others when they answered.
    """

    inputs: Mapping[str, tuple[int, float]]
    date: float
    asked_at: float
    answered_at: float

    def reached(self, rows: Sequence[Row], times: Sequence[int]) -> int:
        """Count the leading rows that EmonCMS has applied, if these are the times that it gave to the rows.

        It sets the inputs of a row one by one: after so many rows each input is as the last of them has it, or, where
        EmonCMS broke off, already as the next one has it.
        """
        reached = 0
        last: dict[str, tuple[int, Decimal]] = {}
        for count, (time, row) in enumerate(zip(times, rows, strict=True), 1):
            last |= {name: (time, value) for name, value in row.inputs.items()}
            following = rows[count].inputs.items() if count < len(rows) else ()
            begun = {name for name, value in following if self._holds(name, times[count], value)}
            if all(name in begun or self._holds(name, *put) for name, put in last.items()):
                reached = count
        return reached

    def _holds(self, name: str, time: int, value: Decimal) -> bool:
        at, there = self.inputs.get(name, (None, 0.0))
        return at == time and _same(there, value)


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
        sent. If two will do, rows are equal in every digit, and Date headers tell no more than whole seconds: then it
        is the first or the second of them. When exactly the rows were sent by EmonCMS's clock is not known if its
        answer took long, if clocks drifted apart meanwhile, or across a reboot: then an earlier second counts only if
        it is the only one, and rows that are equal in every digit go again. (If EmonCMS's clock, not ours, was set
        since, nothing will do.) What looks like the first row may be the row before it, if that is its equal.
        """
        ages = [self._time(row, flight.sent_at) for row in rows]
        names = {name for row in rows for name in row.inputs}
        latest = max((time for name, (time, _) in arrived.inputs.items() if name in names), default=0)
        sent = math.floor(arrived.date - (arrived.asked_at - flight.sent_at))
        earliest = math.floor(arrived.date - (arrived.answered_at - flight.sent_at) * (1 + _DRIFT))
        counts = {
            second: count
            for second in sorted({latest - age for age in ages})
            if second >= earliest or flight.bridged
            if (count := arrived.reached(rows, [second + age for age in ages]))
        }
        fitting = [count for second, count in counts.items() if second >= sent and not flight.bridged]
        if not fitting and len(counts) == 1:
            fitting = [*counts.values()]
        doubtful = len(fitting) > 1 or (fitting == [1] and (before is None or _alike(before, rows[0])))
        return _sure(rows, flight, fitting[0], doubtful=doubtful) if fitting else 0

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
    return all(name in one.inputs and _same(one.inputs[name], value) for name, value in other.inputs.items())


def _same(one: float | Decimal, other: Decimal) -> bool:
    return math.isclose(one, other, rel_tol=_FLOAT_DIGITS, abs_tol=1e-9)


def _sure(rows: Sequence[Row], flight: Flight, count: int, *, doubtful: bool = False) -> int:
    """Return how many rows need not go again: where EmonCMS broke off, the newest one's processes may not have run."""
    broke_off = count < len(rows) and not flight.answered
    return max(0, count - 1) if broke_off or doubtful else count


def _form(reference: str, seconds: int, rows: Iterable[tuple[int, Row]]) -> str:
    texts = [f'[{time},"{row.node}",{row.text()}]' for time, row in rows]
    data = quote(f"[{','.join(texts)}]", safe=_SAFE_IN_FORM)
    return f"data={data}&{reference}={seconds}"
