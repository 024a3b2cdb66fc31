"""The benchmark goes on working; what it measures is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmark import TABLE, kept
from tests.daemons import PROJECT


def test_the_short_form_measures_every_figure(tmp_path: Path) -> None:
    """Each figure of the table is in the JSON, with a ratio where the reference has it too, and on the screen."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.benchmark", "--short", "--json", str(file)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(file.read_text())
    assert written["machine"].keys() == {"cpu", "cores", "python", "kernel"}
    assert all(written["machine"].values())
    figures = written["figures"]
    assert figures.keys() == TABLE.keys()
    assert all(isinstance(figure["ours"], float | int) for figure in figures.values())
    assert all(figures[name]["ratio"] > 0 for name in ("cpu", "latency_p50", "throughput", "first_post", "rss"))
    assert figures["connections"]["reference"] == 1
    assert all(label.split("{")[0] in done.stdout for label, _, _ in TABLE.values())


def test_limits() -> None:
    """A limit is the ratio's or the figure's, and bounds it from above or below."""
    assert kept("x <= 0.55", 9.0, 0.55)
    assert not kept("x <= 0.55", 0.1, 0.56)
    assert kept("x >= 3", 1.0, 3.0)
    assert kept("<= 4", 4.0, 9.0)
    assert not kept("<= 0", 0.1, None)
    assert not kept("x <= 1", 0.1, None)
