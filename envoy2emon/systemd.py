"""How a process lives under systemd: stop, READY, WATCHDOG, STATUS.

The law of this file: the main thread never waits for a neighbour. It waits to be stopped or woken, and pings the
watchdog only while every worker's loop turns. Sources: sd_notify(3), sd_watchdog(3).
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# Two looks at the backlog and two STATUS= lines are this far apart, two watchdog pings at most.
TICK_S = 5.0
# A turn may be several questions, each of a name look-up (30 s), a connection (10 s) and an answer (60 s) at most, but
# for silence that the owner allows; what takes this long hangs.
TURN_WITHIN_S = 300.0
_LONGEST_STATUS = 1000

_log = logging.getLogger(__name__)


def state_directory(environ: Mapping[str, str]) -> Path | None:
    """Name the directory for the backlog and the token; None if there is no home to put it in."""
    if named := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(named)
    if (xdg := environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(xdg) / "envoy2emon"
    home = environ.get("HOME")
    return Path(home) / ".local/state/envoy2emon" if home else None


def boot_id(environ: Mapping[str, str]) -> str:
    """Name this boot of the machine: the unit passes it on, since ProcSubset=pid hides /proc/sys."""
    try:
        return environ.get("ENVOY2EMON_BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return os.urandom(16).hex()


class Service:
    """A daemon's main thread and its workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Seconds until it is wanted; None: stop. An Event would not do: a signal's handler may not set one.
        self._inbox: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._clock = clock
        self._turned: dict[str, tuple[float, float]] = {}
        self._died = False
        self._stuck: list[str] = []
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._inbox.put(None))  # SimpleQueue.put is reentrant
        self._tick = min(TICK_S, int(os.environ.get("WATCHDOG_USEC", "0") or "0") / 3e6 or TICK_S)

    def start(self, name: str, loop: Callable[[Callable[[], None]], None], *, patience: float = 0.0) -> None:
        """Start a worker. It calls its argument once a turn, every TURN_WITHIN_S + patience seconds at the latest.

        A worker that raises ends the process, with its traceback.
        """

        def turned() -> None:
            self._turned[name] = (self._clock(), patience)

        def work() -> None:
            try:
                loop(turned)
            except BaseException:  # noqa: BLE001 - whatever it is, it is logged whole
                _log.critical("the %s thread died", name, exc_info=True)
                self._died = True
                self._inbox.put(None)

        turned()
        threading.Thread(target=work, name=name, daemon=True).start()

    def wake(self, seconds: float) -> None:
        """Have the main thread look in so many seconds; from any thread."""
        self._inbox.put(seconds)

    def run(self, look: Callable[[], float | None], status: Callable[[], str]) -> int:
        """Serve until SIGTERM or SIGINT and return 0, or until a worker dies and return 1.

        look: called once a tick, when it is woken, and after the seconds that it asked for last.
        """
        self._notify("READY=1")
        due = next_tick = self._clock()
        while True:
            now = self._clock()
            if now >= due:
                wanted = look()
                if now >= next_tick:
                    self._report(status())
                    next_tick = now + self._tick
                due = next_tick if wanted is None else min(next_tick, now + wanted)
            try:
                seconds = self._inbox.get(timeout=max(0.0, due - now))
            except queue.Empty:
                continue
            if seconds is None:
                break
            due = min(due, self._clock() + seconds)
        self._notify("STOPPING=1")
        return 1 if self._died else 0

    def _report(self, status: str) -> None:
        now = self._clock()
        stuck = [name for name, (at, patience) in self._turned.items() if now - at > TURN_WITHIN_S + patience]
        if stuck and stuck != self._stuck:
            _log.error("the %s thread is stuck: systemd will restart the daemon", " and ".join(stuck))
        self._stuck = stuck
        # In one line: a neighbour's words may be in it, and a line of its own would be an order to systemd.
        self._notify(f"STATUS={' '.join(status.split())[:_LONGEST_STATUS]}" + ("" if stuck else "\nWATCHDOG=1"))

    def _notify(self, text: str) -> None:
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.settimeout(0.5)  # at boot systemd may be behind with its mail, and READY=1 is said but once
                try:
                    notify.sendto(text.encode(), self._address)
                except OSError as error:
                    _log.debug("sd_notify: %s", error)
