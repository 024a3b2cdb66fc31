"""`envoy2emon demo`: shows everything at work without a gateway, an EmonCMS or settings.

Both daemons run as they do in real use, as processes with a `.env`. Only the gateway and EmonCMS are simulated, by the
same code that the tests use.
"""

import errno
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue

from envoy2emon import settings
from envoy2emon.demo.day import Day
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import inverters
from envoy2emon.gateway.readings import parse_event
from envoy2emon.live import http as live_http
from envoy2emon.live.server import HISTORY_S, figures
from envoy2emon.live.today import save_history

# A day passes in four minutes; it begins at breakfast.
HOURS_A_SECOND = 24 / 240
FIRST_HOUR = 7.0
DEFAULT_PAGE = "127.0.0.1:8080"
ANY_PORT = "127.0.0.1:0"
KEPT_ROWS = 1000
# 80 columns wide at most, as terminals are.
_HEAD = "  time  production  consumption       net  prod_ph-a_wNow  cons_ph-a_wNow   rows"
_ALL_ADDRESSES = ("0.0.0.0", "[::]")  # noqa: S104 - listened on only if the user says so


def run(seconds: float | None, listen: str | None) -> int:
    """Run the demo for `seconds` (None: for ever) or until Ctrl-C; return the exit code.

    It is 0, or 1 if a daemon ends, or 2 for a wrong argument.
    listen: HOST:PORT of the page; None is port 8080 of 127.0.0.1, or another one if that is taken.
    """
    stop: SimpleQueue[None] = SimpleQueue()  # not an Event: when a signal comes, the main thread may hold its lock
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # keeps step with the daemons' log, even through a pipe
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.put(None))
    if seconds is not None and not seconds > 0:  # nan too
        print("envoy2emon demo: expected more than 0 seconds", file=sys.stderr)
        return 2
    try:
        page = _default_page() if listen is None else _page(settings.listen(listen))
    except settings.NotValid as expected:
        print(f"envoy2emon demo: expected {expected}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        cure = "HOST must be an address of this computer (0.0.0.0: all), PORT a free one"
        print(f"envoy2emon demo: there can be no page at {listen}: {reason}. {cure}", file=sys.stderr)
        return 2
    try:
        return _run(stop, seconds, page)
    except OSError as error:
        # `demo | head` has seen enough, or the terminal is gone. Both end the demo as Ctrl-C does.
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the output left at exit
        return 0


def _run(stop: SimpleQueue[None], seconds: float | None, page: str) -> int:
    started = time.monotonic()

    def hour() -> float:
        return (FIRST_HOUR + (time.monotonic() - started) * HOURS_A_SECOND) % 24

    day = Day(seed=1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envoy2emon-demo-")))
        emoncms = stack.enter_context(StandInEmonCMS(keep=KEPT_ROWS))
        gateway = stack.enter_context(SimulatedEnvoy(source=lambda: day.event(hour())))
        _write_past(folder / "state", day)
        env_file = folder / ".env"
        env_file.touch(0o600)
        env_file.write_text(
            "".join(f"{name}={value}\n" for name, value in (gateway.settings() | emoncms.settings()).items())
            + f"INVERTERS_INTERVAL_S=2\nLIVE_LISTEN={page}\n"
        )
        print(f"A simulated gateway at {gateway.host}, a stand-in for EmonCMS at {emoncms.url}, and between them:")
        daemons = [_start(name, env_file) for name in ("stream", "inverters")]
        for daemon in daemons:
            stack.callback(_end, daemon)
        host, _, port = page.rpartition(":")
        here = f"localhost:{port}/, and this computer's other addresses" if host in _ALL_ADDRESSES else f"{page}/"
        print(f"The live page: http://{here}\nA day takes four minutes; Ctrl-C ends it.")
        head = f"\n{_HEAD}\n"  # printed below the daemons' first messages
        until = started + (math.inf if seconds is None else seconds)
        while (left := until - time.monotonic()) > 0 and not _stopped(stop, min(1.0, left)):
            if any(daemon.poll() is not None for daemon in daemons):
                print("A daemon has ended, and so does the demo.")
                return 1
            gateway.inverters = inverters(12, int(time.time()) // 10 * 10)
            if inputs := dict(emoncms.account.nodes.get("Envoy-S", {})):
                values = {name: float(each.value) for name, each in inputs.items()}
                print(head + _line(hour(), values, emoncms.account.applied))
                head = ""
        print(f"\nEnded; EmonCMS has received {emoncms.account.applied} rows.")
    return 0


def _write_past(state: Path, day: Day) -> None:
    """Save the fifteen minutes before the demo for the live page, as if a daemon had run then."""
    now, points = int(time.time()), []
    for ago in range(HISTORY_S, 0, -1):
        watts = figures(parse_event(day.event((FIRST_HOUR - ago * HOURS_A_SECOND) % 24), now - ago))
        points.append((now - ago, watts["p"], watts["c"]))
    state.mkdir(0o700)
    save_history(state, points)


def _stopped(stop: SimpleQueue[None], seconds: float) -> bool:
    try:
        stop.get(timeout=seconds)
    except Empty:
        return False
    return True


def _line(hour: float, inputs: dict[str, float], rows: int) -> str:
    totals = [
        sum(watts for name, watts in inputs.items() if name.startswith(section) and name.endswith("wNow"))
        for section in ("prod", "cons", "net")
    ]
    totals += [inputs.get(f"{section}_ph-a_wNow", 0.0) for section in ("prod", "cons")]  # a row may be incomplete yet
    columns = "".join(f"{watts:{width}.0f} W" for watts, width in zip(totals, (10, 11, 8, 14, 14), strict=True))
    return f" {int(hour):02}:{int(hour % 1 * 60):02}{columns}{rows:7}"


def _start(name: str, env_file: Path) -> "subprocess.Popen[bytes]":
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "HOME": str(env_file.parent),
        "STATE_DIRECTORY": str(env_file.parent / "state"),
    }
    command = [sys.executable, "-m", "envoy2emon", name, "--env-file", str(env_file)]
    # A session of its own, so that Ctrl-C reaches only this process, which then ends its daemons.
    return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - ourselves


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _page(listen: str) -> str:
    """Return HOST:PORT, with a free port in place of 0. Raises OSError if one cannot listen there."""
    with live_http.listener(listen) as probe:
        return f"{listen.rpartition(':')[0]}:{probe.getsockname()[1]}"


def _default_page() -> str:
    try:
        return _page(DEFAULT_PAGE)
    except OSError:
        return _page(ANY_PORT)
