"""Both daemons under a real systemd, in a throw-away machine, between the simulated Envoy and the stand-in for EmonCMS."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from envoy2emon.simulator import SimulatedEnvoy
from envoy2emon.standin import Fault, StandInEmonCMS
from tests.machine import SETTINGS, Machine, wait_for

pytestmark = pytest.mark.timeout(120)
STREAM, INVERTERS = "envoy2emon", "envoy2emon_inv"
BOTH = (STREAM, INVERTERS)
AWAY = Fault((502, "<h1>Bad Gateway</h1>"))
STATE = Path("/var/lib/envoy2emon")


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """Boot a machine like this computer, with envoy2emon installed."""
    with Machine() as machine:
        machine.install_program()
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """Give the machine without traces of another test, which restarts daemons at once."""
    booted.mark()
    for unit in BOTH:
        override(booted, unit, "RestartSec=0.2")
    yield booted
    booted.enter("systemctl", "kill", "--signal=KILL", *BOTH)
    booted.run("systemctl", "stop", *BOTH)
    booted.enter("systemctl", "reset-failed", *BOTH)
    booted.run("systemctl", "clean", "--what=all", *BOTH)
    booted.run("rm", "--recursive", "--force", str(SETTINGS), *(f"/run/systemd/system/{unit}.service.d" for unit in BOTH))


@pytest.fixture
def envoy(machine: Machine) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway in the machine that sends five events a second."""
    with machine.network(), SimulatedEnvoy(interval=0.2) as envoy:
        envoy.source = lambda: envoy.event
        envoy.stop()
        envoy.start()
        yield envoy


@pytest.fixture
def emoncms(machine: Machine) -> Iterator[StandInEmonCMS]:
    """Serve a stand-in for EmonCMS in the machine."""
    with machine.network(), StandInEmonCMS() as emoncms:
        yield emoncms


@pytest.fixture
def settings(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> dict[str, str]:
    """Write the settings that lead to both neighbours."""
    settings = {
        "ENVOY_HOST": envoy.host,
        "ENVOY_PASSWORD": envoy.password,
        "EMONCMS_URL": emoncms.url,
        "EMONCMS_APIKEY": emoncms.key,
    }
    write(machine, settings)
    return settings


def write(machine: Machine, settings: dict[str, str]) -> None:
    """Write the settings as the owner does."""
    machine.write(SETTINGS, "".join(f"{name}={value}\n" for name, value in settings.items()), "0600")


def override(machine: Machine, unit: str, *lines: str) -> None:
    """Change directives of a unit's service until the end of the test."""
    path = Path(f"/run/systemd/system/{unit}.service.d/{len(lines)}.conf")
    machine.write(path, "\n".join(("[Service]", *lines, "")))
    machine.run("systemctl", "daemon-reload")


def node_arrives(emoncms: StandInEmonCMS, node: str = "Envoy-S") -> None:
    """Wait for a row that is not there yet."""
    seen = len(emoncms.rows)
    emoncms.wait_for(lambda: any(row.node == node for row in list(emoncms.rows)[seen:]))


def status_says(machine: Machine, pattern: str, unit: str = STREAM) -> None:
    """Wait until the unit's status line matches."""
    what = f"a status line like {pattern!r}"
    wait_for(what, lambda: re.search(pattern, machine.show(unit, "StatusText")) is not None)
