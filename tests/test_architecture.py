"""The rules on which module may import which, checked in the source."""

import ast
import sys
from pathlib import Path

import pytest

from tests.daemons import PROJECT

PACKAGE = PROJECT / "envoy2emon"
PURE = ("gateway.sse", "gateway.readings", "gateway.bursts", "rows")
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.py")
}
TESTS = sorted((PROJECT / "tests").glob("test_*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Return what a tree imports: a module of ours by its path in the package, others by their package's name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports hide where a name comes from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names - {"envoy2emon.__version__"}:
        first, _, rest = name.partition(".")
        if first == "envoy2emon":
            found.add(rest if rest in TREES else rest.rpartition(".")[0])
        else:
            found.add(first)
    return found


IMPORTS = {module: imported(tree) for module, tree in TREES.items()}


def users(*packages: str) -> set[str]:
    """Return the modules that import one of these modules, or one of a package of that name."""
    return {
        module
        for module, names in IMPORTS.items()
        if any(name == package or name.startswith(f"{package}.") for name in names for package in packages)
    }


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_knows_the_standard_library_and_pure_modules(module: str) -> None:
    """The modules that turn bytes into rows do no input or output and never wait."""
    assert IMPORTS[module] <= sys.stdlib_module_names | set(PURE)
    assert not IMPORTS[module] & {"socket", "threading", "time", "os", "pathlib", "logging"}


def test_the_two_sides_do_not_know_each_other() -> None:
    """No module of the gateway's side imports one of EmonCMS's side, or the other way round."""
    assert not [module for module in users("emoncms") if module.startswith("gateway.")]
    assert not [module for module in users("gateway") if module.startswith("emoncms.")]


def test_only_commands_know_the_daemons() -> None:
    """Only the commands import a daemon; no daemon imports the other one."""
    assert {module.partition(".")[0] for module in users("stream", "inverters")} <= {"__main__", "check"}


def test_the_simulated_neighbours_are_for_the_demo() -> None:
    """Only the demo and its command import the simulated gateway and EmonCMS."""
    assert {module.partition(".")[0] for module in users("demo")} <= {"__main__", "demo"}


def test_the_packages_at_run_time_are_two() -> None:
    """The package imports only the standard library, python-dotenv, requests, and the urllib3 that requests needs."""
    others = set().union(*IMPORTS.values()) - TREES.keys() - sys.stdlib_module_names
    assert others - {""} <= {"requests", "urllib3", "dotenv"} | {name.rpartition(".")[0] for name in TREES}


def test_a_page_that_is_off_costs_no_import() -> None:
    """The daemon imports the live page only where LIVE_LISTEN is set."""
    tops = {node for node in ast.iter_child_nodes(TREES["stream"]) if isinstance(node, ast.ImportFrom)}
    assert not [node for node in tops if node.module and node.module.startswith("envoy2emon.live")]


@pytest.mark.parametrize("module", sorted(TREES))
def test_nothing_sleeps(module: str) -> None:
    """No module calls time.sleep, because neither a stop nor an event could wake its thread."""
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        assert not (isinstance(node, ast.ImportFrom) and node.module == "time")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_tests_docstring_is_its_rule(path: Path) -> None:
    """Each test function has a docstring, which states the rule that it checks."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
