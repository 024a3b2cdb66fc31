"""The daemons, as processes, and their gateway: after an upgrade or a fault readings resume by themselves."""

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.certificates import Certificate
from tests.conftest import StartDaemon
from tests.enlighten import Enlighten
from tests.faultproxy import FaultProxy


def readings(emoncms: StandInEmonCMS) -> list[Mapping[str, Decimal]]:
    """Return the complete readings of the meters that have arrived."""
    return [row.inputs for row in list(emoncms.rows) if len(row.inputs) == 36]


def reads_the_stream(envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """Wait until a stream is open, and check that its next event arrives complete."""
    count = len(readings(emoncms))
    envoy.wait_for_stream(15)
    envoy.emit(THREE_PHASE_EVENT)
    emoncms.wait_for(lambda: len(readings(emoncms)) > count)


@pytest.mark.parametrize("firmware", ["D7.6.175", "D8.3.6086"])
def test_upgrade_overnight(
    daemon: StartDaemon,
    envoy: SimulatedEnvoy,
    emoncms: StandInEmonCMS,
    enlighten: Enlighten,
    certificate: Certificate,
    tmp_path: Path,
    firmware: str,
) -> None:
    """Both daemons keep reading a gateway that leaves firmware 5, without a restart and with one login for both.

    D7.6.175 closes the stream to owners: the meter reports then give the same readings.
    """
    envoy.tls = certificate.context
    same = {"STATE_DIRECTORY": str(tmp_path / "state"), "WATCHDOG_USEC": "600000"}
    stream = daemon("stream", same, **enlighten.settings())
    inverters = daemon("inverters", same, INVERTERS_INTERVAL_S=1, **enlighten.settings())
    reads_the_stream(envoy, emoncms)
    emoncms.wait_for(lambda: len(emoncms.rows) == 13)
    envoy.upgrade(firmware)
    envoy.wait_for(lambda: envoy.open_streams == 0)
    if firmware == "D8.3.6086":
        reads_the_stream(envoy, emoncms)
    emoncms.wait_for(lambda: len(readings(emoncms)) == 2)
    stream.wait_for_line(f"INFO gateway: https://{envoy.host}, firmware {firmware}")
    inverters.wait_for_line("INFO gateway: back after")
    expiry = time.strftime("%Y-%m-%d", time.gmtime(time.time() + enlighten.lifetime))
    for process in (stream, inverters):
        process.wait_for_notify(f"STATUS=.*; token until {expiry}")
        assert not [line for line in process.lines if "ERROR" in line]
    assert enlighten.logins == [200]
    before, after = readings(emoncms)
    assert after == before


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda proxy: proxy.refuse(), "closed the connection"),
        (lambda proxy: proxy.cut(reset=True), "closed the connection"),
        (lambda proxy: proxy.stall(), "does not answer within 1 s"),
    ],
    ids=["refused", "reset", "stalled"],
)
def test_fault(
    daemon: StartDaemon,
    envoy: SimulatedEnvoy,
    emoncms: StandInEmonCMS,
    happens: Callable[[FaultProxy], None],
    words: str,
) -> None:
    """Each fault of the connection is one WARNING, and readings resume when it is over."""
    with FaultProxy(*envoy.address) as proxy:
        process = daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}", STREAM_TIMEOUT_S=1)
        reads_the_stream(envoy, emoncms)
        process.wait_for_line("INFO gateway: its meters: ")  # asked for once, after the first reading
        happens(proxy)
        process.wait_for_line(f"WARNING gateway: .*{words}")
        proxy.pass_through()
        envoy.wait_for(lambda: envoy.open_streams == 0)
        reads_the_stream(envoy, emoncms)
        process.wait_for_line(r"INFO gateway: back after \d+ s")
        assert len([line for line in process.lines if "WARNING" in line]) == 1
