"""EmonCMS without a socket and without waiting: the stand-in's account behind the client's own interface."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from envoy2emon.demo.account import Account
from envoy2emon.emoncms.client import EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.rows import Row, inputs_json
from tests.clocks import EPOCH, Time

NODE = "Envoy-S"


@dataclass(frozen=True)
class Failure:
    """How a post fails: `applied` rows are applied before its sender sees the failure.

    halfway: PHP dies in the next row, with its inputs set and its processes not run. later: the server goes on without
    its client, and applies one of the remaining rows at each shown().
    """

    applied: int = 0
    halfway: bool = False
    later: bool = False


class InProcess(EmonCMS):
    """A client of one node of an account, on a server whose clock is `ahead` seconds ahead of the true time.

    failures: what the next posts meet, None for nothing. away, locked_out, out_of_order: what every request meets; only
    out_of_order is an answer with a Date. dead_rows: dates of rows at which PHP dies each time, with their inputs set.
    """

    def __init__(self, time: Time, account: Account, ahead: float = 0.0) -> None:
        super().__init__("http://emoncms", None, NODE, clock=time)
        self.account, self.ahead = account, ahead
        self.failures: deque[Failure | None] = deque()
        self.away = self.locked_out = self.out_of_order = False
        self.dead_rows: set[int] = set()
        self.posts: list[list[Row]] = []
        self._time = time
        self._late: deque[Row] = deque()

    def post(self, rows: Sequence[Row]) -> None:
        """Apply rows, or fail."""
        self._ask()
        self.posts.append(list(rows))
        failure = self.failures.popleft() if self.failures else None
        if failure is None:
            dead = next((number for number, row in enumerate(rows) if row.date in self.dead_rows), None)
            failure = None if dead is None else Failure(dead, halfway=True)
        if failure is None:
            self._apply(rows)
            return
        done = min(failure.applied, len(rows))
        self._apply(rows, done, halfway=failure.halfway)
        if failure.later:
            self._late.extend(rows[done:])
        raise Unavailable("no answer")

    def shown(self) -> dict[str, int]:
        """Apply one late row, if there is any, and return the dates of the inputs."""
        self._ask()
        if self._late:
            self._apply([self._late.popleft()])
        return {name: put.time or 0 for name, put in self.account.nodes.get(NODE, {}).items()}

    def _ask(self) -> None:
        if self.away:
            raise Unavailable("away")
        if self.locked_out:
            raise Unauthorized("wrong key")
        self.clock.learn(float(int(self.server_time())), self._time.now, self._time.now)
        if self.out_of_order:
            raise Unavailable("502")

    def server_time(self) -> float:
        """Return the server's clock, epoch s."""
        return EPOCH + self._time.now + self.ahead

    def _apply(self, rows: Sequence[Row], most: int | None = None, *, halfway: bool = False) -> None:
        if rows:
            data = ",".join(f'[{row.date},"{NODE}",{inputs_json(row.inputs)}]' for row in rows)
            form = {"time": "0", "data": f"[{data}]"}
            words = self.account.apply("input/bulk", form, int(self.server_time()), most, halfway=halfway)
            if words != "ok":
                raise Rejected(str(json.loads(words)["message"]))
