"""install.sh on fresh Debian: bookworm (systemd 252, Python 3.11) and trixie (257, 3.13), which Raspberry Pi OS is."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.daemons import PROJECT, skip_or_fail
from tests.machine import SETTINGS, Machine
from tests.readme import commands

pytestmark = pytest.mark.timeout(300)  # making the roots for the first time takes most of it
BOTH = ("envoy2emon", "envoy2emon_inv")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "envoy2emon-tests"
CHECKOUT = ("envoy2emon", "systemd", "pyproject.toml", "README.md", "LICENSE", ".env.example")
# The machine has no network: apt finds python3-venv among the packages that it has fetched, pip finds WHEELS.
ROOT = (
    "mmdebstrap",
    "--variant=minbase",
    "--include=systemd,systemd-sysv,dbus,python3,ca-certificates,avahi-daemon,libnss-mdns",
    "--skip=cleanup/apt",
    '--customize-hook=chroot "$1" apt-get clean',
    '--customize-hook=chroot "$1" apt-get install --yes --download-only python3-venv',
)
PACKAGES = ("requests", "python-dotenv", "hatchling")
PURE = ("--only-binary=:all:", "--implementation=py", "--abi=none", "--platform=any", "--python-version=3.11")
CONSTRAINTS = PROJECT / "systemd" / "constraints.txt"
WHEELS = (sys.executable, "-m", "pip", "download", "--quiet", *PURE, *PACKAGES, "-c", str(CONSTRAINTS), "--dest")
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/wheels"}
# What install.sh may touch.
TRACES = "ls -lA --time-style=full-iso /opt /usr/local/bin /etc/systemd/system /etc/envoy2emon 2>&1"


def kept(name: str, *command: str) -> Path:
    """Return a folder that the command makes, its last argument, and that is kept for the next run of the tests."""
    seed = " ".join(command).replace(str(PROJECT), "") + CONSTRAINTS.read_text()
    path = CACHE / f"{name}-{sha256(seed.encode()).hexdigest()[:8]}"
    if not path.exists():
        new = path.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run([*command, str(new)], check=False, capture_output=True, text=True)
        if made.returncode != 0:
            skip_or_fail(f"{name} cannot be fetched, is there a network? {made.stderr[-500:]}", "REQUIRE_SYSTEMD")
        new.rename(path)
    return path


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put a checkout, and the wheels that pip needs, where machines see them."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        skip_or_fail("making a fresh Debian takes root and mmdebstrap", "REQUIRE_SYSTEMD")
    share = tmp_path_factory.mktemp("share")
    share.chmod(0o755)
    for name in CHECKOUT:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, share / name)
    shutil.copytree(kept("wheels", *WHEELS), share / "wheels")
    return share


@pytest.fixture(params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, share: Path) -> Iterator[Machine]:
    """Boot a fresh Debian."""
    with Machine(kept(request.param, *ROOT, request.param), share) as machine:
        yield machine


def shell(machine: Machine, line: str) -> str:
    """Run a line of the README in a checkout, as root, who has no need of sudo, and return what it prints."""
    done = machine.enter("sh", "-c", f"cd /mnt; {line.removeprefix('sudo ')}", environ=OFFLINE)
    assert (done.returncode, done.stderr.decode()) == (0, ""), done.stdout.decode()
    return done.stdout.decode()


def install(machine: Machine, *options: str, checkout: str = "/mnt") -> str:
    """Run install.sh, which has to succeed without a complaint, and return its words.

    Root runs nothing of the folder that it is in, where modules lie that Python would take for its own.
    """
    here = "mkdir -p /srv/here && cd /srv/here && for name in venv ensurepip pip sys; do echo 1/0 >$name.py; done"
    command = f'{here} && exec {checkout}/systemd/install.sh "$@"'
    done = machine.enter("sh", "-c", command, "sh", *options, environ=OFFLINE)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def refuses(machine: Machine, words: str, *before: str) -> None:
    """Run install.sh, which has to end with these words and to leave everything as it was."""
    was = machine.run("sh", "-c", f"{TRACES} || true")
    done = machine.enter(*before, "/mnt/systemd/install.sh", environ={"PIP_RETRIES": "0"})
    assert done.returncode == 1
    assert words in done.stderr.decode().splitlines()[-1]
    assert machine.run("sh", "-c", f"{TRACES} || true") == was


def test_from_install_to_purge(machine: Machine) -> None:
    """A Pi owner tries the demo, installs, edits, starts and checks by the README's lines; later uninstalls, purges."""
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
        verified = machine.enter("systemd-analyze", "verify", "--man=no", *(f"{unit}.service" for unit in BOTH))
        assert (verified.stdout, verified.stderr) == (b"", b"")
        assert ".new" not in machine.run("/opt/envoy2emon/bin/pip", "--version")

        settings = edit_for(machine, envoy, emoncms)
        start(machine, emoncms, begin)
        as_a_user(machine)
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


