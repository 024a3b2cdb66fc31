"""What a run sent and what EmonCMS made of it: what is missing, doubled, dated back, and whether the energy is right.

Times are monotonic seconds. What was told to a daemon that was well, over a connection that was well, has to arrive. It
may be missing only if a SIGKILL followed before it was saved, and then what followed it up to the kill is missing too.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from envoy2emon.demo.account import KWH_GAP, Account, AppliedRow

# From the simulated gateway's socket into the daemon's backlog, on a busy machine.
UNDER_WAY_S = 0.6
# What a power cut may cost: rows are saved when they are 30 s old, by a look every few seconds and a slow disk.
KILL_MAY_COST_S = 36.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row as EmonCMS applied it: whose it is, its date in epoch s, when it was applied."""

    identity: Hashable
    date: int
    at: float


@dataclass
class Diary:
    """When the gateway's side or the daemon was unwell, (begin, end), and when the daemon was killed."""

    unwell: list[tuple[float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    def well(self, at: float) -> bool:
        """Tell whether what was sent at this time was sent into a connection and process that were well."""
        return not any(begin - UNDER_WAY_S < at < end + UNDER_WAY_S for begin, end in self.unwell)


@dataclass
class Verdict:
    """How many were sent, owed and received, and how often promises were broken."""

    sent: int = 0
    owed: int = 0
    received: int = 0
    repeated: int = 0  # with the very same date, which changes nothing
    lost: int = 0
    lost_to_kills: int = 0
    kill_cost_s: int = 0  # the age of the oldest of those at its kill
    doubled: int = 0
    back: int = 0
    misdated: int = 0

    @property
    def broken(self) -> bool:
        """Tell whether a promise is broken, or was hardly put to the test."""
        return bool(self.lost or self.doubled or self.back or self.misdated) or self.owed < self.sent / 8


def judge(
    told: Sequence[tuple[float, Hashable]], rows: Sequence[AppliedRow], arrivals: Sequence[Arrival], diary: Diary
) -> Verdict:
    """Judge what was told to a daemon, each perhaps several times, by what of it arrived.

    rows: the same as arrivals, in the same order.
    """
    first: dict[Hashable, float] = {}
    last: dict[Hashable, float] = {}
    for at, identity in told:
        first.setdefault(identity, at)
        last[identity] = at
    begun: dict[Hashable, Arrival] = {}
    verdict = Verdict(len(first), back=went_back(rows))
    for arrival in arrivals:
        before = begun.setdefault(arrival.identity, arrival)
        verdict.repeated += before is not arrival and before.date == arrival.date
        verdict.doubled += before.date != arrival.date
    verdict.received = len(begun)

    def killed(at: float) -> float | None:
        """Return the kill that took what was told at this time: nothing proves that the daemon kept what came later."""
        for kill in diary.kills:
            if at <= kill <= at + KILL_MAY_COST_S and not any(
                at < first.get(other, at) < kill and (last[other] < kill or arrival.at < kill)
                for other, arrival in begun.items()
            ):
                return kill
        return None

    owed = {identity for at, identity in told if diary.well(at)}
    verdict.owed = len(owed)
    missing = owed - begun.keys()
    lost = {identity for at, identity in told if identity in missing and diary.well(at) and killed(at) is None}
    verdict.lost, verdict.lost_to_kills = len(lost), len(missing - lost)
    ages = [(killed(at) or at) - at for at, identity in told if identity in missing - lost and diary.well(at)]
    verdict.kill_cost_s = math.ceil(max(ages, default=0))
    return verdict


def went_back(rows: Iterable[AppliedRow]) -> int:
    """Return how many rows are dated before the one before them that had one of their inputs."""
    dates: dict[tuple[str, str], int] = {}
    back = 0
    for row in rows:
        back += any(row.time < dates.get((row.node, name), row.time) for name in row.inputs)
        dates |= {(row.node, name): row.time for name in row.inputs}
    return back


def integral(rows: Iterable[AppliedRow], node: str, name: str) -> Decimal:
    """Return the watt seconds that these rows make, each once and in order of date, over no gap of two hours."""
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
