"""Parts of README.md, for the tests that compare it with the code."""

import re

import pytest

from tests.daemons import PROJECT

README = (PROJECT / "README.md").read_text("utf-8")


def section(heading: str) -> str:
    """Return the text under this heading, of whatever level, up to the next heading."""
    found = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    if not found:
        pytest.fail(f"README.md has no heading {heading!r}")
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table's rows, without its heading."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = table[0].splitlines() if table else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands(heading: str) -> list[str]:
    """Return the section's indented lines, which its reader copies."""
    return re.findall(r"^    (\S.*)$", section(heading), re.MULTILINE)


def code(text: str) -> list[str]:
    """Return all texts between backticks."""
    return re.findall(r"`([^`]+)`", text)
