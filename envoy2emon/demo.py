"""`envoy2emon demo`: everything at work, without an Envoy, an EmonCMS or settings.

The law of this file: both daemons run as they do in earnest, as processes with a `.env`; only their neighbours are
simulated, by the same code that the tests use.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from envoy2emon.demo_day import Day
from envoy2emon.simulator import SimulatedEnvoy
from envoy2emon.simulator_site import inverters
from envoy2emon.standin import StandInEmonCMS

# A day passes in four minutes; it begins at breakfast.
HOURS_A_SECOND = 24 / 240
FIRST_HOUR = 7.0
DEFAULT_PORT = 8080
KEPT_ROWS = 1000
_HEAD = "house's time   generating   consuming         nett  prod_ph-a_wNow   cons_ph-a_wNow   rows in EmonCMS"


def run(seconds: float | None, listen: str | None) -> int:
    """Show it for so many seconds, or until Ctrl-C, and return 0; 1 if a daemon does not run."""
    stop = threading.Event()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the daemons' log, through a pipe too
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    started = time.monotonic()

    def hour() -> float:
        return (FIRST_HOUR + (time.monotonic() - started) * HOURS_A_SECOND) % 24

    day = Day(seed=1)
    page = listen or f"127.0.0.1:{_free_port()}"
    with ExitStack() as stack:
        emoncms = stack.enter_context(StandInEmonCMS(keep=KEPT_ROWS))
        envoy = stack.enter_context(SimulatedEnvoy(source=lambda: day.event(hour())))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envoy2emon-demo-")))
        env_file = folder / ".env"
        env_file.touch(0o600)
        env_file.write_text(
            f"ENVOY_HOST={envoy.host}\nENVOY_PASSWORD={envoy.password}\nEMONCMS_URL={emoncms.url}\n"
            f"EMONCMS_APIKEY={emoncms.key}\nINVERTERS_INTERVAL_S=2\nLIVE_LISTEN={page}\n"
        )
        print(f"A simulated Envoy at {envoy.host}, a stand-in for EmonCMS at {emoncms.url}, and between them:")
        daemons = [_start(name, env_file) for name in ("stream", "inverters")]
        for daemon in daemons:
            stack.callback(_end, daemon)
        print(f"The live page: http://{page}/   (a day takes four minutes; Ctrl-C ends it)\n\n{_HEAD}")
        while not stop.wait(1.0) and (seconds is None or time.monotonic() - started < seconds):
            if any(daemon.poll() is not None for daemon in daemons):
                return 1
            envoy.inverters = inverters(12, int(time.time()) // 10 * 10)
            _show(hour(), emoncms)
        print(f"\nEnded; EmonCMS has received {emoncms.account.applied} rows.")
    return 0


def _show(hour: float, emoncms: StandInEmonCMS) -> None:
    inputs = {name: float(each.value) for name, each in dict(emoncms.account.nodes.get("Envoy-S", {})).items()}
    if not inputs:
        return
    shown = [
        sum(watts for name, watts in inputs.items() if name.startswith(section) and name.endswith("wNow"))
        for section in ("prod", "cons", "net")
    ]
    shown += [inputs["prod_ph-a_wNow"], inputs["cons_ph-a_wNow"]]
    clock = f"{int(hour):02}:{int(hour % 1 * 60):02}"
    columns = "".join(f"{watts:{width}.0f} W" for watts, width in zip(shown, (11, 10, 11, 15, 15), strict=True))
    print(f"{clock:>12}{columns}{emoncms.account.applied:18}")


def _start(name: str, env_file: Path) -> "subprocess.Popen[bytes]":
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HOME": str(env_file.parent),
        "STATE_DIRECTORY": str(env_file.parent / "state"),
    }
    command = [sys.executable, "-m", "envoy2emon", name, "--env-file", str(env_file)]
    # A session of its own: Ctrl-C is for this process, which then ends its daemons.
    return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - ourselves


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_port() -> int:
    for port in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return 0
