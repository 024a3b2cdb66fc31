"""install.sh on a fresh Debian: over an earlier installation, and where it cannot install."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.daemons import PROJECT
from tests.installs import BOTH, OFFLINE, edit_for, fresh, install, shell, start
from tests.machine import SETTINGS, Machine
from tests.readme import commands

pytestmark = pytest.mark.timeout(300)  # making the root file systems for the first time takes most of it
# What install.sh may touch.
TRACES = "ls -lA --time-style=full-iso /opt /usr/local/bin /etc/systemd/system /etc/envoy2emon 2>&1"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Boot a fresh Debian."""
    with fresh("trixie", tmp_path) as machine:
        yield machine


def refuses(machine: Machine, words: str, *before: str) -> None:
    """Run install.sh, and check that it fails with these words and leaves everything as it was."""
    was = machine.run("sh", "-c", f"{TRACES} || true")
    done = machine.enter(*before, "/mnt/systemd/install.sh", environ={"PIP_RETRIES": "0"})
    assert done.returncode == 1
    assert words in done.stderr.decode().splitlines()[-1]
    assert machine.run("sh", "-c", f"{TRACES} || true") == was


def test_upgrades(machine: Machine) -> None:
    """An upgrade keeps the settings, names new ones, restarts only what ran, and names the daemons that do not run.

    The test first runs the README's commands, with the settings as --uninstall leaves them.
    """
    setup, _, begin, check = commands("Install it on the Pi")[:4]
    machine.write(SETTINGS, (PROJECT / ".env.example").read_text(), "0600")
    with (
        machine.network(),
        SimulatedEnvoy(address=("127.0.0.2", 0), source=lambda: THREE_PHASE_EVENT, interval=0.2) as envoy,
        StandInEmonCMS() as emoncms,
    ):
        settings = edit_for(machine, envoy, emoncms)  # as --uninstall leaves them
        words, both = shell(machine, setup), " ".join(BOTH)
        assert f"Installed, with the settings in {SETTINGS}\n" in words
        assert f"\nNot running: {both}. To start: sudo systemctl restart {both}\n" in words
        start(machine, emoncms, begin)
        assert {line.split()[0] for line in shell(machine, check).splitlines()} == {"ok"}
        machine.run("systemctl", "disable", "--now", "envoy2emon_inv")
        before = machine.show("envoy2emon", "MainPID")
        machine.run("cp", "--recursive", "/mnt", "/srv/newer")
        machine.run("sed", "-i", "s/1.1.0/1.1.99/", "/srv/newer/envoy2emon/__init__.py")
        machine.run("sh", "-c", "printf '# What it does.\n#SHINY_NEW=1\n' >>/srv/newer/.env.example")
        words = install(machine, checkout="/srv/newer")
    assert re.search(r"New settings.*[: ]SHINY_NEW$", words, re.MULTILINE)
    assert "Upgraded; running daemons were restarted\n" in words
    assert "Not running" not in words  # the other one is off because its owner wants that
    elsewhere = "cd /srv/here && echo 1/0 >envoy2emon.py && envoy2emon --version"  # must not import what is there
    assert machine.run("sh", "-c", elsewhere) == "envoy2emon 1.1.99\n"
    assert machine.show("envoy2emon", "MainPID") not in {before, "0"}
    assert machine.show("envoy2emon_inv", "ActiveState") == "inactive"
    assert machine.show("envoy2emon_inv", "UnitFileState") == "disabled"
    assert machine.run("cat", str(SETTINGS)) == settings

    machine.write(SETTINGS, settings.replace(f"EMONCMS_APIKEY={emoncms.key}\n", "EMONCMS_APIKEY=\n"), "0600")
    done = machine.enter("/mnt/systemd/install.sh", environ=OFFLINE)
    assert done.returncode == 1
    assert b"Not running: envoy2emon. To start:" in done.stderr
    assert b"upgraded, but not all daemons start: see systemctl status" in done.stderr


def test_refusals_leave_all_as_it_was(machine: Machine) -> None:
    """Without root, systemd, a network or a recent Python, install.sh says so and leaves the installation unchanged."""
    machine.write(Path("/opt/envoy2emon/installed"), "before")
    machine.write(Path("/etc/apt/apt.conf.d/once"), 'Acquire::Retries "0";')
    refuses(machine, "must be run as root", "setpriv", "--reuid=65534", "--clear-groups")
    refuses(machine, "does not run systemd", "unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run; "$@"', "sh")
    machine.run("sh", "-c", "mv /var/cache/apt/archives/*.deb /srv")
    refuses(machine, "python3-venv cannot be installed: is there a network?")
    machine.run("sh", "-c", "mv /srv/*.deb /var/cache/apt/archives")
    refuses(machine, "is there a network? What was installed before is unchanged")
    assert machine.enter("/mnt/systemd/install.sh", "--help").returncode == 0
    assert machine.enter("/mnt/systemd/install.sh", "--nonsense").returncode == 2
    machine.run("rm", "/usr/bin/python3")
    machine.write(Path("/usr/bin/python3"), '#!/bin/sh\necho Python 3.9.2\n[ "$2" != -c ]\n', "0755")
    refuses(machine, "Python 3.9.2 is too old")
