"""The live page inside the stream daemon: posts come first."""

import contextlib
import socket
import time
from threading import Event

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


def test_posts_stay_prompt_with_32_viewers(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """With 32 viewers, ten readings a second for 30 s are in EmonCMS at once each; the Envoy sees one client."""
    port = free_port()
    stream = daemon("stream", LIVE_LISTEN=f"127.0.0.1:{port}")
    stream.wait_for_line("INFO Live page on")
    envoy.wait_for_stream()
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(watch(port))
        pace, took = Event(), []
        for number in range(300):
            pace.wait(0.1)  # no waiting for a thing: it is the rate of the readings
            emitted = time.monotonic()
            envoy.emit(numbered(number))
            wait_for_rows(emoncms, number + 1)
            took.append(emoncms.rows[-1].arrived - emitted)
        # One in a hundred may meet a machine that has other things to do.
        assert sorted(took)[296] < 0.5
        assert envoy.open_streams == 1


def test_the_page_goes_on_while_emoncms_hangs(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """A viewer gets each reading while a post to EmonCMS is never answered."""
    emoncms.fault = HoldsUp()
    port = free_port()
    stream = daemon("stream", LIVE_LISTEN=f"127.0.0.1:{port}")
    stream.wait_for_line("INFO Live page on")
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
        stream.wait_for_line("ERROR No live page on LIVE_LISTEN=127.0.0.1:.*PORT")
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
    assert not {"envoy2emon.live", "envoy2emon.live_http", "asyncio"} & imported
