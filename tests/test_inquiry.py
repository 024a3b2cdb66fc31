"""What became of a post whose answer got lost."""

from decimal import Decimal

import pytest

from envoy2emon.emoncms.arrived import Arrived
from envoy2emon.emoncms.dates import ByDate, Flight
from envoy2emon.rows import Row
from envoy2emon.emoncms.inquiry import Inquiry

ROWS = [Row(1000.0 + number, "node", {"watts": Decimal(number)}) for number in range(4)]
SENT = Flight(4, 50.0)


def showing(number: int) -> Arrived:
    """Return what EmonCMS shows after this row."""
    return Arrived({"watts": (1000 + number, float(number))}, 5000.0, 51.0, 51.0)


@pytest.fixture
def inquiry() -> Inquiry:
    """Return one that knows nothing."""
    return Inquiry(ByDate())


def test_all_applied(inquiry: Inquiry) -> None:
    """The last row is shown: there is nothing to wait for."""
    assert inquiry.applied(ROWS, SENT, showing(3)) == 4


def test_asks_once_more_while_it_goes_on(inquiry: Inquiry) -> None:
    """Less than all counts when it is shown twice; the newest of them goes again, for it may be half done."""
    assert inquiry.applied(ROWS, SENT, showing(0)) is None
    assert inquiry.applied(ROWS, SENT, showing(2)) is None
    assert inquiry.applied(ROWS, SENT, showing(2)) == 2


def test_each_post_is_asked_for_anew(inquiry: Inquiry) -> None:
    """One answer about the post before and one about this are not two."""
    assert inquiry.applied(ROWS, SENT, showing(2)) is None
    inquiry.sent()
    assert inquiry.applied(ROWS, SENT, showing(2)) is None


def test_one_row_or_an_answer_in_words_needs_one_question(inquiry: Inquiry) -> None:
    """A row alone is the newest; and EmonCMS is through with what it has answered in words."""
    assert inquiry.applied(ROWS[:1], Flight(1, 50.0), showing(3)) == 0
    assert Inquiry(ByDate()).applied(ROWS, Flight(4, 50.0, answered=True), showing(1)) == 2


def test_what_an_answered_post_left_as_it_was_has_arrived(inquiry: Inquiry) -> None:
    """A row that went again is shown as before; the rest of its post was rejected: it does not go for a third time."""
    assert inquiry.applied(ROWS, SENT, showing(0)) is None
    assert inquiry.applied(ROWS, SENT, showing(0)) == 0
    inquiry.sent()
    assert inquiry.applied(ROWS, Flight(4, 52.0, answered=True), showing(0)) == 1


def test_what_was_shown_before_is_no_proof(inquiry: Inquiry) -> None:
    """What a question showed tells nothing of a post after it, until a post is acknowledged."""
    assert inquiry.applied(ROWS[:1], Flight(1, 50.0), showing(2)) == 0
    inquiry.sent()
    assert inquiry.applied(ROWS[2:3], Flight(2, 52.0), showing(2)) == 0
    inquiry.sent()
    inquiry.acknowledged(ROWS[:1])
    assert inquiry.applied(ROWS[2:3], Flight(3, 54.0), showing(2)) == 1
