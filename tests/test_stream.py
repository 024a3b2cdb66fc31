"""From the gateway's stream to EmonCMS's inputs, with the daemon as a process and its neighbours on sockets."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envoy2emon.demo.account import AppliedRow
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES
from tests.conftest import StartDaemon
from tests.daemons import altered

DEFAULT_KEYS = ("wNow", "rmsVoltage", "rmsCurrent", "pwrFactor")


def inputs_of(event: str) -> dict[str, str]:
    """Return the inputs that an event gives by default, each in the gateway's digits."""
    sections = json.loads(event, parse_float=str, parse_int=str)
    return {
        f"{section}_{phase}_{key}": values[KEY_NAMES[key]]
        for section, name in SECTION_NAMES.items()
        if name in sections
        for phase, values in sections[name].items()
        for key in DEFAULT_KEYS
    }


def numbered(number: int) -> str:
    """Return an event that carries a number."""
    return THREE_PHASE_EVENT.replace('"p":54.745', f'"p":{number}.5', 1)


def number_of(row: AppliedRow) -> int:
    """Return the number that numbered() put into the event."""
    return int(row.inputs["prod_ph-a_wNow"])


def texts(row: AppliedRow) -> dict[str, str]:
    """Return a row's inputs in the digits in which they came."""
    return {name: str(value) for name, value in row.inputs.items()}


def wait_for_rows(emoncms: StandInEmonCMS, count: int) -> None:
    """Wait until so many rows have arrived."""
    emoncms.wait_for(lambda: len(emoncms.rows) >= count)


@pytest.mark.parametrize("chunked", [True, False])
def test_three_phases(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, *, chunked: bool) -> None:
    """Read with a digest login, chunked or not, each event arrives at once as 36 inputs with the gateway's values."""
    envoy.chunked, envoy.newline = chunked, "\r\n"
    stream = daemon("stream")
    envoy.wait_for_stream()
    for count, event in enumerate([THREE_PHASE_EVENT, numbered(1), numbered(1), numbered(2)], 1):
        emitted = time.monotonic()
        envoy.emit(event)
        wait_for_rows(emoncms, count)
        row = emoncms.rows[-1]
        assert (row.node, texts(row)) == ("Envoy-S", inputs_of(event))
        assert len(row.inputs) == 36
        assert row.arrived - emitted < 0.5
        assert -2.2 < row.time - time.time() <= 0.1
    asked = [(request.path, request.status, request.user) for request in envoy.requests]
    assert asked[:3] == [("/info", 200, None), ("/stream/meter", 401, None), ("/stream/meter", 200, "installer")]
    assert {path for path, *_ in asked[3:]} <= {"/ivp/meters"}
    assert emoncms.connections == 1
    assert stream.terminate()[0] == 0
    assert len(emoncms.rows) == 4


def one_write(envoy: SimulatedEnvoy, data: bytes) -> None:
    """Send all in one write."""
    envoy.emit_raw(data)


def chunk_by_chunk(envoy: SimulatedEnvoy, data: bytes) -> None:
    """Send an HTTP chunk for each event."""
    for event in data.split(b"\n\n")[:-1]:
        envoy.emit_raw(event + b"\n\n")


def pieces(envoy: SimulatedEnvoy, data: bytes) -> None:
    """Send pieces that do not end where events end."""
    for start in range(0, len(data), 1400):
        envoy.emit_raw(data[start : start + 1400])


@pytest.mark.parametrize(("send", "chunked"), [(one_write, True), (chunk_by_chunk, True), (pieces, False)])
def test_burst(
    daemon: StartDaemon,
    envoy: SimulatedEnvoy,
    emoncms: StandInEmonCMS,
    tmp_path: Path,
    send: Callable[[SimulatedEnvoy, bytes], None],
    *,
    chunked: bool,
) -> None:
    """Events that the gateway held back are dated one second apart: 22 together, as D7.0.88 sends them.

    The daemon waits longer for the rest of a burst than it does in earnest, because a busy computer sends it late.
    """
    envoy.chunked = chunked
    patient = "from envoy2emon.gateway import bursts\nbursts.FOLLOWS_S = bursts.BURST_FOLLOWS_S = 1.0\n"
    daemon("stream", altered(tmp_path / "patient", f"{patient}bursts.LONGEST_WAIT_S = 10.0\n"))
    envoy.wait_for_stream()
    send(envoy, b"".join(f"data: {numbered(number)}\n\n".encode() for number in range(22)))
    wait_for_rows(emoncms, 22)
    last = emoncms.rows[-1].time
    assert [number_of(row) for row in emoncms.rows] == list(range(22))
    assert [row.time for row in emoncms.rows] == list(range(last - 21, last + 1))
    assert -2.2 < last - time.time() <= 0.1


