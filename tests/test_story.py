"""Random sequences of events for a daemon and EmonCMS: whatever fails, no row is lost and energy is exact."""

import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.emoncms import delivery as module
from envoy2emon.rows import Row
from tests.inprocess import Failure
from tests.ledger import kwh_error
from tests.test_delivery import Site

FAILURES = st.builds(Failure, st.integers(0, 120), halfway=st.booleans(), later=st.booleans())


def reads(count: int) -> Callable[[Site], None]:
    """Return a step that takes so many readings."""
    return lambda site: site.read(count)


def attempts(site: Site) -> None:
    """Make one attempt, as the delivery thread does."""
    if len(site.backlog):
        site.time.now += site.delivery.attempt()


def fails(failure: Failure) -> Callable[[Site], None]:
    """Return a step after which one more post fails in this way."""
    return lambda site: site.emoncms.failures.append(failure)


def goes_away(site: Site) -> None:
    """Take EmonCMS away, or bring it back."""
    site.emoncms.away = not site.emoncms.away


def saves(site: Site) -> None:
    """Save the backlog if it is due, as the main thread does."""
    site.delivery.save()


def restarts(site: Site) -> None:
    """Stop the daemon cleanly, and start it again."""
    site.delivery.save(now=True)
    site.restart()


def slips(seconds: float) -> Callable[[Site], None]:
    """Return a step in which the computer's clock jumps, if EmonCMS has answered, so that its clock is used."""

    def step(site: Site) -> None:
        if site.emoncms.clock.ahead is not None:
            site.time.wrong += seconds

    return step


STEPS = st.one_of(
    st.integers(1, 130).map(reads),
    st.just(attempts),
    st.just(attempts),
    FAILURES.map(fails),
    st.just(goes_away),
    st.just(saves),
    st.just(restarts),
    st.floats(-1e5, 1e5).map(slips),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(-100_000, 100_000))
def test_every_story_ends_well(steps: list[Callable[[Site], None]], ahead: int) -> None:
    """No row is missing, each has one date, no date goes back, and `power to kWh` equals the integral.

    EmonCMS answers before the first restart, because rows saved before that are dated by the computer's clock (README).
    """
    logging.disable()
    with TemporaryDirectory() as folder, patch.object(module, "ASK_AGAIN_S", 0.0):
        site = Site(Path(folder), float(ahead))
        try:
            site.read()
            site.deliver()
            for step in steps:
                # A restart forgets EmonCMS's clock, so the computer's has to be right then.
                if step is restarts:
                    site.time.wrong = float(ahead)
                step(site)
            site.emoncms.away = False
            site.emoncms.failures.clear()
            site.read()
            site.deliver()
        finally:
            logging.disable(logging.NOTSET)
        rows = [Row(date, {"w": Decimal(number)}) for date, number in site.arrived]
        numbers = [int(row.inputs["w"]) for row in rows]
        assert set(numbers) == set(range(1, site.number + 1))
        assert len({(row.date, number) for row, number in zip(rows, numbers, strict=True)}) == site.number
        assert [row.date for row in rows] == sorted(row.date for row in rows)
        assert kwh_error(site.account) == 0
