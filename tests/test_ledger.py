"""The soak's ledger: what it must see."""

from collections.abc import Sequence

import pytest

from tests.faultproxy import Visit
from tests.ledger import (
    KILL_MAY_COST_S,
    MOST_ATTEMPTS,
    Arrival,
    Diary,
    Verdict,
    attempts,
    busiest_minute,
    hammered,
    hasty,
    impatient,
    judge_reports,
    judge_stream,
    runs,
    tardy,
)

SENT = [(100.0 + n, True) for n in range(100)]


def stream(numbers: Sequence[int], diary: Diary | None = None, error: float = 0.0) -> Verdict:
    """Judge a hundred events, one a second, of which these arrived."""
    arrivals = [Arrival(number, error, 300.0 + at) for at, number in enumerate(numbers)]
    return judge_stream(SENT, arrivals, diary or Diary())


def test_all_once_in_order_is_well() -> None:
    """Nothing to complain of."""
    verdict = stream(range(100))
    assert verdict == Verdict(sent=100, owed=100, received=100, dates_judged=100)
    assert not verdict.broken


def test_what_is_missing_is_lost() -> None:
    """An event that was sent into a good connection has to arrive."""
    assert stream([n for n in range(100) if n != 50]).lost == 1


def test_what_nobody_could_hear_is_not_owed() -> None:
    """Events without a connection, or while it was being disturbed, may be missing."""
    assert stream([n for n in range(100) if n not in {50, 51}], Diary(disturbed=[(150.2, 150.9)])).lost == 0
    assert judge_stream([(1.0, False)], [], Diary()).lost == 0


def test_the_newest_may_come_again_and_no_other() -> None:
    """A repeated event is doubled unless it is the newest one, and nobody said that it had arrived."""
    unheard = Diary(unclear=[(399.2, 399.5)])
    assert not stream([*range(100), 99], unheard).broken
    assert not stream([*range(100), 99], Diary(restarts=[(399.2, 399.5)])).broken
    assert stream([*range(100), 99]).doubled == 1
    assert stream([*range(100), 99], Diary(disturbed=[(390.0, 410.0)])).doubled == 1  # the Envoy's fault is no reason
    moved = [Arrival(0, 0.0, 399.0), Arrival(0, 1.2, 401.0)]
    assert judge_stream(SENT[:1], moved, unheard).doubled == 1
    verdict = stream([*range(100), 98], unheard)
    assert (verdict.doubled, verdict.out_of_order) == (1, 1)


@pytest.mark.parametrize("error", [-1.5, 1.5, -3600.0])
def test_a_wrong_date_is_seen(error: float) -> None:
    """Dates must be right to within a second, however late the row came, unless the Envoy's side held it up."""
    assert stream(range(100), error=error).misdated == 100
    disturbed = stream(range(100), Diary(disturbed=[(0.0, 500.0)]), error)
    assert (disturbed.misdated, disturbed.dates_judged) == (0, 0)


def test_what_was_hardly_tried_is_not_well() -> None:
    """A run in which few dates could be judged, or little was owed, proves nothing."""
    assert stream(range(100), Diary(disturbed=[(0.0, 170.0)])).broken
    assert judge_stream([(at, number < 10) for number, (at, _) in enumerate(SENT)], [], Diary()).broken


def test_a_kill_excuses_the_youngest_only() -> None:
    """What a kill takes is all that is younger than some row, and not old."""
    diary = Diary(kills=[160.5])
    verdict = stream([n for n in range(100) if not 40 < n <= 60], diary)
    assert (verdict.lost, verdict.lost_to_kills, verdict.kill_cost_s) == (0, 20, 20)
    assert stream([n for n in range(100) if n != 50], diary).lost == 1
    old = [n for n in range(100) if n > 60 or SENT[n][0] < 160.5 - KILL_MAY_COST_S - 3]
    assert stream(old, diary).lost == 3


