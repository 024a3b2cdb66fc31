"""How rows are dated on their way to EmonCMS, and how many of them an unclear post left there.

The law of this file: a row's date does not depend on when it is posted, and a row is taken for applied only if EmonCMS
shows it. Source: `input/bulk` and `input/get` as measured against EmonCMS 11.16.8.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from envoy2emon.inputs import Row

# JSON's own characters need no escape in a form; quote() is fast when it finds nothing to escape.
_SAFE_IN_FORM = '{}[]":,'
# Without Redis, EmonCMS keeps an input's value as a MySQL FLOAT, which shows six digits.
_FLOAT_DIGITS = 1e-5


@dataclass(frozen=True, slots=True)
class Flight:
    """A post whose fate is not known: rows up to sequence number `end`, sent and failed at these monotonic times."""

    end: int
    sent_at: float
    failed_at: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """EmonCMS's answer to `input/get?node=`: each input's (epoch seconds, value) of the last row applied.

    earliest, latest: bounds of its clock minus our monotonic clock in seconds, from the answer's Date header.
    """

    inputs: Mapping[str, tuple[int, float]]
    earliest: float
    latest: float

    def shows(self, row: Row, time: int) -> bool:
        """Tell whether all of the row's inputs have this time and the row's values."""
        return all(
            name in self.inputs
            and self.inputs[name][0] == time
            and math.isclose(self.inputs[name][1], value, rel_tol=_FLOAT_DIGITS, abs_tol=1e-9)
            for name, value in row.inputs.items()
        )


class Dating(Protocol):
    """One of the two ways in which a daemon's rows are dated."""

    def form(self, rows: Sequence[Row], now: float) -> str:
        """Return the form that posts the rows at monotonic time `now`."""

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived) -> int:
        """Return how many of the rows, from the first, EmonCMS has applied."""


class ByAge:
    """Stream rows carry their age in whole seconds: EmonCMS's own clock dates them, ours may be wrong or jump."""

    def form(self, rows: Sequence[Row], now: float) -> str:
        """Return the form with `sentat=0` and times of 0 and below."""
        return _form("sentat", ((self._time(row, now), row) for row in rows))

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived) -> int:
        """Find the row that EmonCMS's latest input time belongs to.

        The post was applied in one second of EmonCMS's clock between sent_at and failed_at; a row that gives the
        latest time with such a second, and shows its values, may be the last one applied. All of the batch is by far
        the likeliest; in case of doubt the newest applied row goes once more, which changes nothing in EmonCMS.
        """
        times = [arrived.inputs[name][0] for row in rows for name in row.inputs if name in arrived.inputs]
        if len(rows) == 1 or not times:
            return 0
        latest = max(times)
        first = math.floor(flight.sent_at + arrived.earliest)
        last = math.floor(flight.failed_at + arrived.latest)
        fitting = [
            count
            for count, row in enumerate(rows, 1)
            if first <= latest - self._time(row, flight.sent_at) <= last and arrived.shows(row, latest)
        ]
        if len(rows) in fitting:
            return len(rows)
        return fitting[0] - 1 if fitting else 0

    @staticmethod
    def _time(row: Row, now: float) -> int:
        return min(0, -round(now - row.at))


class ByDate:
    """Inverter rows keep the date of their report, epoch seconds by the Envoy's clock."""

    def form(self, rows: Sequence[Row], now: float) -> str:  # noqa: ARG002 - dates do not depend on it
        """Return the form with `time=0` and times in epoch seconds."""
        return _form("time", ((int(row.at), row) for row in rows))

    def applied(self, rows: Sequence[Row], flight: Flight, arrived: Arrived) -> int:  # noqa: ARG002
        """Count the leading rows whose inputs have reached their dates."""
        for count, row in enumerate(rows):
            if any(arrived.inputs.get(name, (0, 0.0))[0] < row.at for name in row.inputs):
                return count
        return len(rows)


def _form(reference: str, rows: Iterable[tuple[int, Row]]) -> str:
    texts = [f'[{time},"{row.node}",{row.text()}]' for time, row in rows]
    data = quote(f"[{','.join(texts)}]", safe=_SAFE_IN_FORM)
    return f"data={data}&{reference}=0"
