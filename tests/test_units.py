"""The unit files: what systemd-analyze says of them, and the rules for their text."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.daemons import PROJECT, skip_or_fail

STREAM = PROJECT / "systemd" / "envoy2emon.service"
INVERTERS = PROJECT / "systemd" / "envoy2emon_inv.service"
both = pytest.mark.parametrize("unit", [STREAM, INVERTERS], ids=lambda unit: unit.stem)


def analyze(*arguments: str) -> str:
    """Return what systemd-analyze prints on stdout and stderr."""
    if not shutil.which("systemd-analyze"):
        skip_or_fail("systemd-analyze is not installed", "REQUIRE_SYSTEMD")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


@both
def test_systemd_reads_the_unit_without_a_word(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing; the installed Python's path is replaced by one that exists here."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/envoy2emon/bin/python", sys.executable))
    assert analyze("verify", "--man=no", str(copy)) == ""


@both
def test_the_sandbox_is_tight(unit: Path) -> None:
    """The exposure level that `systemd-analyze security` gives is at most 1.2."""
    words = analyze("security", "--offline=true", "--no-pager", str(unit))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", words)
    assert level, words
    assert float(level[1]) <= 1.2


@both
def test_every_directive_has_its_reason_above_it(unit: Path) -> None:
    """Each directive but Description= has a comment of its own on the line above it."""
    lines = unit.read_text().splitlines()
    bare = [line for above, line in pairwise(lines) if re.match(r"\w+=", line) and not above.startswith("#")]
    assert [line for line in bare if not line.startswith("Description=")] == []


@both
def test_no_comment_stands_behind_a_value(unit: Path) -> None:
    """`#` stands only at the start of a line, because elsewhere systemd takes it for a part of the value."""
    assert [line for line in unit.read_text().splitlines() if "#" in line[1:]] == []


def test_the_units_differ_in_what_they_run_and_how_they_are_called() -> None:
    """Except for comments, Description=, ExecStart= and SyslogIdentifier=, the units are the same line by line."""
    pairs = zip(STREAM.read_text().splitlines(), INVERTERS.read_text().splitlines(), strict=True)
    different = [(one, other) for one, other in pairs if one != other]
    assert [one.partition("=")[0] for one, _ in different if not one.startswith("#")] == [
        "Description",
        "ExecStart",
        "SyslogIdentifier",
    ]
    assert [other for one, other in different if one.startswith("SyslogIdentifier")] == [
        "SyslogIdentifier=envoy2emon_inv"
    ]
