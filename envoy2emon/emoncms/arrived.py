"""What EmonCMS shows of a node: of which rows that can be the trace.

The law of this file: a row has been applied only if what is shown is as that row would leave it. Source: `input/get` as
measured against EmonCMS 11.16.8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from envoy2emon.rows import Row

# Without Redis, EmonCMS keeps an input's value as a MySQL FLOAT, which shows six digits.
_FLOAT_DIGITS = 1e-5


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

    @property
    def latest(self) -> float:
        """The time, by EmonCMS's clock, before which all that it shows was applied; the date is cut to seconds."""
        return self.date + (self.answered_at - self.asked_at) + 1.0

    def reached(self, rows: Sequence[Row], times: Sequence[int]) -> int:
        """Count the leading rows that EmonCMS has applied, if these are the times that it gave to the rows.

        It sets the inputs of a row one by one: after so many rows each input is as the last of them has it, or, where
        EmonCMS broke off, already as the next one has it. A row that leaves all as it was is not told from the one
        before it.
        """
        reached = first = 0
        last: dict[str, tuple[int, Decimal]] = {}
        for count, (time, row) in enumerate(zip(times, rows, strict=True), 1):
            before, last = last, last | {name: (time, value) for name, value in row.inputs.items()}
            first = first if last == before else count
            following = rows[count].inputs.items() if count < len(rows) else ()
            begun = {name for name, value in following if self._holds(name, times[count], value)}
            if all(name in begun or self._holds(name, *put) for name, put in last.items()):
                reached = first
        return reached

    def _holds(self, name: str, time: int, value: Decimal) -> bool:
        at, there = self.inputs.get(name, (None, 0.0))
        return at == time and same(there, value)


def same(one: float | Decimal, other: Decimal) -> bool:
    """Tell whether EmonCMS may show the one where it was sent the other."""
    return math.isclose(one, other, rel_tol=_FLOAT_DIGITS, abs_tol=1e-9)
