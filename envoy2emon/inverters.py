"""Daemon 2: polls the gateway for the microinverters' reports and posts them to EmonCMS.

Each report is posted once, and each current one once more after a start. The gateway is never polled more often than
the owner has set, and less often while it is slow or fails.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

from envoy2emon import __version__
from envoy2emon.emoncms.delivery import Delivery
from envoy2emon.gateway.client import INVERTERS, Gateway, Lost, NotFound, Refused
from envoy2emon.gateway.readings import BadReading, InverterReport, parse_inverters
from envoy2emon.gateway.tokens import Tokens
from envoy2emon.outage import REFUSED_WAIT_S, Outage, duration
from envoy2emon.rows import inverter_row
from envoy2emon.settings import Settings
from envoy2emon.systemd import Daemon, state_directory

MOST_WAIT_S = 300.0
# The gateway keeps the last report of a removed unit, including its watts, for years (HA 103871).
DEAD_AFTER_S = 7 * 86400
# Reports are dated by the gateway's clock, which can be days off.
CLOCK_OFF_S = 3600.0
# The devType of an AC battery, which the gateway also lists, although it is not production.
AC_BATTERY = 11

_CURE = "if it never does, switch this daemon off: sudo systemctl disable --now envoy2emon_inv"
_log = logging.getLogger(__name__)
Reports = tuple[InverterReport, ...]


def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Run the daemon until it is stopped and return its exit status."""
    daemon: Daemon[Reports] = Daemon(environ)
    state = state_directory(environ)
    _log.info(
        "envoy2emon %s: reads the inverters of the gateway at %s, posts to %s as node %s",
        __version__,
        settings.envoy_host,
        settings.emoncms_url,
        settings.emoncms_inverters_node,
    )
    tokens = Tokens(settings, state)
    interval = float(settings.inverters_interval_s)
    poller = Poller(Gateway(settings, tokens, inverters=True), daemon.inbox, interval)
    delivery = Delivery.to(settings, settings.emoncms_inverters_node, state, "inverters")
    inverters = Inverters(daemon, delivery)
    daemon.start("poller", poller.run, patience=interval + REFUSED_WAIT_S)
    thread = daemon.start("delivery", delivery.run, patience=REFUSED_WAIT_S + delivery.interval)

    def tick() -> str:
        delivery.save()
        return inverters.status(poller) + tokens.status()

    status = daemon.run(inverters.take, lambda: None, tick)
    delivery.finish(thread)
    return status


class Poller:
    """The poller thread: polls the gateway for ever and puts the reports of each good answer into the inbox."""

    def __init__(self, gateway: Gateway, inbox: SimpleQueue[Reports | None], interval: float) -> None:
        self.outage = Outage("gateway", MOST_WAIT_S)
        self._gateway = gateway
        self._inbox = inbox
        self._interval = interval
        self._pause = threading.Event()  # never set
        self._skipped: set[str] = set()
        self._clock_said = False

    def run(self, alive: Callable[[], None]) -> None:
        """Poll once a period, from start to start; each bad or slow answer doubles the period, up to a limit."""
        period = self._interval
        while True:
            alive()
            started = time.monotonic()
            least = self._poll()
            took = time.monotonic() - started
            fine = least == 0.0 and took <= self._interval / 2
            period = self._interval if fine else min(max(MOST_WAIT_S, self._interval), period * 2)
            # After a bad or slow answer, pause for at least as long as the answer took, up to MOST_WAIT_S.
            self._pause.wait(max(period - took, 0.0 if fine else min(took, MOST_WAIT_S), least))

    def _poll(self) -> float:
        """Poll once and return the minimum number of seconds before the next poll, 0 if the answer was good."""
        try:
            reports, skipped = parse_inverters(self._gateway.text(INVERTERS))
        except BadReading as trouble:
            return self.outage.fails(f"the inverters' answer is {trouble}")
        except Lost as trouble:
            return self.outage.fails(str(trouble))
        except NotFound as trouble:
            return self.outage.fails(f"this gateway does not list its inverters ({trouble}): {_CURE}")
        except Refused as trouble:
            return self.outage.refused(str(trouble))
        self._inbox.put(tuple(reports))
        self.outage.ends()
        self.outage.steady()
        self._say_skipped(skipped)
        self._say_clock()
        return 0.0

    def _say_skipped(self, skipped: Sequence[str]) -> None:
        if news := sorted(set(skipped) - self._skipped):
            _log.warning("gateway: not posted, for lack of a serial number, date or watts: %s", ", ".join(news))
            self._skipped.update(news)

    def _say_clock(self) -> None:
        ahead = self._gateway.info.ahead if self._gateway.info else None
        if ahead is not None and abs(ahead) > CLOCK_OFF_S and not self._clock_said:
            self._clock_said = True
            apart = f"{duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'}"
            _log.warning("the gateway's clock, which dates the inverters' reports, is %s this computer's", apart)


class Inverters:
    """The main thread's handling of reports: appends a row for each new one, and writes the status text."""

    def __init__(self, daemon: Daemon[Reports], delivery: Delivery, wall: Callable[[], float] = time.time) -> None:
        self._daemon = daemon
        self._delivery = delivery
        self._wall = wall
        self._dead: set[str] = set()
        self._batteries: set[str] = set()
        self._reports: list[InverterReport] = []
        self._posted: dict[str, int] = {}  # serial number -> date of the last report appended

    def take(self, reports: Reports) -> None:
        """Append a row for each new report of one poll."""
        newest = max((report.reported_at for report in reports), default=0)
        if not self._reports:
            self._daemon.tick_now()
        self._reports = [report for report in reports if report.reported_at >= newest - DEAD_AFTER_S]
        self._say_dead({report.serial for report in reports} - {report.serial for report in self._reports}, newest)
        self._say_batteries({report.serial for report in self._reports if report.dev_type == AC_BATTERY})
        news = [report for report in self._reports if self._posted.get(report.serial) != report.reported_at]
        self._posted |= {report.serial: report.reported_at for report in news}
        self._delivery.append([inverter_row(report) for report in news])

    def status(self, poller: Poller) -> str:
        """Return the daemon's state in words for STATUS=."""
        text = "no report yet"
        if self._reports:
            newest = max(report.reported_at for report in self._reports)
            age = max(0.0, self._wall() - newest)  # the gateway's clock may be ahead
            watts = sum(report.watts for report in self._reports if report.dev_type != AC_BATTERY)
            text = f"{len(self._reports)} inverters, {watts:.0f} W; newest report {duration(age)} ago"
        return f"{text}; {self._delivery.status()}{poller.outage.status()}"

    def _say_dead(self, dead: set[str], newest: int) -> None:
        """Log, in one line, units newly treated as removed because others have reported over a week later."""
        if news := sorted(dead - self._dead):
            date = time.strftime("%Y-%m-%d", time.gmtime(newest - DEAD_AFTER_S))
            _log.info(
                "treated as removed and not posted, because they last reported before %s: %s", date, ", ".join(news)
            )
        self._dead = dead

    def _say_batteries(self, batteries: set[str]) -> None:
        if news := sorted(batteries - self._batteries):
            _log.info("AC batteries, posted like inverters but not summed as production: %s", ", ".join(news))
            self._batteries |= batteries
