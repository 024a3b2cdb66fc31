"""Daemon 2: the microinverters' reports, polled, to EmonCMS.

The law of this file: each report goes to EmonCMS once, and at start each current one once more; the gateway is never
polled more often than the owner says, and less while it is slow or fails.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from envoy2emon.gateway.answer import StreamLost
from envoy2emon.gateway.connection import Refused
from envoy2emon.emoncms.courier import Courier
from envoy2emon.gateway.client import Envoy
from envoy2emon.rows import Row, inverter_row
from envoy2emon.outage import Outage, duration
from envoy2emon.gateway.readings import BadReading, InverterReport, parse_inverters

MOST_WAIT_S = 300.0
# However short the interval: connections that fail are six in a minute.
KNOCKS_WAIT_S = 30.0
# Units that were taken off the roof keep their last report for years, watts and all (HA 103871).
DEAD_AFTER_S = 7 * 86400

_NOTHING = threading.Event()  # what a worker waits for that only waits
_log = logging.getLogger(__name__)


class Poller:
    """The reader thread: polls the gateway for ever and passes on the reports of each good answer."""

    def __init__(
        self,
        envoy: Envoy,
        take: Callable[[list[InverterReport]], None],
        interval: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        wait: Callable[[float], object] = _NOTHING.wait,
    ) -> None:
        self.outage = Outage("Envoy", KNOCKS_WAIT_S, clock, jitter)
        self._envoy = envoy
        self._take = take
        self._interval = interval
        self._clock = clock
        self._wait = wait
        self._skipped: set[str] = set()

    def run(self, turned: Callable[[], None]) -> None:
        """Poll from start to start; an answer that is bad or late doubles the time to the next."""
        period = self._interval
        while True:
            turned()
            started = self._clock()
            good = False
            least = 0.0
            try:
                reports, skipped = parse_inverters(self._envoy.inverters())
                self._take(reports)
                self.outage.ends()
                self.outage.steady()
                self._say_skipped(skipped)
                good = True
            except BadReading as trouble:
                self.outage.fails(f"the inverters' answer is {trouble}")
            except StreamLost as trouble:
                least = self.outage.fails(str(trouble), knocks=trouble.knocks)
            except Refused as trouble:
                least = self.outage.fails(str(trouble), refused=True)
            took = self._clock() - started
            fine = good and took <= self._interval / 2
            period = self._interval if fine else min(max(MOST_WAIT_S, self._interval), period * 2)
            # A gateway that is slow is left in peace for as long as it took.
            self._wait(max(period - took, 0.0 if fine else min(took, MOST_WAIT_S), least))

    def _say_skipped(self, skipped: list[str]) -> None:
        if news := sorted(set(skipped) - self._skipped):
            _log.warning("Envoy: skips without serial number, date or watts: %s", ", ".join(news))
            self._skipped.update(news)


class Inverters:
    """What becomes of reports: a row for each that is news; and how it stands."""

    def __init__(self, node: str, courier: Courier, left: Iterable[Row], wall: Callable[[], float] = time.time) -> None:
        self._node = node
        self._courier = courier
        self._wall = wall
        self._dead: set[str] = set()
        self._reports: list[InverterReport] = []
        # What an earlier run left is on its way; all else is news.
        self._taken = {next(iter(row.inputs)).partition("_")[0]: int(row.at) for row in left}

    def take(self, reports: list[InverterReport]) -> None:
        """Take the reports of one poll."""
        oldest = self._wall() - DEAD_AFTER_S
        self._reports = [report for report in reports if report.reported_at >= oldest]
        dead = {report.serial: report for report in reports if report.reported_at < oldest}
        for serial in sorted(dead.keys() - self._dead):
            age = duration(self._wall() - dead[serial].reported_at)
            _log.info("inverter %s last reported %s ago: it is taken for dead and not posted", serial, age)
        self._dead = set(dead)
        news = [report for report in self._reports if self._taken.get(report.serial) != report.reported_at]
        self._taken |= {report.serial: report.reported_at for report in news}
        if news:
            self._courier.take([inverter_row(report, self._node) for report in news])

    def status(self, poller: Poller) -> str:
        """Say how it stands, in words for STATUS=."""
        text = "no report yet"
        if reports := self._reports:  # the poller may replace them meanwhile
            newest = max(report.reported_at for report in reports)
            age = max(0.0, self._wall() - newest)  # the Envoy's clock may be ahead
            watts = sum(report.watts for report in reports)
            text = f"{len(reports)} inverters, {watts:.0f} W; newest report {duration(age)} ago"
        text += f"; {self._courier.status()}"
        if poller.outage.reason:
            text += f"; Envoy for {duration(poller.outage.seconds)}: {poller.outage.reason}"
        return text
