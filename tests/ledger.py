"""Compares what a run sent with what EmonCMS applied: what is missing, doubled or dated back, and the energy's error.

Times are monotonic seconds. Whatever was sent to a daemon that was well, over a connection that was well, must arrive.
It may be missing only if a SIGKILL came before it was saved. Then everything sent between it and the kill must be
missing too.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from envoy2emon.demo.account import KWH_GAP, Account, AppliedRow

# The longest way from the simulated gateway's socket into the daemon's backlog, on a busy computer.
UNDER_WAY_S = 0.6
# What a power cut may cost: rows are saved when they are 30 s old, but ages are checked only every few seconds, and
# disks can be slow.
KILL_MAY_COST_S = 36.0
# EmonCMS's clock is known to a second, a date is a whole second, and an event may be held for 0.25 s.
MISDATED_S = 2.3


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row as EmonCMS applied it. identity: its event or report. date: epoch s. at: when it was applied."""

    identity: Hashable
    date: int
    at: float


@dataclass
class Diary:
    """The times, (begin, end), when the gateway's side or the daemon was unwell, and when the daemon was killed."""

    unwell: list[tuple[float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    def well(self, at: float) -> bool:
        """Return whether the connection and the daemon were well when something was sent at this time."""
        return not any(begin - UNDER_WAY_S < at < end + UNDER_WAY_S for begin, end in self.unwell)


@dataclass
class Verdict:
    """How many events or reports were sent, had to arrive (owed) and arrived, and how often promises were broken."""

    sent: int = 0
    owed: int = 0
    received: int = 0
    repeated: int = 0  # with the same date, which changes nothing
    lost: int = 0
    lost_to_kills: int = 0
    kill_cost_s: int = 0  # the age, at the kill, of the oldest one lost to it
    doubled: int = 0
    back: int = 0
    misdated: int = 0

    @property
    def broken(self) -> bool:
        """Whether a promise is broken, or was hardly tested because little was owed."""
        return bool(self.lost or self.doubled or self.back or self.misdated) or self.owed < self.sent / 8


def judge(
    sent: Sequence[tuple[float, Hashable]],
    rows: Sequence[AppliedRow],
    arrivals: Sequence[Arrival],
    diary: Diary,
    epoch: float | None = None,
) -> Verdict:
    """Judge what was sent to a daemon by what arrived.

    sent: when each item was sent, and its identity; it may be sent several times. rows: those of the arrivals, in the
    same order. epoch: the epoch seconds at monotonic 0, if each item is to be dated as it is sent.
    """
    first: dict[Hashable, float] = {}
    last: dict[Hashable, float] = {}
    for at, identity in sent:
        first.setdefault(identity, at)
        last[identity] = at
    begun: dict[Hashable, Arrival] = {}
    verdict = Verdict(len(first), back=went_back(rows))
    for arrival in arrivals:
        before = begun.setdefault(arrival.identity, arrival)
        verdict.repeated += before is not arrival and before.date == arrival.date
        verdict.doubled += before.date != arrival.date
    verdict.received = len(begun)
    if epoch is not None:
        true = {identity: at + epoch for identity, at in first.items() if diary.well(at)}
        errors = [arrival.date - true[arrival.identity] for arrival in arrivals if arrival.identity in true]
        verdict.misdated = sum(abs(error) > MISDATED_S for error in errors)

    def killed(at: float) -> float | None:
        """Return the kill that may have taken what was sent at this time, None if there is none.

        A kill is ruled out if an arrival proves that the daemon kept something that was first sent after this time and
        before the kill.
        """
        for kill in diary.kills:
            if at <= kill <= at + KILL_MAY_COST_S and not any(
                at < first.get(other, at) < kill and (last[other] < kill or arrival.at < kill)
                for other, arrival in begun.items()
            ):
                return kill
        return None

    owed = {identity for at, identity in sent if diary.well(at)}
    verdict.owed = len(owed)
    missing = owed - begun.keys()
    lost = {identity for at, identity in sent if identity in missing and diary.well(at) and killed(at) is None}
    verdict.lost, verdict.lost_to_kills = len(lost), len(missing - lost)
    ages = [(killed(at) or at) - at for at, identity in sent if identity in missing - lost and diary.well(at)]
    verdict.kill_cost_s = math.ceil(max(ages, default=0))
    return verdict


def went_back(rows: Iterable[AppliedRow]) -> int:
    """Return how many rows have an earlier date than the previous row with one of their inputs."""
    dates: dict[tuple[str, str], int] = {}
    back = 0
    for row in rows:
        back += any(row.time < dates.get((row.node, name), row.time) for name in row.inputs)
        dates |= {(row.node, name): row.time for name in row.inputs}
    return back


def integral(rows: Iterable[AppliedRow], node: str, name: str) -> Decimal:
    """Return the watt seconds of these rows, in order of date, each date once, without gaps of two hours or more."""
    values: dict[int, Decimal] = {}
    for row in rows:
        if row.node == node and name in row.inputs:
            values.setdefault(row.time, row.inputs[name])
    pairs = pairwise(sorted(values))
    return sum(((later - date) * values[later] for date, later in pairs if later - date < KWH_GAP), Decimal(0))


def kwh_error(account: Account) -> float:
    """Return by how many kWh the worst feed of `power to kWh` differs from the integral of its rows."""
    errors = [
        abs(put.watt_seconds - integral(account.rows, node, name))
        for node, inputs in account.nodes.items()
        for name, put in inputs.items()
    ]
    return float(max(errors, default=Decimal(0)) / 3_600_000)
