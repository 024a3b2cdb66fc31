"""install.sh on a fresh Debian, as Raspberry Pi OS is: bookworm (systemd 252, Python 3.11) or trixie (257, 3.13)."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.daemons import PROJECT, skip_or_fail
from tests.machine import SETTINGS, Machine

BOTH = ("envoy2emon", "envoy2emon_inv")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "envoy2emon-tests"
CHECKOUT = ("envoy2emon", "systemd", "pyproject.toml", "README.md", "LICENSE", ".env.example")
# The machine has no network, so apt takes python3-venv from the packages that it has fetched, and pip takes WHEELS.
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


def kept(name: str, *command: str) -> Path:
    """Return a folder that `command` makes when given it as its last argument; it is kept for later test runs."""
    seed = " ".join(command).replace(str(PROJECT), "") + CONSTRAINTS.read_text()
    path = CACHE / f"{name}-{sha256(seed.encode()).hexdigest()[:8]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        if not path.exists():
            new = path.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            made = subprocess.run([*command, str(new)], check=False, capture_output=True, text=True)
            if made.returncode != 0:
                skip_or_fail(f"{name} cannot be fetched, is there a network? {made.stderr[-500:]}", "REQUIRE_SYSTEMD")
            new.rename(path)
    return path


def fresh(release: str, folder: Path) -> Machine:
    """Return a fresh Debian to boot; it sees a checkout and the wheels that pip needs, which are put into `folder`."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        skip_or_fail("making a fresh Debian takes root and mmdebstrap", "REQUIRE_SYSTEMD")
    share = folder / "share"
    share.mkdir()
    share.chmod(0o755)
    for name in CHECKOUT:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, share / name)
    shutil.copytree(kept("wheels", *WHEELS), share / "wheels")
    return Machine(kept(release, *ROOT, release), share)


def shell(machine: Machine, line: str) -> str:
    """Run a line of the README in a checkout, as root and so without sudo, and return what it prints."""
    done = machine.enter("sh", "-c", f"cd /mnt; {line.removeprefix('sudo ')}", environ=OFFLINE)
    assert (done.returncode, done.stderr.decode()) == (0, ""), done.stdout.decode()
    return done.stdout.decode()


def install(machine: Machine, *options: str, checkout: str = "/mnt") -> str:
    """Run install.sh, which has to succeed with nothing on stderr, and return what it prints.

    It runs in a folder with modules that fail and are named like Python's own, because root must not import them.
    """
    here = "mkdir -p /srv/here && cd /srv/here && for name in venv ensurepip pip sys; do echo 1/0 >$name.py; done"
    command = f'{here} && exec {checkout}/systemd/install.sh "$@"'
    done = machine.enter("sh", "-c", command, "sh", *options, environ=OFFLINE)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def edit_for(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> str:
    """Fill in the settings, with the mDNS names of the gateway and EmonCMS, and return the file's text."""
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
    """Start both daemons with the README's line, and wait until rows of both nodes arrive."""
    seen = len(emoncms.rows)
    assert shell(machine, line) == ""
    nodes = {"Envoy-S", "Envoy-S-inverters"}
    emoncms.wait_for(lambda: {row.node for row in list(emoncms.rows)[seen:]} == nodes, 20)
