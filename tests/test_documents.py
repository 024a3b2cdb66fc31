"""What the documents say is what the code does."""

import re
from dataclasses import fields
from fnmatch import fnmatch

import pytest

from envoy2emon.settings import Config
from tests.daemons import PROJECT

DEFAULTS = {each.name.upper(): each.metadata["default"] or "" for each in fields(Config)}
README = (PROJECT / "README.md").read_text("utf-8")


def section(heading: str) -> str:
    """Return the README's section of this heading, at whatever level."""
    found = re.search(rf"^(#+) {heading}$(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    if not found:
        pytest.fail(f"README.md has no heading {heading!r}")
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table's rows, without backticks; not its heading."""
    lines = [line.strip() for line in text.splitlines() if line.lstrip().startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readmes_table_has_every_setting_and_its_default() -> None:
    """The README's section Settings has a table with a row a setting: its name, its default, what it means."""
    table = rows(section("Settings"))
    assert table, "README.md has no table `| name | default | meaning |` under Settings"
    assert {name: default for name, default, _ in table} == DEFAULTS
    assert len(table) == len(DEFAULTS)
    assert all(meaning for _, _, meaning in table)


def test_the_example_has_every_setting_its_default_and_a_word_on_it() -> None:
    """`.env.example` has each setting once, commented out with its default but for the key, under a line on it."""
    lines = (PROJECT / ".env.example").read_text("utf-8").splitlines()
    found = {}
    for before, line in zip(["", *lines], lines, strict=False):
        if named := re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(.*)", line):
            mark, name, default = named.groups()
            assert name not in found
            assert bool(mark) == (name != "EMONCMS_APIKEY")
            assert re.match(r"# [\w-].*\.$", before), f"{name} has no explanation above it"
            found[name] = default
    assert found == DEFAULTS


def test_the_readmes_room_list_is_the_package() -> None:
    """The README's section How it works names every file of the package, and none that is not there."""
    patterns = [name.strip("` ") for cell, _ in rows(section("How it works")) for name in cell.split(",")]
    files = {path.name for path in (PROJECT / "envoy2emon").iterdir() if path.suffix in (".py", ".html")}
    for pattern in patterns:
        assert [name for name in files if fnmatch(name, pattern)], f"there is no {pattern}"
    unnamed = {name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert unnamed == {"__init__.py"}


def test_ci_runs_the_readmes_own_command() -> None:
    """`.ci/run` takes its test command from the README's section Try the tests, where there is exactly one."""
    commands = re.findall(r"^    (python3 .*)$", section("Try the tests"), re.MULTILINE)
    assert len(commands) == 1
    assert 'bash -euc "$command"' in (PROJECT / ".ci/run").read_text("utf-8")