def test_each_polled_report_has_to_arrive() -> None:
    """A report is owed when a poll was answered with it; at a start each current one may come again."""
    old, new = frozenset({("A", 10), ("B", 10)}), frozenset({("A", 20), ("B", 10)})
    polls = [(100.0, old), (110.0, new)]
    first = [Arrival(("A", 10), 0.0, 101.0), Arrival(("B", 10), 0.0, 101.0)]
    assert judge_reports(polls, first, Diary()).lost == 1
    assert not judge_reports(polls, [*first, Arrival(("A", 20), 0.0, 111.0)], Diary()).broken
    again = [*first, Arrival(("A", 10), 0.0, 121.0)]
    assert judge_reports(polls[:1], again, Diary()).doubled == 1
    assert judge_reports(polls[:1], again, Diary(starts=[115.0])).doubled == 0
    back = [Arrival(("A", 20), 0.0, 111.0), *first]
    assert judge_reports(polls, back, Diary()).out_of_order == 1
    assert judge_reports(polls, first, Diary(kills=[112.0])).lost_to_kills == 1
    # What was told later and arrived before the kill went the same way.
    later = [*first, Arrival(("B", 30), 0.0, 116.0)]
    newest = (115.0, frozenset({("A", 20), ("B", 30)}))
    assert judge_reports([*polls, newest], later, Diary(kills=[117.0])).lost == 1
    newest_again = [*first, Arrival(("B", 10), 0.0, 102.0)]
    assert judge_reports(polls[:1], newest_again, Diary()).doubled == 1
    assert judge_reports(polls[:1], newest_again, Diary(unclear=[(101.0, 101.1)])).doubled == 0


def test_one_login_is_one_attempt() -> None:
    """Connections that follow each other at once are one attempt, however long each lasts; a wait ends it."""
    login = [Visit(10.0, 10.1), Visit(10.1, 10.2), Visit(10.3, 25.0)]
    assert attempts([*login, Visit(25.02, 25.1), Visit(26.1, 26.2), Visit(28.3)]) == [10.0, 26.1, 28.3]
    assert attempts([Visit(10.0, 30.0), Visit(10.1, 10.2), Visit(12.0, 12.1), Visit(31.1)]) == [10.0, 31.1]


def test_the_busiest_minute_is_found() -> None:
    """The waits of DESIGN are six attempts a minute, and one more is seen wherever it is."""
    kept = [100.0, 101.0, 103.0, 107.0, 115.0, 131.0, 161.0, 191.0]
    assert busiest_minute(kept) == MOST_ATTEMPTS
    assert busiest_minute(sorted([*kept, 159.9])) == MOST_ATTEMPTS + 1
    assert busiest_minute([]) == 0


def test_connections_in_vain_are_counted_one_by_one() -> None:
    """Six in a minute of one fault are well, two an attempt are not; a login before it, and another run, are not in."""
    login = [Visit(begin, begin) for begin in (99.7, 99.8, 99.9)]
    kept = [Visit(100.0 + at, 100.0 + at) for at in (1, 3, 3, 7, 15, 31)]
    assert hammered([*login, *kept], [0.0], [(100.0, 140.0)]) == []
    twice = [visit for visit in kept for _ in range(2)]
    assert hammered(twice, [0.0], [(100.0, 140.0)]) == [12]
    assert hammered(twice, [0.0, 102.5], [(100.0, 140.0)]) == [10]
    assert hammered(twice, [0.0], [(100.0, 107.5), (107.5, 140.0)]) == [8]
    assert hammered(twice, [0.0, 106.0], [(100.0, 140.0)]) == []


def test_each_run_has_minutes_of_its_own() -> None:
    """A process that is started again knows nothing of the attempts before."""
    assert runs([1.0, 2.0, 11.0, 25.0], [0.0, 10.0, 20.0]) == [[1.0, 2.0], [11.0], [25.0]]


def test_polls_that_fail_have_to_slow_down() -> None:
    """The wait doubles with every failure in a row; polls before and after the failure are not looked at."""
    assert hasty([8.0, 9.0, 10.0, 12.0, 16.0, 24.0, 25.0], [(9.5, 24.5)], 1.0) == []
    assert hasty([10.0, 11.0, 13.0], [(9.5, 24.5)], 1.0) == [1.0, 2.0]
    assert hasty([10.0, 12.0, 14.0], [(9.5, 24.5)], 1.0) == [2.0]


def test_who_is_refused_has_to_wait() -> None:
    """After Refused there is one attempt in five minutes; other attempts may follow sooner."""
    assert impatient([8.0, 9.5, 310.0, 311.0], [(9.0, 12.0)]) == []
    assert impatient([8.0, 10.0, 42.0], [(9.0, 12.0)]) == [32.0]


def test_who_lost_the_connection_has_to_try_again() -> None:
    """A wait is about as long as those before it together at most; a life that ends sooner proves nothing."""
    life = (100.0, 200.0)
    assert tardy([100.3, 121.5, 124.0], life, [(120.0, 123.0)]) == []
    assert tardy([100.3], life, [(120.0, 123.0)]) == [123.0]
    assert tardy([100.3, 160.1], life, [(120.0, 123.0)]) == [123.0]
    assert tardy([100.3], (100.0, 150.0), [(120.0, 123.0)]) == []
