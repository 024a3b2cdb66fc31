"""The README's installation, line by line, on a fresh Debian."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.installs import BOTH, OFFLINE, edit_for, fresh, install, shell, start
from tests.machine import SETTINGS, Machine
from tests.readme import commands

pytestmark = pytest.mark.timeout(300)  # making the root file systems for the first time takes most of it


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Boot a fresh Debian."""
    with fresh(request.param, tmp_path) as machine:
        yield machine


@pytest.mark.parametrize("machine", ["bookworm"], indirect=True)  # test_upgrade.py runs the lines on trixie
def test_from_install_to_purge(machine: Machine) -> None:
    """The README's lines install, edit, start and check; --uninstall keeps settings and state, --purge removes all."""
    setup, edit, begin, check = commands("Install it on the Pi")[:4]
    with (
        machine.network(),
        SimulatedEnvoy(address=("127.0.0.2", 0), source=lambda: THREE_PHASE_EVENT, interval=0.2) as envoy,
        StandInEmonCMS() as emoncms,
    ):
        assert f"Next: edit {SETTINGS}" in shell(machine, setup)
        assert edit == f"sudo nano {SETTINGS}"
        assert machine.run("stat", "--format=%U %a", str(SETTINGS)) == "root 600\n"
        assert machine.run("systemctl", "is-enabled", *BOTH) == "enabled\nenabled\n"
        assert ".new" not in machine.run("/opt/envoy2emon/bin/pip", "--version")

        settings = edit_for(machine, envoy, emoncms)
        start(machine, emoncms, begin)
        verdicts = shell(machine, check)
        assert {line.split()[0] for line in verdicts.splitlines()} == {"ok"}, verdicts
        assert len(re.findall(r"^ok    units      envoy2emon(_inv)? runs: ", verdicts, re.MULTILINE)) == 2, verdicts

        assert "Kept" in install(machine, "--uninstall")
        left = machine.run("sh", "-c", "ls -d /opt/envoy2emon* /usr/local/bin/* /etc/systemd/system/envoy* || true")
        assert left == ""
        assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "envoy2emon*") == ""
        assert machine.run("cat", str(SETTINGS)) == settings
        machine.run("test", "-e", "/var/lib/envoy2emon/")

        install(machine, "--purge")
        assert machine.run("find", "/opt", "/usr/local", "/etc", "/var/lib", "/var/log", "-name", "envoy2emon*") == ""


@pytest.mark.parametrize("machine", ["bookworm", "trixie"], indirect=True)
def test_try_it(machine: Machine) -> None:
    """The README's line runs the demo from a checkout, for a user without root's rights."""
    (line,) = commands("Try it")
    machine.run("apt-get", "install", "--yes", "python3-venv")
    machine.run("useradd", "--create-home", "pi")
    machine.run("cp", "--recursive", "/mnt", "/home/pi/checkout")
    machine.run("chown", "--recursive", "pi:", "/home/pi/checkout")
    command = ("runuser", "-u", "pi", "--", "sh", "-c", f"cd ~pi/checkout && {line} --seconds 4")
    done = machine.enter(*command, environ=OFFLINE | {"HOME": "/home/pi"})
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert re.search(rb"^ +\d\d:\d\d +\d+ W ", done.stdout, re.MULTILINE), done.stdout.decode()