def test_selection(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """STREAM_SECTIONS, _KEYS, _PHASES, _MIN_PRODUCTION_W and _NET decide what is posted; EMONCMS_NODE decides where."""
    daemon(
        "stream",
        STREAM_SECTIONS="prod,net",
        STREAM_KEYS="wNow,reactPower,apprntPwr,frequency",
        STREAM_PHASES="ph-b,ph-a",
        STREAM_MIN_PRODUCTION_W=50,
        STREAM_NET="calculated",
        EMONCMS_NODE="roof",
    )
    envoy.wait_for_stream()
    envoy.emit(THREE_PHASE_EVENT)
    wait_for_rows(emoncms, 1)
    (row,) = emoncms.rows
    assert (row.node, texts(row)) == (
        "roof",
        {
            "prod_ph-a_wNow": "54.745",
            "prod_ph-a_reactPower": "155.094",
            "prod_ph-a_apprntPwr": "185.367",
            "prod_ph-a_frequency": "50.0",
            "prod_ph-b_wNow": "0",
            "prod_ph-b_reactPower": "139.221",
            "prod_ph-b_apprntPwr": "179.72",
            "prod_ph-b_frequency": "50.0",
            "net_ph-a_wNow": "1184.274",
            "net_ph-a_reactPower": "247.115",
            "net_ph-a_apprntPwr": "1220.902",
            "net_ph-a_frequency": "50.0",
            "net_ph-b_wNow": "579.117",
            "net_ph-b_reactPower": "-331.655",
            "net_ph-b_apprntPwr": "655.161",
            "net_ph-b_frequency": "50.0",
        },
    )


def test_first_lines(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """The first two lines, in LOG_FILE too, name the version, source, target and gateway.

    STATUS= shows the first reading within a second.
    """
    stream = daemon("stream", LOG_FILE=tmp_path / "log")
    stream.wait_for_line("firmware D5.0.62")
    first, second = stream.lines[:2]
    assert f"reads the meters of the gateway at {envoy.host}, posts to {emoncms.url} as node Envoy-S" in first
    assert " INFO envoy2emon 1." in first
    assert second.endswith(f"INFO gateway: http://{envoy.host}, firmware D5.0.62, serial number ending in 5678")
    envoy.wait_for_stream()
    envoy.emit(THREE_PHASE_EVENT)
    stream.wait_for_notify(r"STATUS=147 W generating, 2192 W consuming; last reading 0 s ago", 1.0)
    assert [line.rpartition("INFO ")[2] for line in (tmp_path / "log").read_text().splitlines()[:2]] == [
        line.rpartition("INFO ")[2] for line in (first, second)
    ]


def test_what_is_not_posted_is_logged_once(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """A section that the gateway sends is logged once, at INFO, if STREAM_SECTIONS lacks it; else it becomes inputs."""
    battery = THREE_PHASE_EVENT.replace('"production"', '"storage":{"ph-a":{"p":-2580.0}},"production"', 1)
    stream = daemon("stream", STREAM_SECTIONS="prod,storage", STREAM_KEYS="wNow")
    envoy.wait_for_stream()
    for count in (1, 2):
        envoy.emit(battery)
        wait_for_rows(emoncms, count)
    assert texts(emoncms.rows[-1])["storage_ph-a_wNow"] == "-2580.0"
    assert stream.terminate()[0] == 0
    said = [line for line in stream.lines if "which is not posted" in line]
    assert len(said) == 2
    assert "the gateway also sends net-consumption, which is not posted: STREAM_SECTIONS can name net" in said[0]
