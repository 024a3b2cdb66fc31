"""Who delivers, on real sockets: the thread that brings rows, and the delivery thread.

The law of this file: whoever brings rows waits for nothing, and what nobody comes along for is the delivery thread's.
"""

import logging
import select
import time
from collections.abc import Iterator
from decimal import Decimal
from threading import Thread

import pytest

from envoy2emon.emoncms import courier
from envoy2emon.emoncms import exchange
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.courier import ANSWER_WAITS_S, IDLE_S, Courier
from envoy2emon.emoncms.dates import ByAge
from envoy2emon.emoncms.delivery import MOST_IN_PASSING, Delivery
from envoy2emon.emoncms.client import EmonCMS
from envoy2emon.rows import Row
from envoy2emon.settings import Secret
from envoy2emon.emoncms.spool import Spool
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.conftest import until


class Line:
    """A courier at work between a backlog in memory and a stand-in for EmonCMS; `steps` counts the thread's."""

    def __init__(self, emoncms: StandInEmonCMS) -> None:
        self.emoncms = emoncms
        self.steps = self.number = 0
        self.backlog = Backlog(86400, Spool(None, "boot", lambda: 0.0), time.monotonic)
        self.client = EmonCMS(emoncms.url, Secret(emoncms.key))
        delivery = Delivery(self.backlog, self.client, ByAge(), time.monotonic, lambda: 0.0)
        self.courier = Courier(self.backlog, delivery, time.monotonic)
        Thread(target=self.courier.run, args=[self._turned], daemon=True).start()

    def _turned(self) -> None:
        self.steps += 1

    def bring(self, count: int = 1) -> None:
        """Bring new rows at once."""
        rows = [Row(time.monotonic(), "Envoy-S", {"a": Decimal(self.number + n)}) for n in range(count)]
        self.number += count
        self.courier.take(rows)

    def arrive(self) -> None:
        """Wait until all has arrived, and see that it did once and in order."""
        self.emoncms.wait_for(lambda: len(self.emoncms.rows) >= self.number, 10)
        assert [int(row.inputs["a"]) for row in self.emoncms.rows] == list(range(self.number))


@pytest.fixture
def line(emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """Put a courier to work, with a connection that is in use, on however busy a machine."""
    monkeypatch.setattr(exchange, "BUSY_S", 60.0)
    emoncms.idle_timeout = 60.0
    one = Line(emoncms)
    one.bring()
    until(lambda: len(one.backlog) == 0)
    yield one
    emoncms.release()
    one.courier.finish(0.5)


def test_rows_are_posted_by_whoever_brings_them(line: Line) -> None:
    """As long as EmonCMS answers before the next row comes the delivery thread sleeps, and one connection is enough."""
    before = line.steps
    for _ in range(50):
        line.bring()
        sock = line.client._exchange._connection.sock  # noqa: SLF001 - who else could know that the answer has come
        assert select.select([sock], [], [], 10)[0]
    assert line.steps == before
    line.arrive()
    assert line.emoncms.connections == 1


def test_whoever_brings_rows_does_not_wait_for_emoncms(line: Line) -> None:
    """While EmonCMS is silent rows are taken at once; then all arrive, those that had arrived not again."""
    line.emoncms.fault = Fault("hang", applied=None)
    for _ in range(20):
        line.bring()
    assert len(line.backlog) == 20
    line.emoncms.fault = None
    line.emoncms.release()
    line.arrive()


def test_many_rows_are_for_the_delivery_thread(line: Line) -> None:
    """What may not fit into a socket's buffer could take waiting."""
    before = line.steps
    line.bring(MOST_IN_PASSING + 1)
    line.arrive()
    assert line.steps > before


@pytest.mark.parametrize("answer", ["ok", (500, ""), "cut"])
def test_the_last_answer_is_taken_though_no_row_follows(
    line: Line, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """A look at what waits finds it, and what went wrong is set right."""
    monkeypatch.setattr(courier, "ANSWER_WAITS_S", 0.1)
    if answer != "ok":
        line.emoncms.fail_next(Fault(answer))  # type: ignore[arg-type]
    line.bring()

    def taken() -> bool:
        line.courier.look()
        return len(line.backlog) == 0

    until(taken)
    line.arrive()


def test_a_wrong_answer_is_left_to_the_delivery_thread(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever brings the next row finds that the last one failed: the rules of an outage begin, and nothing is lost."""
    caplog.set_level(logging.INFO)
    line.emoncms.fail_next(Fault((502, "")))
    for _ in range(3):
        line.bring()
    line.arrive()
    until(lambda: len(caplog.messages) == 2)
    assert "answers 502" in caplog.messages[0]
    assert caplog.messages[1].startswith("EmonCMS: back after")


def test_at_the_end_the_last_answer_is_taken(line: Line) -> None:
    """A post that is under way ends in peace; none begins after it."""
    line.bring()
    line.courier.finish(10)
    assert len(line.backlog) == 0
    line.bring()
    assert len(line.backlog) == 1


def test_the_end_does_not_wait_for_ever(line: Line) -> None:
    """EmonCMS is silent: the end comes in time, and what is not acknowledged is kept."""
    line.emoncms.fault = Fault("hang")
    line.bring()
    before = time.monotonic()
    line.courier.finish(0.3)
    assert 0.29 < time.monotonic() - before < 5
    assert len(line.backlog) == 1


def test_an_idle_thread_shows_that_it_lives() -> None:
    """The watchdog is fed by loops that turn; a pause may not be long."""
    assert ANSWER_WAITS_S < IDLE_S <= 60
