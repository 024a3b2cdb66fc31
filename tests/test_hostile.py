"""Answers that are spoilt at random, on the gateway's side and on EmonCMS's, end no daemon process."""

import pytest

from tests import fuzz


def test_spoilt_answers_end_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes cut, doubled and invented on both sides: no traceback, no exit, no date that goes back, and rows go on."""
    assert fuzz.run(0.15, seed=1) == 0, capsys.readouterr().out
