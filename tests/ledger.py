"""What a soak sent and what arrived: every event is counted, and whoever was not to arrive has an excuse.

The law of this file: an event is owed if the Envoy sent it into a connection that was well, to a process that was well,
from a little before to a little after. Such an event may be missing only if a SIGKILL followed before it was saved, and
then everything that followed it up to the kill is missing too. Times are monotonic seconds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faultproxy import Visit

# From the simulator's socket through the daemon's hold for bursts (30 ms) into its backlog, on a busy machine.
UNDER_WAY_S = 0.6
# SAVE_AFTER_S, the time between two looks at the backlog, and a slow disk: the promise is 60 s.
KILL_MAY_COST_S = 30.0 + 5.0 + 1.0
# A second is promised; an event may be held for 0.25 s, and the machine has other things to do.
MISDATED_S = 1.4
# The promise: in any minute of a process's life.
MOST_ATTEMPTS, MINUTE_S = 6, 60.0
REFUSED_WAIT_S = 300.0
LONGEST_WAIT_S = 30.0 * 1.2  # from one attempt to the next, a fifth longer by chance
# Between two attempts a daemon waits for 1 s or more; within one (/info, 401, stream) it does not wait.
SAME_ATTEMPT_S = 0.5


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row as EmonCMS applied it: whose it is, its date less the true one in seconds, when it was applied."""

    identity: object
    error: float
    at: float


