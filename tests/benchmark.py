"""What the stream daemon costs, compared with the forum scripts' loop: `python -m tests.benchmark [--json FILE]`.

Both run in turn between the same simulated gateway and EmonCMS, and so do three bare threads on requests, the least
that our design can cost (tests/bare.py). Only their processes are measured, with all their threads: CPU time is that of
/proc/PID/task/*/schedstat, wake-ups are voluntary context switches, memory is VmRSS. Each figure is the median of all
rounds, each ratio the median of the rounds' ratios of ours to the loop's. A missed limit is printed but is no error,
because the computer may have been busy with other things.
"""

import argparse
import compileall
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from envoy2emon.demo.emoncms import PHP_DOWN
from tests.daemons import PROJECT, Daemon
from tests.peers import Peers

RATE = 10.0  # events a second
# D7.0.88 sends up to 45 at once (Matthew1471/Enphase-API). 45 in 15 ms are fewer than the daemon can take.
AT_ONCE, PAUSE_S = 45, 0.015
VIEWERS = 32
OFTEN = {"WATCHDOG_USEC": "300000"}  # a daemon sends its STATUS at intervals of a third of this

Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured; the full form takes under four minutes, the short one under 20 s."""

    rounds: int = 5
    paced: int = 40
    idle_s: float = 1.5
    burst: int = 1000
    passed: int = 100_000
    backlog: int = 86_400
    drained: int = 3600


SHORT = Size(rounds=1, paced=6, idle_s=0.3, burst=200, passed=1000, backlog=1000, drained=500)

# Each figure's label, unit and limit. A limit that begins with x is for the ratio, any other for the daemon's figure.
TABLE: dict[str, tuple[str, str, str]] = {
    "cpu": ("CPU time per event, 10 events/s", "ms", "x <= 0.55"),
    "latency_p50": ("latency from socket to socket, p50", "ms", "x <= 0.45"),
    "latency_p99": ("latency from socket to socket, p99", "ms", ""),
    "throughput": ("greatest sustained rate", "events/s", "x >= 3"),
    "connections": ("connections opened per event", "", "<= 0"),
    "wakeups": ("wake-ups per event", "", "<= 4"),
    "first_post": ("from exec to the first post", "ms", "x <= 1.6"),
    "cpu_idle": ("CPU time while idle, per second", "ms", ""),
    "wakeups_idle": ("wake-ups while idle, per second", "", "<= 1"),
    "rss": ("memory at start", "MiB", "x <= 1.15"),
    "rss_passed": ("memory after {passed} events, growth", "MiB", "<= 1"),
    "rss_backlog": ("memory with a backlog of {backlog} rows, growth", "MiB", "<= 64"),
    "drain": ("time to drain {drained} rows", "s", "<= 3"),
    "cpu_viewers_0": ("CPU time per event, live page, no viewer", "ms", ""),
    f"cpu_viewers_{VIEWERS}": (f"CPU time per event, live page, {VIEWERS} viewers", "ms", ""),
    "rss_viewers_0": ("memory, live page, no viewer", "MiB", ""),
    f"rss_viewers_{VIEWERS}": (f"memory, live page, {VIEWERS} viewers", "MiB", ""),
}


def kept(limit: str, ours: float | None, ratio: float | None) -> bool:
    """Return whether a figure keeps its limit: "x <= 0.55" is for the ratio, "<= 4" for the figure."""
    value = ratio if limit.startswith("x") else ours
    *_, comparison, bound = limit.split()
    return value is not None and (value <= float(bound) if comparison == "<=" else value >= float(bound))


class Measured:
    """A running process; started: when, monotonic s."""

    def __init__(self, pid: int, started: float) -> None:
        self.started = started
        self._proc = Path(f"/proc/{pid}")

    def cpu_ms(self) -> float:
        """Return the CPU time of all threads so far, in ms."""
        return sum(int(path.read_text().split()[0]) for path in self._proc.glob("task/*/schedstat")) / 1e6

    def wakeups(self) -> float:
        """Return how often its threads have waited so far."""
        texts = [path.read_text() for path in self._proc.glob("task/*/status")]
        return sum(int(re.findall(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", text)[0]) for text in texts)

    def rss_mib(self) -> float:
        """Return the resident memory in MiB."""
        return int(re.findall(r"VmRSS:\s+(\d+) kB", (self._proc / "status").read_text())[0]) / 1024


@contextmanager
def _daemon(peers: Peers, **environment: str) -> Iterator[tuple[Measured, Daemon]]:
    """Run the stream daemon between the peers."""
    with tempfile.TemporaryDirectory() as directory:
        one = Daemon("stream", Path(directory), peers.settings())
        one.environment |= {"LOG_LEVEL": "ERROR"} | environment
        started = time.monotonic()
        with one:
            yield Measured(one.process.pid, started), one


@contextmanager
def _other(module: str, peers: Peers) -> Iterator[Measured]:
    """Run tests/reference.py or tests/bare.py between the peers."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(PROJECT)} | peers.settings()
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", module], env=environment)
    try:
        yield Measured(process.pid, started)
    finally:
        process.kill()
        process.wait()


