"""The live page inside the stream daemon: posts come first."""

import contextlib
import socket
import time
from threading import Event, Thread
from typing import Self

from envoy2emon.demo.emoncms import HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.conftest import StartDaemon
from tests.test_stream import numbered, wait_for_rows


def watch(port: int) -> socket.socket:
    """Become a viewer."""
    viewer = socket.create_connection(("127.0.0.1", port), timeout=10)
    viewer.sendall(b"GET /events HTTP/1.1\r\nHost: pi\r\n\r\n")
    assert viewer.recv(4096).startswith(b"HTTP/1.1 200")
    return viewer


def free_port() -> int:
    """Return a port that nobody holds."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def paced(envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, count: int) -> list[float]:
    """Send readings, twenty a second, and return how long each took to EmonCMS, in s, sorted."""
    pace, took, before = Event(), [], len(emoncms.rows)
    for number in range(1, count + 1):
        pace.wait(0.05)  # no waiting for a thing: it is the rate of the readings
        emitted = time.monotonic()
        envoy.emit(numbered(number))
        wait_for_rows(emoncms, before + number)
        took.append(emoncms.rows[-1].arrived - emitted)
    return sorted(took)


class Nuisances:
    """Slow, endless, many and malformed requests at once, until the end of the `with`."""

    def __init__(self, port: int) -> None:
        self._port, self._ended = port, Event()

    def __enter__(self) -> Self:
        """Begin."""
        self._threads = [
            Thread(target=self._ask, args=(bad,)) for bad in (b"G", b"a?" * 4000, b" " * 9000, b"\r\n\r\n")
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, bad: bytes) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as client:
                client.sendall(bad)
                client.settimeout(0.02)
                client.recv(65536)


def test_posts_stay_prompt(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """With 32 viewers and every kind of bad request, 99 of 100 posts take at most twice as long as without."""
    port = free_port()
    stream = daemon("stream", LIVE_LISTEN=f"127.0.0.1:{port}")
    stream.wait_for_line("INFO live page on")
    envoy.wait_for_stream()
    alone = paced(envoy, emoncms, 100)
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(watch(port))
        with Nuisances(port):
            disturbed = paced(envoy, emoncms, 100)
    print(f"p99 {alone[98] * 1e3:.1f} ms alone, {disturbed[98] * 1e3:.1f} ms with viewers and bad requests")
    # The least of what may be twice as much: a computer that tests has other things to do.
    assert disturbed[98] < max(2 * alone[98], 0.05)
    assert envoy.open_streams == 1


def test_the_page_goes_on_while_emoncms_hangs(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """A viewer gets each reading while a post to EmonCMS is never answered."""
    emoncms.fault = HoldsUp()
    port = free_port()
    stream = daemon("stream", LIVE_LISTEN=f"127.0.0.1:{port}")
    stream.wait_for_line("INFO live page on")
    envoy.wait_for_stream()
    with watch(port) as viewer:
        for number in range(3000, 3003):
            envoy.emit(numbered(number))
            received = b""
            wanted = b'event: solar_data\ndata: {"p":%d,' % int(number + 0.5 + 49.576 + 42.27)
            while wanted not in received:
                received += viewer.recv(4096)


def test_a_taken_port_stops_nothing(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A port that another program holds is an ERROR that says what to do, and posting goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stream = daemon("stream", LIVE_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        stream.wait_for_line("ERROR no live page on LIVE_LISTEN=127.0.0.1:.*PORT")
        envoy.wait_for_stream()
        envoy.emit(numbered(1))
        wait_for_rows(emoncms, 1)


def test_off_means_no_socket_and_no_import(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Without LIVE_LISTEN the daemon imports neither the page nor asyncio."""
    stream = daemon("stream", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    envoy.wait_for_stream()
    envoy.emit(numbered(1))
    wait_for_rows(emoncms, 1)
    imported = {line.rpartition("|")[2].strip() for line in stream.lines if line.startswith("import time:")}
    assert "envoy2emon.stream" in imported
    assert not {"envoy2emon.live.server", "envoy2emon.live.http", "asyncio"} & imported