@dataclass
class Diary:
    """When the Envoy's side was unwell: (begin, end). `restarts`, `kills` and `starts` are of one daemon.

    unclear: when EmonCMS did not say that it had applied a post.
    """

    disturbed: list[tuple[float, float]] = field(default_factory=list)
    restarts: list[tuple[float, float]] = field(default_factory=list)
    unclear: list[tuple[float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def well(self, at: float) -> bool:
        """Tell whether what was sent at this time was sent into a connection and process that were well."""
        unwell = (*self.disturbed, *self.restarts)
        return not any(begin - UNDER_WAY_S < at < end + UNDER_WAY_S for begin, end in unwell)

    def may_repeat(self, first: float, again: float) -> bool:
        """Tell whether the newest row, applied at `first`, may be applied again: somebody did not hear that it was."""
        doubts = (*self.unclear, *self.restarts)
        return any(begin <= again and end >= first - UNDER_WAY_S for begin, end in doubts)


@dataclass
class Verdict:
    """How many were sent and received, and which promises were broken."""

    sent: int = 0
    owed: int = 0
    received: int = 0
    lost: int = 0
    lost_to_kills: int = 0
    kill_cost_s: int = 0  # the oldest of those, before its kill
    newest_again: int = 0
    doubled: int = 0
    out_of_order: int = 0
    dates_judged: int = 0
    misdated: int = 0

    @property
    def broken(self) -> bool:
        """Tell whether a promise is broken, or was hardly put to the test."""
        untried = self.dates_judged < self.received / 2 or self.owed < self.sent / 8
        return bool(self.lost or self.doubled or self.out_of_order or self.misdated or untried)


def judge_stream(sent: Sequence[tuple[float, bool]], arrivals: Sequence[Arrival], diary: Diary) -> Verdict:
    """Judge events 0, 1, 2 ..., each sent at a time and perhaps into an open stream.

    Dates are judged of all that the Envoy's side did not hold up, however long EmonCMS kept them waiting. The newest
    row may come again where its answer was lost, if its date is the same to within a second.
    """
    verdict = Verdict(len(sent))
    newest, error, before = -1, 0.0, 0.0
    for arrival in arrivals:
        number = arrival.identity
        assert isinstance(number, int)
        same = number == newest and abs(arrival.error - error) <= 1.1  # whole seconds, and what a float makes of them
        verdict.newest_again += same and diary.may_repeat(before, arrival.at)
        verdict.out_of_order += number < newest
        if diary.well(sent[number][0]):
            verdict.dates_judged += 1
            verdict.misdated += abs(arrival.error) > MISDATED_S
        newest, error, before = max(newest, number), arrival.error, arrival.at
    arrived = {arrival.identity for arrival in arrivals}
    verdict.received = len(arrived)
    verdict.doubled = len(arrivals) - len(arrived) - verdict.newest_again
    for number, (at, into_stream) in enumerate(sent):
        if into_stream and diary.well(at):
            verdict.owed += 1
            if number not in arrived:
                kill = _excuse(number, at, sent, arrived, diary.kills)
                verdict.lost_to_kills += kill is not None
                verdict.lost += kill is None
                verdict.kill_cost_s = max(verdict.kill_cost_s, math.ceil((kill or at) - at))
    return verdict


def _excuse(
    number: int, at: float, sent: Sequence[tuple[float, bool]], arrived: Iterable[object], kills: Sequence[float]
) -> float | None:
    """Return when a kill soon after took the event, and everything after it up to the kill."""
    for kill in kills:
        later = (other for other in arrived if isinstance(other, int) and other > number)
        if at <= kill <= at + KILL_MAY_COST_S and not any(sent[other][0] < kill for other in later):
            return kill
    return None


def judge_reports(
    polls: Sequence[tuple[float, frozenset[tuple[str, int]]]], arrivals: Sequence[Arrival], diary: Diary
) -> Verdict:
    """Judge the reports (serial number, date) that each poll was answered with."""
    verdict = Verdict(len(frozenset().union(*(reports for _, reports in polls))))
    dates: dict[str, int] = {}
    last: dict[object, float] = {}
    begun: dict[object, float] = {}  # when each arrived first
    previous: object = None
    for arrival in arrivals:
        identity = arrival.identity
        assert isinstance(identity, tuple)
        serial, date = identity
        verdict.out_of_order += date < dates.get(serial, 0)
        dates[serial] = max(date, dates.get(serial, 0))
        if identity in last:
            # At a start each current report goes once more.
            anew = any(last[identity] < start < arrival.at for start in diary.starts)
            again = anew or (identity == previous and diary.may_repeat(last[identity], arrival.at))
            verdict.newest_again += again
            verdict.doubled += not again
        begun.setdefault(identity, arrival.at)
        last[identity], previous = arrival.at, identity
    verdict.received = verdict.dates_judged = len(last)  # a date is what makes a report
    known: dict[object, float] = {}  # when each was first told to the daemon
    for at, reports in polls:
        for identity in reports:
            known.setdefault(identity, at)
    excused: set[tuple[str, int]] = set()
    owed: set[tuple[str, int]] = set()
    for at, reports in polls:
        if diary.well(at):
            kills = [kill for kill in diary.kills if at <= kill <= at + KILL_MAY_COST_S]
            # What was told later and arrived before the kill shows that this was delivered too, or lost otherwise.
            killed = [k for k in kills if not any(at < told < k and begun.get(i, k) < k for i, told in known.items())]
            (excused if killed else owed).update(reports)
    verdict.owed = len(owed | excused)
    verdict.lost = len(owed - last.keys())
    verdict.lost_to_kills = len(excused - owed - last.keys())
    return verdict


def attempts(visits: Sequence[Visit]) -> list[float]:
    """Return when attempts to get readings began: one is all the connections that follow each other without a wait.

    A login by digest is /info, a 401, and then the stream: several connections. Refused ones nobody sees.
    """
    begun: list[float] = []
    end = -math.inf
    for visit in visits:
        if visit.begin - end > SAME_ATTEMPT_S:
            begun.append(visit.begin)
        end = max(end, visit.end)
    return begun


def runs(begun: Sequence[float], starts: Sequence[float]) -> list[list[float]]:
    """Divide attempts among the lives of a process that was started at these times."""
    return [[at for at in begun if start <= at < end] for start, end in pairwise([*starts, math.inf])]


def busiest_minute(run: Sequence[float]) -> int:
    """Return the most attempts in any minute of one run."""
    return max((sum(at <= other < at + MINUTE_S for other in run) for at in run), default=0)


def hammered(visits: Sequence[Visit], starts: Sequence[float], failing: Sequence[tuple[float, float]]) -> list[int]:
    """Return the counts of connections that are too many for a minute of one run, each within one fault.

    failing: when no connection can have succeeded, so that each was one in vain. A login needs several.
    """
    lives = runs([visit.begin for visit in visits], starts)
    counts = [busiest_minute([at for at in life if begin <= at < end]) for life in lives for begin, end in failing]
    return [count for count in counts if count > MOST_ATTEMPTS]


def hasty(run: Sequence[float], failing: Sequence[tuple[float, float]], interval: float) -> list[float]:
    """Return the waits that were too short between polls that failed: with each failure in a row they double.

    failing: when no poll can have succeeded. Half a second is the machine's.
    """
    waits = []
    for begin, end in failing:
        polls = [at for at in run if begin <= at < end]
        for number, (before, after) in enumerate(pairwise(polls), 1):
            if after - before < interval * 2**number - 0.5:
                waits.append(after - before)
    return waits


def impatient(run: Sequence[float], refusing: Sequence[tuple[float, float]]) -> list[float]:
    """Return the waits of less than five minutes after attempts that were refused: who began in `refusing` was."""
    waits = [(before, after - before) for before, after in pairwise(run)]
    return [wait for at, wait in waits if wait < REFUSED_WAIT_S and any(begin <= at < end for begin, end in refusing)]


def tardy(run: Sequence[float], life: tuple[float, float], lost: Sequence[tuple[float, float]]) -> list[float]:
    """Return the ends of faults after which the daemon did not try again in time, by what it did in this life.

    lost: faults that ended the connection. The sum of the waits so far is about as long as the next one at most.
    """
    start, end = life
    late = []
    for begin, over in lost:
        limit = over + min(LONGEST_WAIT_S, 1.2 * (over - start) + 1.2) + 5.0
        if start + UNDER_WAY_S < begin and limit < end and not any(begin < at < limit for at in run):
            late.append(over)
    return late
