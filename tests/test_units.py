"""The unit files: what systemd-analyze says of them, and that they differ only where they have to."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.daemons import PROJECT, skip_or_fail

STREAM = PROJECT / "systemd" / "envoy2emon.service"
INVERTERS = PROJECT / "systemd" / "envoy2emon_inv.service"


def analyze(*arguments: str) -> str:
    """Return what systemd-analyze prints on stdout and stderr."""
    if not shutil.which("systemd-analyze"):
        skip_or_fail("systemd-analyze is not installed", "REQUIRE_SYSTEMD")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def test_systemd_reads_the_unit_without_a_word(tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing; the installed Python's path is replaced by one that exists here."""
    copy = tmp_path / STREAM.name
    copy.write_text(STREAM.read_text().replace("/opt/envoy2emon/bin/python", sys.executable))
    assert analyze("verify", "--man=no", str(copy)) == ""


def test_the_sandbox_is_tight() -> None:
    """The exposure level that `systemd-analyze security` gives is at most 1.2."""
    words = analyze("security", "--offline=true", "--no-pager", str(STREAM))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", words)
    assert level, words
    assert float(level[1]) <= 1.2


def test_the_units_differ_in_what_they_run_and_how_they_are_called() -> None:
    """Except for comments, Description=, ExecStart= and SyslogIdentifier=, the units are the same line by line."""
    pairs = zip(STREAM.read_text().splitlines(), INVERTERS.read_text().splitlines(), strict=True)
    different = {one.partition("=")[0]: other for one, other in pairs if one != other and not one.startswith("#")}
    assert different.keys() == {"Description", "ExecStart", "SyslogIdentifier"}
    assert different["ExecStart"].endswith("/python -I -X faulthandler -m envoy2emon inverters")  # -I: nobody's modules
    assert different["SyslogIdentifier"] == "SyslogIdentifier=envoy2emon_inv"
