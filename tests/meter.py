"""Numbered events on their way from the gateway through a daemon to EmonCMS.

Each event carries its number in a phase's frequency, so loss and doubling are counted exactly.
"""

import time
from collections.abc import Callable
from threading import Event

from envoy2emon.demo.emoncms import PHP_DOWN, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.daemons import Daemon
from tests.ledger import went_back

AWAY = PHP_DOWN
ALONE_S = 0.15  # an event sooner after the first one would be taken for a burst
# The daemon checks its backlog at intervals of a third of this.
QUICK = {"WATCHDOG_USEC": "600000"}
NUMBER = "prod_ph-a_frequency"


class Meter:
    """Sends numbered events through a simulated gateway and knows which of them arrived."""

    def __init__(self, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
        self.envoy, self.emoncms = envoy, emoncms
        self.sent: list[float] = []  # wall clock

    def send(self, count: int, pace: float = 0.02) -> None:
        """Send events one by one."""
        pause = Event()
        for number in range(count):
            self.envoy.emit(self.event())
            pause.wait(pace if number else ALONE_S)

    def event(self) -> str:
        """Make the next event."""
        self.sent.append(time.time())
        return THREE_PHASE_EVENT.replace('"f":50.0', f'"f":{len(self.sent)}', 1)

    def arrived(self) -> list[int]:
        """Return the numbers of the events in the order in which they were applied."""
        return [int(row.inputs[NUMBER]) for row in list(self.emoncms.rows) if NUMBER in row.inputs]

    def wait_for(self, count: int) -> None:
        """Wait until `count` different events have arrived."""
        self.emoncms.wait_for(lambda: len(set(self.arrived())) >= count, 20)

    def all_arrived(self) -> None:
        """Wait for all events; assert that dates never went back, and that each has one date, when it was sent."""
        self.wait_for(len(self.sent))
        assert went_back(self.emoncms.rows) == 0
        dates: dict[int, int] = {}
        for row in self.emoncms.rows:
            number = int(row.inputs[NUMBER])
            assert dates.setdefault(number, row.time) == row.time
            assert -2.2 < row.time - self.emoncms.clock_offset - self.sent[number - 1] < 1.2


def stream(daemon: Callable[..., Daemon], envoy: SimulatedEnvoy, **changes: object) -> Daemon:
    """Start the stream daemon and wait until it reads the stream."""
    one = daemon("stream", QUICK, STREAM_KEYS="wNow,frequency", **changes)
    envoy.wait_for_stream()
    return one


def restart(one: Daemon, envoy: SimulatedEnvoy, *, kill: bool = False) -> None:
    """End the daemon, start it again, and wait until it reads the stream."""
    if kill:
        one.kill()
    else:
        assert one.terminate()[0] == 0
    envoy.wait_for(lambda: envoy.open_streams == 0)
    one.start()
    envoy.wait_for_stream()


def wait_for_waiting_rows(one: Daemon, count: int) -> None:
    """Wait until the daemon's status reports this many waiting rows."""
    one.wait_for_notify(rf"^STATUS=.*\b{count} rows? waiting", 15)
