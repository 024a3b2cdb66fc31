"""Who imports whom: the rooms of the package, read from their source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import PROJECT

PURE = ("sse", "readings", "inputs", "bursts", "arrived", "dates")
ENVOY_SIDE = {"answer", "connection", "digest", "gateway", "envoy", "enphase", "tokens", "token_file"}
DELIVERY = {"courier", "delivery", "inquiry", "backlog", "group", "spool", "arrived", "dates"}
EMONCMS_SIDE = {"emoncms", "exchange"} | DELIVERY

TREES = {path.stem: ast.parse(path.read_text("utf-8")) for path in (PROJECT / "envoy2emon").glob("*.py")}
COMMANDS = {room for room in TREES if room.startswith(("__main__", "check", "demo"))}
TESTS = sorted((PROJECT / "tests").glob("test_*.py"))


def modules(nodes: Iterator[ast.AST]) -> set[str]:
    """Return what these nodes import: a room of ours by its own name, others by their package's."""
    full: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            full |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide where a name comes from"
            full |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in full]
    return {name[1] if name[0] == "envoy2emon" else name[0] for name in parts}


IMPORTS = {room: modules(ast.walk(tree)) - {"__version__"} for room, tree in TREES.items()}


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_knows_the_standard_library_and_the_pure_rooms_before_it(room: str) -> None:
    """What turns bytes into rows does no input or output, and reads from top to bottom."""
    earlier = PURE[: PURE.index(room)]
    assert IMPORTS[room] <= sys.stdlib_module_names | set(earlier)
    assert not IMPORTS[room] & {"socket", "threading", "time", "os", "pathlib", "logging"}


def test_the_two_sides_do_not_know_each_other() -> None:
    """No room of the Envoy's side imports one of EmonCMS's side, or the other way round."""
    assert not [room for room in ENVOY_SIDE if IMPORTS[room] & EMONCMS_SIDE]
    assert not [room for room in EMONCMS_SIDE if IMPORTS[room] & ENVOY_SIDE]


def test_only_the_commands_know_both_daemons() -> None:
    """A daemon's room is imported by commands alone, and no daemon by the other one."""
    assert {room for room in IMPORTS if IMPORTS[room] & {"stream", "inverters"}} <= COMMANDS


def test_the_simulators_are_for_the_demo() -> None:
    """No room that runs on a Pi in earnest imports a simulated neighbour."""
    doubles = {room for room in TREES if room.startswith(("simulator", "standin", "demo"))}
    assert {room for room in IMPORTS if IMPORTS[room] & doubles} <= doubles | {"__main__"}


def test_the_runtime_packages_are_two() -> None:
    """Nothing is imported but the standard library, requests and python-dotenv."""
    assert set().union(*IMPORTS.values()) - TREES.keys() - sys.stdlib_module_names == {"requests", "dotenv"}


def test_requests_is_imported_where_a_token_is_fetched_and_only_then() -> None:
    """The library requests costs a start 70 ms and 10 MB: no room imports it at the top of its file."""
    assert {room for room in IMPORTS if "requests" in IMPORTS[room]} == {"enphase"}
    assert not [room for room, tree in TREES.items() if "requests" in modules(iter(tree.body))]


def test_the_live_page_that_is_off_costs_no_import() -> None:
    """Only commands import the live page, and none of them at the top of its file."""
    assert {room for room in IMPORTS if "live" in IMPORTS[room]} <= COMMANDS
    assert not [room for room, tree in TREES.items() if "live" in modules(iter(tree.body))]


@pytest.mark.parametrize("room", sorted(TREES))
def test_nothing_sleeps(room: str) -> None:
    """No thread waits where a stop or an event cannot wake it: there is no time.sleep."""
    for node in ast.walk(TREES[room]):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        assert not (isinstance(node, ast.ImportFrom) and node.module == "time")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_tests_docstring_is_its_rule(path: Path) -> None:
    """Each test function says the rule that it holds."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
