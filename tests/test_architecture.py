"""The rules on which module may import which, checked in the source."""

import ast
import re
import sys

from tests.daemons import PROJECT

PACKAGE = PROJECT / "envoy2emon"
PURE = {"gateway.sse", "gateway.readings", "gateway.bursts", "rows"}
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.py")
}


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


def users(package: str) -> set[str]:
    """Return the packages and modules at the top that import this one, or something in it."""
    return {
        module.partition(".")[0]
        for module, names in IMPORTS.items()
        if any(name.partition(".")[0] == package for name in names)
    }


def test_a_pure_module_knows_the_standard_library_and_pure_modules() -> None:
    """The modules that turn bytes into rows do no input or output and never wait."""
    for module in PURE:
        assert IMPORTS[module] <= sys.stdlib_module_names | PURE, module
        assert not IMPORTS[module] & {"socket", "threading", "time", "os", "pathlib", "logging"}, module


def test_who_knows_whom() -> None:
    """The two sides do not know each other, only commands know a daemon, and only the demo simulates neighbours."""
    assert "emoncms" not in users("gateway")
    assert "gateway" not in users("emoncms")
    assert users("stream") | users("inverters") <= {"__main__", "check"}
    assert users("demo") <= {"__main__", "demo"}


def test_the_packages_at_run_time_are_two() -> None:
    """The package imports only the standard library, python-dotenv, requests, and the urllib3 that requests needs."""
    others = set().union(*IMPORTS.values()) - TREES.keys() - sys.stdlib_module_names
    assert others == {"requests", "urllib3", "dotenv"}


def test_a_page_that_is_off_costs_no_import() -> None:
    """The daemon imports the live page only where LIVE_LISTEN is set."""
    tops = [node for node in ast.iter_child_nodes(TREES["stream"]) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in tops if node.module and node.module.startswith("envoy2emon.live")]


def test_nothing_sleeps() -> None:
    """Neither the package nor a test sleeps, because neither a stop nor an event could wake its thread."""
    for path in [*PACKAGE.rglob("*.py"), *(PROJECT / "tests").rglob("*.py")]:
        assert not re.search(r"\b(time\.|import )sleep\b", path.read_text("utf-8")), path
