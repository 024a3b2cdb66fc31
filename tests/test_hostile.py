"""What a neighbour sends ends no daemon: answers that are spoilt at random, on processes."""

import pytest

from tests import fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_spoilt_answers_end_no_daemon(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes flipped, cut, doubled and invented on both sides: no traceback, no exit, no date back, and rows go on."""
    assert fuzz.run(0.15, seed) == 0, capsys.readouterr().out
