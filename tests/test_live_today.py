"""Today's energy, for the page, and the files that keep it and the graph over a restart."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envoy2emon.live.today import GAP_S, SAVE_EVERY_S, Today, TodayFile, load_history, save_history

NOON = time.mktime((2026, 6, 21, 12, 0, 0, 0, 0, -1))
MIDNIGHT = NOON - 12 * 3600


@pytest.mark.parametrize(
    ("p", "c", "expected"),
    [
        (3600, 1200, {"produced": 3.6, "consumed": 1.2, "out": 2.4, "into": 0}),
        (1200, 3600, {"produced": 1.2, "consumed": 3.6, "out": 0, "into": 2.4}),
        (None, 3600, {"produced": 0, "consumed": 3.6, "out": 0, "into": 0}),
        (3600, None, {"produced": 3.6, "consumed": 0, "out": 0, "into": 0}),
    ],
)
def test_watts_become_kwh(p: int | None, c: int | None, expected: dict[str, float]) -> None:
    """An hour of constant watts is counted exactly; an unknown value counts as nothing."""
    today = Today().add(NOON, float("inf"), p, c)
    for second in range(1, 3601):
        today = today.add(NOON + second, 1.0, p, c)
    assert today.shown(NOON) == pytest.approx({**expected, "since": NOON})


def test_gaps_are_left_out() -> None:
    """A silence of more than ten seconds is left out; one of up to ten seconds is counted."""
    today = Today().add(NOON, float("inf"), 3600, 0)
    today = today.add(NOON + GAP_S, GAP_S, 3600, 0)
    today = today.add(NOON + 100, 90.0, 3600, 0)
    assert today.produced == pytest.approx(3600 * GAP_S / 3_600_000)


def test_a_day_begins_at_midnight() -> None:
    """At midnight counting starts from zero; a day that was read from its beginning has no `since`."""
    assert Today().shown(NOON) is None
    today = Today().add(MIDNIGHT - 2, float("inf"), 1000, 0).add(MIDNIGHT - 1, 1.0, 1000, 0)
    assert today.produced > 0
    assert today.shown(MIDNIGHT) is None  # before the first reading of the new day
    today = today.add(MIDNIGHT, 1.0, 1000, 500)
    nothing = {"produced": 0, "consumed": 0, "out": 0, "into": 0, "since": None}
    assert today.shown(MIDNIGHT) == nothing
    assert Today().add(NOON, 1.0, 1, 1).shown(NOON) == {**nothing, "since": NOON}


def test_a_restart_goes_on(tmp_path: Path) -> None:
    """Energy is saved every five minutes and at the end, not more often, in a file that only its owner may read."""
    file = TodayFile(tmp_path)
    today = Today().add(NOON, float("inf"), 1000, 0).add(NOON + 1, 1.0, 1000, 0)
    file.save(today, 0.0)
    saved = (tmp_path / "today.json").read_bytes()
    assert (tmp_path / "today.json").stat().st_mode & 0o077 == 0
    more = today.add(NOON + 2, 1.0, 1000, 0)
    file.save(more, SAVE_EVERY_S - 1)
    assert (tmp_path / "today.json").read_bytes() == saved
    file.save(more, float("inf"))
    assert TodayFile(tmp_path).load() == more


def test_nothing_read_is_nothing_to_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run without a reading writes no file; a missing file is not reported, one that cannot be used is."""
    TodayFile(tmp_path).save(Today(), float("inf"))
    assert not list(tmp_path.iterdir())
    assert TodayFile(tmp_path).load() == Today()
    assert caplog.text == ""
    (tmp_path / "elsewhere").write_text(json.dumps(GOOD))
    (tmp_path / "today.json").symlink_to("elsewhere")  # a link is not followed
    assert TodayFile(tmp_path).load() == Today()
    assert "today.json cannot be read: the page's energy of today starts from zero" in caplog.text


GOOD = {"day": "2026-06-21", "since": NOON, "produced": 1.0, "consumed": 2.0, "out": 0.5, "into": 1.5}
BAD = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.sampled_from(sorted(GOOD)), st.floats() | st.text(max_size=9) | st.none() | st.just(1e9)).map(
        lambda change: json.dumps({**GOOD, change[0]: change[1]}).encode()
    ),
)


@given(BAD)
@example(b"[" * 60_000)
def test_any_damage_is_a_day_or_a_new_one(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever the files contain, they load without an error, and the figures are finite."""
    folder = tmp_path_factory.mktemp("state")
    for name in ("today.json", "history.json"):
        (folder / name).write_bytes(content)
    today = TodayFile(folder).load()
    assert 0 <= today.produced < 10_000
    json.dumps(today.shown(NOON), allow_nan=False)
    json.dumps(today.add(NOON, 1.0, 1, 1).shown(NOON), allow_nan=False)
    assert load_history(folder, 900) == []


def test_history_of_the_last_minutes(tmp_path: Path) -> None:
    """Points that are too old or in the future are left out; the file is private."""
    now = time.time()
    points = [[now - 1000, 1, 1], [now - 10, 5, None], [now - 5, None, 7], [now + 99, 1, 1]]
    (tmp_path / "history.json").write_text(json.dumps(points))
    assert load_history(tmp_path, 900) == [(now - 10, 5, None), (now - 5, None, 7)]
    assert load_history(None, 900) == []
    save_history(tmp_path, [(now - 3, 1, 2)])
    assert load_history(tmp_path, 900) == [(now - 3, 1, 2)]
    assert (tmp_path / "history.json").stat().st_mode & 0o077 == 0
