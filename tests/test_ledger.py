"""The soak's ledger sees every broken promise, because a wrong judge would hide the daemons' faults."""

from collections.abc import Sequence
from decimal import Decimal

import pytest

from envoy2emon.demo.account import Account, AppliedRow
from tests.ledger import KILL_MAY_COST_S, Arrival, Diary, Verdict, integral, judge, kwh_error

TOLD = [(100.0 + n, n) for n in range(100)]


def arrive(numbers: Sequence[int], diary: Diary | None = None, dates: Sequence[int] | None = None) -> Verdict:
    """Judge a hundred events, one a second, of which these arrived, dated by their numbers or by `dates`."""
    shown = list(dates or numbers)
    rows = [AppliedRow(date, "n", {"a": Decimal(number)}, 0.0) for number, date in zip(numbers, shown, strict=True)]
    arrivals = [Arrival(number, row.time, 300.0) for number, row in zip(numbers, rows, strict=True)]
    return judge(TOLD, rows, arrivals, diary or Diary(), epoch=-100.0)


def test_all_once_in_order_is_well() -> None:
    """If every event arrives once and in order, no promise is broken."""
    verdict = arrive(range(100))
    assert verdict == Verdict(sent=100, owed=100, received=100)
    assert not verdict.broken


def test_what_is_missing_is_lost() -> None:
    """What was sent while all was well has to arrive; what was sent while something was wrong may be missing."""
    numbers = [n for n in range(100) if n != 50]
    assert arrive(numbers).lost == 1
    assert arrive(numbers, Diary(unwell=[(150.2, 150.9)])).lost == 0
    assert arrive(range(10), Diary(unwell=[(109.5, 300.0)])).broken  # too little was owed for a verdict


def test_repetition() -> None:
    """A row may come again unchanged; with another date it is doubled, and after a newer row it goes back."""
    again = arrive([*range(100), 99])
    assert (again.repeated, again.doubled, again.back, again.broken) == (1, 0, 0, False)
    assert arrive([*range(100), 99], dates=[*range(100), 100]).doubled == 1
    assert arrive([*range(100), 98, 99]).back == 1
    assert arrive(range(100), dates=[*range(50), *range(49, 99)]).back == 0
    assert arrive(range(100), dates=[*range(50), *range(48, 98)]).back == 1


def test_what_is_dated_wrongly() -> None:
    """A date more than 2.3 s off is a misdated one, unless the event was sent while something was wrong."""
    dates = [*range(50), *range(53, 103)]
    assert arrive(range(100), dates=[*range(50), *range(52, 102)]).misdated == 0
    assert arrive(range(100), dates=dates).misdated == 50
    assert arrive(range(100), Diary(unwell=[(155.0, 300.0)]), dates).misdated == 5


def test_a_kill_excuses_the_youngest_only() -> None:
    """A kill may cost all that was sent from some moment up to the kill, but nothing older than KILL_MAY_COST_S."""
    diary = Diary(kills=[160.5])
    verdict = arrive([n for n in range(100) if not 40 < n <= 60], diary)
    assert (verdict.lost, verdict.lost_to_kills, verdict.kill_cost_s) == (0, 20, 20)
    assert arrive([n for n in range(100) if n != 50], diary).lost == 1
    old = [n for n in range(100) if n > 60 or TOLD[n][0] < 160.5 - KILL_MAY_COST_S - 3]
    assert arrive(old, diary).lost == 3


def test_what_is_told_again() -> None:
    """A report sent again after a kill is owed, and its arrival then proves nothing about what was sent before."""
    told = [(100.0, "A"), (101.0, "B"), (110.0, "B")]
    row = AppliedRow(20, "n", {"b": Decimal(1)}, 0.0)

    def lost(at: float, kill: float) -> tuple[int, int]:
        verdict = judge(told, [row], [Arrival("B", 20, at)], Diary(kills=[kill]))
        return verdict.lost, verdict.lost_to_kills

    assert lost(at=111.0, kill=105.0) == (0, 1)
    assert lost(at=102.0, kill=105.0) == (1, 0)
    assert judge(told, [], [], Diary(kills=[105.0])).lost == 1


@pytest.mark.parametrize(("dates", "error"), [([0, 10, 10, 20], 0.0), ([0, 10, 20, 10, 20], 0.01)])
def test_energy(dates: list[int], error: float) -> None:
    """The integral counts each date once, so what `power to kWh` counts twice is the error."""
    account = Account()
    for date in dates:
        account.apply("input/bulk", {"data": f'[[{date},"n",{{"a":3600}}]]', "time": "0"}, 0)
    assert integral(account.rows, "n", "a") == 3600 * max(dates)
    assert kwh_error(account) == error
