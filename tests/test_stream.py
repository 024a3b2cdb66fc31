"""From the gateway's stream to EmonCMS's inputs, with the daemon as a process and its neighbours on sockets."""

import json
import time
from decimal import Decimal
from pathlib import Path
from unittest.mock import Mock

from envoy2emon.demo.account import AppliedRow
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.gateway.readings import parse_event
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES, Selection
from envoy2emon.stream import Stream
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


def texts(row: AppliedRow) -> dict[str, str]:
    """Return a row's inputs in the digits in which they came."""
    return {name: str(value) for name, value in row.inputs.items()}


def wait_for_rows(emoncms: StandInEmonCMS, count: int) -> None:
    """Wait until so many rows have arrived."""
    emoncms.wait_for(lambda: len(emoncms.rows) >= count)


def test_three_phases(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Read with a digest login, each event arrives at once and once as 36 inputs with the gateway's values.

    While EmonCMS answers, nothing is saved, because SD cards wear out.
    """
    envoy.newline = "\r\n"
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
    assert not list(stream.state.glob("*.sqlite*"))
    assert stream.terminate() == 0
    assert len(emoncms.rows) == 4
    assert not list(stream.state.glob("*.sqlite*"))


def test_burst(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """Events that the gateway held back are dated one second apart: 22 together, as D7.0.88 sends them.

    The daemon waits longer for the rest of a burst than it does in earnest, because a busy computer sends it late.
    """
    patient = "from envoy2emon.gateway import bursts\nbursts.FOLLOWS_S = bursts.BURST_FOLLOWS_S = 1.0\n"
    daemon("stream", altered(tmp_path / "patient", f"{patient}bursts.LONGEST_WAIT_S = 10.0\n"))
    envoy.wait_for_stream()
    envoy.emit_raw(b"".join(f"data: {numbered(number)}\n\n".encode() for number in range(22)))
    wait_for_rows(emoncms, 22)
    last = emoncms.rows[-1].time
    assert [int(row.inputs["prod_ph-a_wNow"]) for row in emoncms.rows] == list(range(22))
    assert [row.time for row in emoncms.rows] == list(range(last - 21, last + 1))
    assert -2.2 < last - time.time() <= 0.1


def test_a_stop_loses_no_reading_that_is_held() -> None:
    """A reading that is held because a burst may follow is kept if the daemon stops meanwhile."""
    delivery = Mock()
    chosen = Selection(("prod",), ("ph-a",), ("wNow",), Decimal(0), net_calculated=False)
    stream = Stream(Mock(), chosen, delivery, None)
    stream.take(Arrival(9.9))
    stream.take(Arrival(10.0, (parse_event(THREE_PHASE_EVENT, 10.0),)))
    delivery.append.assert_not_called()
    stream.close()
    delivery.append.assert_called_once()


def test_selection(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """The settings decide which inputs are posted to which node; a section that is not posted is logged once."""
    stream = daemon(
        "stream",
        STREAM_SECTIONS="prod,net,storage",
        STREAM_KEYS="wNow,frequency",
        STREAM_PHASES="ph-b",
        STREAM_MIN_PRODUCTION_W=50,
        STREAM_NET="calculated",
        EMONCMS_NODE="roof",
    )
    envoy.wait_for_stream()
    for count in (1, 2):
        envoy.emit(THREE_PHASE_EVENT.replace('"production"', '"storage":{"ph-b":{"p":-2580.0}},"production"', 1))
        wait_for_rows(emoncms, count)
    assert (emoncms.rows[1].node, texts(emoncms.rows[1])) == (
        "roof",
        {
            "prod_ph-b_wNow": "0",
            "prod_ph-b_frequency": "50.0",
            "net_ph-b_wNow": "579.117",
            "net_ph-b_frequency": "50.0",
            "storage_ph-b_wNow": "-2580.0",
        },
    )
    assert stream.terminate() == 0
    (said,) = [line for line in stream.lines if "which is not posted" in line]
    assert "the gateway also sends total-consumption, which is not posted: STREAM_SECTIONS can name cons" in said


def test_first_lines(daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """The first two lines, in LOG_FILE too, name version, source, target and gateway; STATUS= shows the watts."""
    stream = daemon("stream", LOG_FILE=tmp_path / "log")
    envoy.wait_for_stream()
    envoy.emit(THREE_PHASE_EVENT)
    stream.wait_for_notify(r"STATUS=147 W generating, 2192 W consuming; last reading 0 s ago", 1.0)
    first, second = said = [line.partition(" INFO ")[2] for line in stream.lines[:2]]
    assert first.startswith("envoy2emon 1.")
    assert f"reads the meters of the gateway at {envoy.host}, posts to {emoncms.url} as node Envoy-S" in first
    assert second == f"gateway: http://{envoy.host}, firmware D5.0.62, serial number ending in 5678"
    assert [line.partition(" INFO ")[2] for line in (tmp_path / "log").read_text().splitlines()[:2]] == said
