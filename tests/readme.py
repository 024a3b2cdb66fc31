"""README.md, read for the tests that hold it to the code."""

import re

import pytest

from tests.daemons import PROJECT

README = (PROJECT / "README.md").read_text("utf-8")


def section(heading: str) -> str:
    """Return the section of this heading, at whatever level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    if not found:
        pytest.fail(f"README.md has no heading {heading!r}")
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table's rows as they stand; not its heading."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = table[0].splitlines() if table else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands(heading: str) -> list[str]:
    """Return the section's indented lines: what its reader copies."""
    return re.findall(r"^    (\S.*)$", section(heading), re.MULTILINE)


def code(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)
