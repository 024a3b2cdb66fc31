"""The stand-in for EmonCMS as a server: its connections and its faults, over real sockets."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import requests

from envoy2emon.demo.emoncms import (
    PHP_DOWN,
    Answers,
    AnswersLate,
    Cuts,
    Dies,
    HoldsUp,
    StandInEmonCMS,
)
from tests.emoncms import bulk, client

ROWS = [[-2, "n", {"a": 1}], [-1, "n", {"a": 2}], [0, "n", {"a": 3}]]


@pytest.fixture
def later() -> Iterator[ThreadPoolExecutor]:
    """Return a pool of threads in which to ask."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.mark.parametrize("applied", [0, 2, None])
def test_bad_answers(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A fault answers one post, after so many of its rows were applied; the next post works again."""
    emoncms.fail_next(Answers(200, "<b>Fatal error</b>", applied))
    assert client(emoncms).ask("version") == (200, "11.16.8")
    assert bulk(emoncms, ROWS) == (200, "<b>Fatal error</b>")
    assert len(emoncms.rows) == (3 if applied is None else applied)
    assert bulk(emoncms, ROWS) == (200, "ok")


@pytest.mark.parametrize("applied", [0, None])
def test_cut(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A cut ends the connection without an answer, before or after the rows were applied."""
    emoncms.fail_next(Cuts(applied))
    with pytest.raises(requests.ConnectionError):
        bulk(emoncms, ROWS)
    assert len(emoncms.rows) == (3 if applied is None else 0)


def test_held_up(emoncms: StandInEmonCMS, later: ThreadPoolExecutor) -> None:
    """A post with ages that is held up is dated when EmonCMS reads it; one with its own dates keeps them."""
    emoncms.fail_next(HoldsUp(), HoldsUp())
    posts = [later.submit(bulk, emoncms, ROWS), later.submit(bulk, emoncms, [[50, "n", {"b": 1}]], time=0)]
    emoncms.wait_for(lambda: emoncms.requests == 2)
    before, emoncms.clock_offset = emoncms.now(), 3600
    assert client(emoncms).ask("version")[0] == 200  # only posts are held
    assert not emoncms.rows
    _release(emoncms, posts)
    dates = {name: row.time for row in emoncms.rows for name in row.inputs}
    assert dates["b"] == 50
    assert abs(dates["a"] - before - 3600) < 10


@pytest.mark.parametrize(("fault", "before"), [(HoldsUp(), 0), (AnswersLate(), 3)])
def test_a_client_that_leaves_stops_nothing(emoncms: StandInEmonCMS, fault: HoldsUp | AnswersLate, before: int) -> None:
    """A post is applied once, by release() at the latest, whether its client waits or not."""
    emoncms.fail_next(fault)
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{emoncms.url}/input/bulk?sentat=0&apikey={emoncms.key}", {"data": json.dumps(ROWS)}, timeout=0.1
        )
    assert len(emoncms.rows) == before
    emoncms.release()
    emoncms.wait_for(lambda: len(emoncms.rows) == 3)
    assert bulk(emoncms, ROWS) == (200, "ok")
    assert len(emoncms.rows) == 6


def test_death_between_inputs_and_processes(emoncms: StandInEmonCMS) -> None:
    """The row in which PHP dies is shown, but its energy is counted only when it is sent again with the same date."""
    rows = [[date, "n", {"a": 3600}] for date in (100, 110, 120, 130)]
    emoncms.fail_next(Dies(row=2))
    assert bulk(emoncms, rows, time=0) == (PHP_DOWN.status, PHP_DOWN.body)
    assert client(emoncms).read_inputs("n") == {"a": (120, 3600)}
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (2, 0.01)
    assert bulk(emoncms, rows[2:], time=0) == (200, "ok")
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (4, 0.03)


def _release(emoncms: StandInEmonCMS, posts: "list[Future[tuple[int, str]]]") -> None:
    """Release until all is answered, because a request is counted a moment before it is held."""
    while not all(post.done() for post in posts):
        emoncms.release()
    assert [post.result() for post in posts] == [(200, "ok")] * len(posts)
