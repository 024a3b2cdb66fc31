"""A daemon under systemd: single instance, stop signals, READY, STATUS, WATCHDOG and worker threads.

The main thread waits only for its inbox, never for the gateway or EmonCMS. It pings the watchdog only while every
worker's loop turns. Sources: sd_notify(3), sd_watchdog(3).
"""

import fcntl
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from envoy2emon.words import clean

# The longest time between two ticks; each tick saves rows that are due, sends STATUS= and pings the watchdog.
TICK_S = 5.0
# A turn of a worker's loop may make several requests, each of at most 30 s for the name look-up, 10 s to connect and
# 60 s for the answer. A worker whose turn takes longer than this plus its `patience` counts as stuck.
TURN_WITHIN_S = 300.0
_LONGEST_STATUS = 1000

T = TypeVar("T")
_log = logging.getLogger(__name__)


class AlreadyRuns(Exception):
    """Another daemon of this kind uses the same state directory; the text names it."""


def state_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the directory for the backlog and the token; None if there is no home directory for it."""
    if named := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(named)
    if (xdg := environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(xdg) / "envoy2emon"
    home = environ.get("HOME")
    return Path(home) / ".local/state/envoy2emon" if home else None


def claim(name: str, state: Path | None) -> None:
    """Hold this daemon's lock in the state directory until the process ends. Raises AlreadyRuns.

    If it was started by hand as root, the process switches to the user that owns the directory, because the service
    could not use files of root. Without a writable directory nothing is shared, and there is no lock.
    """
    if state is None:
        return
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Opened before root switches user, because that user may not pass /var/lib/private outside the service.
        place = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _run_as_owner(os.fstat(place))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(f"{name}.lock", flags, 0o600, dir_fd=place)
        os.close(place)
    except OSError as error:
        _log.debug("no lock in %s: %s", state, error)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        process = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
        raise AlreadyRuns(
            f"another envoy2emon {name} (pid {clean(process)}) uses {state}: stop that one first"
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # such as a full disk; the lock holds nevertheless
        _log.debug("no pid in %s: %s", state, error)


def _run_as_owner(owner: os.stat_result) -> None:
    if os.geteuid() == 0 and owner.st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


class Daemon(Generic[T]):
    """A daemon's main thread, its worker threads, and the inbox in which they leave items for the main thread."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # None means stop. An Event would not do: a signal handler may not set one, but SimpleQueue.put is reentrant.
        self.inbox: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._last_turn: dict[str, tuple[float, float]] = {}
        self._died = False
        self._stuck: list[str] = []
        address = environ.get("NOTIFY_SOCKET", "")
        self._notifies = bool(address)
        self._notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notifier.settimeout(0.5)  # systemd may be slow to read at boot, and READY=1 is sent only once
        if address:
            try:  # connected, so that the kernel can wait while the receiver's queue is full
                self._notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError as error:
                _log.debug("sd_notify: %s", error)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.inbox.put(None))
        try:
            watchdog = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 / 3  # three pings per watchdog period
        except ValueError:
            watchdog = 0.0
        self._tick = min(TICK_S, watchdog or TICK_S)
        self._next_tick = time.monotonic()

    def start(self, name: str, work: Callable[[Callable[[], None]], None], patience: float = 0.0) -> threading.Thread:
        """Start a worker thread. `work` must call its argument at least every TURN_WITHIN_S + patience seconds.

        If a worker raises, its traceback is logged and the process ends.
        """

        def alive() -> None:
            self._last_turn[name] = (time.monotonic(), patience)

        def run() -> None:
            try:
                work(alive)
            except BaseException:  # noqa: BLE001 - whatever it is, it is logged with its traceback
                _log.critical("the %s thread died", name, exc_info=True)
                self._died = True
                self.inbox.put(None)

        alive()
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def run(self, take: Callable[[T], None], idle: Callable[[], float | None], tick: Callable[[], str]) -> int:
        """Serve until SIGTERM or SIGINT and return 0, or until a worker dies and return 1.

        take: called with each item in the inbox. idle: called when the inbox is empty; returns the seconds until the
        next call, None for no limit. tick: called every TICK_S or more often; returns words for STATUS=.
        """
        self._notify("READY=1")
        while True:
            # Empty the inbox before idle(): if this thread is late, the rest of a burst may already be there.
            wanted = idle() if self.inbox.empty() else 0.0
            now = time.monotonic()
            if now >= self._next_tick:
                self._report(tick())
                self._next_tick = now + self._tick
            wait = self._next_tick - now
            try:
                item = self.inbox.get(timeout=max(0.0, wait if wanted is None else min(wait, wanted)))
            except queue.Empty:
                continue
            if item is None:
                break
            take(item)
        self._notify("STOPPING=1")
        return 1 if self._died else 0

    def tick_now(self) -> None:
        """Make run() call tick() on its next turn, because STATUS= is out of date."""
        self._next_tick = time.monotonic()

    def _report(self, status: str) -> None:
        now = time.monotonic()
        stuck = [name for name, (at, patience) in self._last_turn.items() if now - at > TURN_WITHIN_S + patience]
        if stuck and stuck != self._stuck:
            _log.error("the %s thread is stuck: systemd will restart the daemon", " and ".join(stuck))
        self._stuck = stuck
        # clean() makes it one line, because systemd would obey a further line in what the gateway or EmonCMS sent.
        self._notify(f"STATUS={clean(status, _LONGEST_STATUS)}" + ("" if stuck else "\nWATCHDOG=1"))

    def _notify(self, text: str) -> None:
        if self._notifies:
            try:
                self._notifier.send(text.encode())
            except OSError as error:
                _log.debug("sd_notify: %s", error)