def _round(peers: Peers, process: Measured, size: Size) -> Figures:
    """Measure what can be measured of all three alike."""
    first_post = (peers.first_post() - process.started) * 1000
    peers.pace(RATE, 2)
    rss = process.rss_mib()
    before = process.cpu_ms(), process.wakeups(), peers.emoncms.connections
    latencies = [seconds * 1000 for seconds in peers.pace(RATE, size.paced)]
    after = process.cpu_ms(), process.wakeups(), peers.emoncms.connections
    cpu, wakeups, connections = ((late - early) / size.paced for early, late in zip(before, after, strict=True))
    idle = process.cpu_ms(), process.wakeups()
    threading.Event().wait(size.idle_s)
    return {
        "cpu": cpu,
        "latency_p50": median(latencies),
        "latency_p99": quantiles(latencies, n=100, method="inclusive")[98],
        "connections": connections,
        "wakeups": wakeups,
        "first_post": first_post,
        "cpu_idle": (process.cpu_ms() - idle[0]) / size.idle_s,
        "wakeups_idle": (process.wakeups() - idle[1]) / size.idle_s,
        "rss": rss,
        "throughput": size.burst / peers.burst(size.burst),
    }


def _memory(peers: Peers, size: Size) -> Figures:
    """Measure memory over many events, and with a full backlog while EmonCMS is away."""
    with _daemon(peers, **OFTEN) as (process, one):
        peers.first_post()
        peers.pace(RATE, 2)
        start = process.rss_mib()
        peers.burst(size.passed, AT_ONCE)
        passed = process.rss_mib()
        peers.emoncms.fault = PHP_DOWN
        peers.flow(size.backlog, AT_ONCE, PAUSE_S)
        one.wait_for_notify(rf"\b{size.backlog} rows waiting", 60)
        full = process.rss_mib()
    peers.emoncms.fault = None
    return {"rss_passed": passed - start, "rss_backlog": full - start}


def _drain(peers: Peers, size: Size) -> Figures:
    """Measure how fast a backlog drains when EmonCMS is back."""
    with _daemon(peers, **OFTEN) as (_, one):
        peers.first_post()
        peers.emoncms.fault = PHP_DOWN
        peers.send(size.drained)
        one.wait_for_notify(rf"\b{size.drained} rows waiting", 60)
        return {"drain": peers.drain(size.drained)}


def _live(peers: Peers, size: Size) -> Figures:
    """Measure the live page, with and without viewers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    figures = {}
    with _daemon(peers, LIVE_LISTEN=f"127.0.0.1:{port}") as (process, _):
        peers.first_post()
        for viewers in (0, VIEWERS):
            peers.watch(port, viewers)
            peers.pace(RATE, 2)
            before = process.cpu_ms()
            peers.pace(RATE, size.paced)
            figures[f"cpu_viewers_{viewers}"] = (process.cpu_ms() - before) / size.paced
            figures[f"rss_viewers_{viewers}"] = process.rss_mib()
    return figures


def measure(size: Size) -> dict[str, dict[str, float | None]]:
    """Return for each figure of TABLE ours, the reference's and the bare threads' (or None), and the ratio."""
    compileall.compile_dir(PROJECT / "envoy2emon", quiet=2)  # as when installed; else the first start would do it
    rounds: list[tuple[Figures, Figures, Figures]] = []
    peers = Peers()
    for _ in range(size.rounds):
        with _daemon(peers) as (process, _):
            ours = _round(peers, process, size)
        with _other("tests.bare", peers) as process:
            bare = _round(peers, process, size)
        with _other("tests.reference", peers) as process:
            rounds.append((ours, bare, _round(peers, process, size)))
    alone = _drain(peers, size) | _memory(peers, size) | _live(peers, size)
    figures: dict[str, dict[str, float | None]] = {
        name: {"ours": value, "bare": None, "reference": None, "ratio": None} for name, value in alone.items()
    }
    for name in rounds[0][0]:
        triples = [(ours[name], bare[name], theirs[name]) for ours, bare, theirs in rounds]
        ratios = [our / their for our, _, their in triples if their]
        medians = (median(column) for column in zip(*triples, strict=True))
        figures[name] = dict(zip(("ours", "bare", "reference"), medians, strict=True))
        figures[name]["ratio"] = median(ratios) if ratios else None
    return figures


def machine() -> dict[str, str | int | None]:
    """Return a description of the computer."""
    cpu = re.search(r"(?m)^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def main() -> None:
    """Measure, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description="What the stream daemon costs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--short", action="store_true", help="20 s in place of four minutes, to see that it works")
    arguments = parser.parse_args()
    size = SHORT if arguments.short else Size()
    where, figures = machine(), measure(size)
    counts = {name: f"{value:,}".replace(",", " ") for name, value in vars(size).items()}
    print("{cpu}, {cores} cores, Python {python}, Linux {kernel}\n".format(**where))
    print(f"{'':52} {'ours':>9} {'bare':>9} {'reference':>9} {'':8} {'ratio':>6}  limit")
    for name, (label, unit, limit) in TABLE.items():
        figure = figures[name]
        ours, bare, reference, ratio = (
            "-" if (value := figure[key]) is None else f"{value:.{2 if abs(value) < 100 else 0}f}"
            for key in ("ours", "bare", "reference", "ratio")
        )
        missed = "  MISSED" if limit and not kept(limit, figure["ours"], figure["ratio"]) else ""
        print(f"{label.format(**counts):52} {ours:>9} {bare:>9} {reference:>9} {unit:8} {ratio:>6}  {limit}{missed}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, "size": vars(size), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