def as_a_user(machine: Machine) -> None:
    """Try the demo by the README's line, in a copy of the checkout, as somebody without rights."""
    (line,) = commands("Try it")
    machine.run("useradd", "--create-home", "--shell", "/bin/sh", "pi")
    machine.run("cp", "--recursive", "/mnt", "/home/pi/checkout")
    machine.run("chown", "--recursive", "pi:", "/home/pi/checkout")
    words = (
        "runuser",
        "-u",
        "pi",
        "--",
        "env",
        "HOME=/home/pi",
        *(f"{name}={value}" for name, value in OFFLINE.items()),
    )
    done = machine.enter(*words, "sh", "-c", f"cd ~/checkout && {line} --seconds 4")
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert re.search(rb"^ +\d\d:\d\d +\d+ W ", done.stdout, re.MULTILINE), done.stdout.decode()


def edit_for(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> str:
    """Fill in the settings, with the neighbours under their mDNS names, and return the file's text."""
    machine.run("sh", "-c", "echo 127.0.0.2 envoy.local >>/etc/avahi/hosts; systemctl restart avahi-daemon")
    values = {
        "ENVOY_HOST": f"envoy.local:{envoy.address[1]}",
        "ENVOY_PASSWORD": envoy.password,
        "EMONCMS_URL": emoncms.url.replace("127.0.0.1", machine.run("hostname").strip() + ".local"),
        "EMONCMS_APIKEY": emoncms.key,
    }
    text = machine.run("cat", str(SETTINGS))
    for name, value in values.items():
        text, edited = re.subn(f"^#?{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert edited == 1
    machine.write(SETTINGS, text, "0600")
    return text


def start(machine: Machine, emoncms: StandInEmonCMS, line: str) -> None:
    """Start both daemons by the README's line and see the inputs of both nodes arrive."""
    seen = len(emoncms.rows)
    assert shell(machine, line) == ""
    nodes = {"Envoy-S", "Envoy-S-inverters"}
    emoncms.wait_for(lambda: {row.node for row in list(emoncms.rows)[seen:]} == nodes, 20)


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_upgrades(machine: Machine) -> None:
    """Settings stay, a new one is named; what ran is restarted, what was off stays off; what does not run is named."""
    settings = "EMONCMS_APIKEY=key\nENVOY_HOST=127.0.0.1:1\nENVOY_PASSWORD=word\n"
    machine.write(SETTINGS, settings, "0600")  # as --uninstall leaves them
    words = install(machine)
    assert f"Installed, with the settings in {SETTINGS}\n" in words
    assert words.endswith(
        "Not running: {0}. To start: sudo systemctl restart {0}\nTo check: sudo envoy2emon check\n".format(
            " ".join(BOTH)
        )
    )

    machine.run("systemctl", "start", "envoy2emon")
    machine.run("systemctl", "disable", "envoy2emon_inv")
    before = machine.show("envoy2emon", "MainPID")
    machine.run("cp", "--recursive", "/mnt", "/srv/newer")
    machine.run("sed", "-i", "s/1.1.0/1.1.99/", "/srv/newer/envoy2emon/__init__.py")
    machine.run("sh", "-c", "printf '# What it does.\n#SHINY_NEW=1\n' >>/srv/newer/.env.example")
    words = install(machine, checkout="/srv/newer")
    assert re.search(r"New settings.*[: ]SHINY_NEW$", words, re.MULTILINE)
    assert "Upgraded; running daemons were restarted\n" in words
    assert "\nNot running: envoy2emon_inv. To start: sudo systemctl restart envoy2emon_inv\n" in words
    assert machine.run("envoy2emon", "--version") == "envoy2emon 1.1.99\n"
    assert machine.show("envoy2emon", "MainPID") not in {before, "0"}
    assert machine.show("envoy2emon_inv", "ActiveState") == "inactive"
    assert machine.show("envoy2emon_inv", "UnitFileState") == "disabled"
    assert machine.run("cat", str(SETTINGS)) == settings

    machine.write(SETTINGS, settings.replace("key\n", "\n"), "0600")
    done = machine.enter("/mnt/systemd/install.sh", environ=OFFLINE)
    assert done.returncode == 1
    assert b"Not running: envoy2emon envoy2emon_inv. To start:" in done.stderr
    assert b"upgraded, but not all daemons start: see systemctl status" in done.stderr


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_refusals_leave_all_as_it_was(machine: Machine) -> None:
    """Not root, no systemd, no network, a Python too old: a clear sentence, and what was installed is unchanged."""
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
