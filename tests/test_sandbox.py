"""The units' sandbox on a real systemd, as seen by a program that runs in place of the daemons."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import SETTINGS, Machine

PROBE = """
import json, os, socket, sys
def try_to(name, action):
    try:
        action()
        seen[name] = "yes"
    except OSError as error:
        seen[name] = error.strerror
seen = {"user": os.getuid()}
for path in sys.argv[1:]:
    try_to(f"read {path}", lambda: open(path).read())
    try_to(f"write {path}", lambda: open(path, "w"))
for variable in "STATE_DIRECTORY", "LOGS_DIRECTORY", "CREDENTIALS_DIRECTORY":
    try_to(f"write {variable}", lambda: open(os.environ[variable] + "/probe", "w"))
try_to("read settings", lambda: open(os.environ["ENVOY2EMON_ENV_FILE"]).read())
try_to("raw socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
print(json.dumps(seen))
"""

UNITS = ("envoy2emon", "envoy2emon_inv")
PATHS = (str(SETTINGS), "/home/pi/notes", "/root/probe", "/opt/envoy2emon/probe", "/etc/probe", "/var/lib/probe")
COMMAND = f"/opt/envoy2emon/bin/python /usr/local/lib/probe.py {' '.join(PATHS)}"
IN_ITS_PLACE = f"[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={COMMAND}\n"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Boot a machine in which a program that probes the sandbox's limits runs in place of both daemons."""
    with Machine() as machine:
        machine.install_program()
        machine.write(SETTINGS, "EMONCMS_APIKEY=secret\n", "0600")
        machine.write(Path("/home/pi/notes"), "private")
        machine.write(Path("/usr/local/lib/probe.py"), PROBE)
        for unit in UNITS:
            machine.write(Path(f"/run/systemd/system/{unit}.service.d/probe.conf"), IN_ITS_PLACE)
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.mark.parametrize("unit", UNITS)
def test_the_sandbox_holds(machine: Machine, unit: str) -> None:
    """A program in the unit can read none of the owner's files, and can write only to the unit's state and logs."""
    machine.run("systemctl", "start", unit)
    seen = json.loads(machine.journal(unit, f"--identifier={unit}")[0])
    assert seen["user"] >= 61184  # systemd's dynamic users
    assert {name: answer for name, answer in seen.items() if answer == "yes"} == dict.fromkeys(
        ("write STATE_DIRECTORY", "write LOGS_DIRECTORY", "read settings"), "yes"
    )
    assert seen[f"read {SETTINGS}"] == "Permission denied"
    assert seen["read /home/pi/notes"] == "Permission denied"
