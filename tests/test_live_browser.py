"""The live page in a real browser, headless, and its script before a parser that knows no more than ECMAScript 5."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from calmjs.parse import es5  # type: ignore[import-untyped]

from envoy2emon.live import server as live
from envoy2emon.live.server import Live
from envoy2emon.gateway.readings import MeterReading
from tests.daemons import skip_or_fail
from tests.readme import section

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HTML = Path(live.__file__).with_name("live.html").read_text(encoding="utf-8")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
GREEN, RED, WHITE = "rgb(65, 217, 107)", "rgb(255, 91, 80)", "rgb(255, 255, 255)"
# 14:32:30 on a device in Kolkata.
MOMENT = datetime(2026, 6, 1, 9, 2, 30, tzinfo=UTC)
# The colours met on the way down a column of the graph, each once: (r, g, b) by the parts of the page they belong to.
COLUMN = """(share) => {
  const canvas = document.getElementById("graph"), x = Math.round(canvas.width * share);
  const data = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height).data, names = [];
  const known = {"255,194,51": "amber", "74,56,14": "amber area", "88,178,255": "blue", "23,54,82": "blue area"};
  for (let i = 0; i < data.length; i += 4) {
    const name = known[[data[i], data[i + 1], data[i + 2]].join()];
    if (name && names[names.length - 1] !== name) { names.push(name); }
  }
  return names;
}"""
# Whether all shown words lie within the window and no two of the given elements overlap.
FITS = """() => {
  const boxes = [...document.querySelectorAll(".name, .value, #graph")].map(element => {
    const range = document.createRange();
    range.selectNodeContents(element);
    return (element.id ? element : range).getBoundingClientRect();
  });
  const inside = boxes.every(b => b.left >= 0 && b.top >= 0 && b.right <= innerWidth && b.bottom <= innerHeight);
  return inside && boxes.every((a, i) => boxes.every((b, j) => i === j || a.right <= b.left || b.right <= a.left ||
    a.bottom <= b.top + 1 || b.bottom <= a.top + 1));
}"""

Visit = Callable[..., "Page"]


def reading(at: float, p: int | None, c: int) -> MeterReading:
    """Build a reading of one phase; None leaves production out."""
    given = {"production": p, "total-consumption": c}
    return MeterReading(at, {name: {"ph-a": {"p": Decimal(w)}} for name, w in given.items() if w is not None})


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Start Debian's Chromium; without one the test is skipped, or fails under REQUIRE_BROWSER=1."""
    chromium = shutil.which("chromium")
    if not chromium:
        skip_or_fail("chromium is not installed", "REQUIRE_BROWSER")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - no wheel for 32-bit boards
    except ImportError:
        skip_or_fail("playwright is not installed", "REQUIRE_BROWSER")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def clock() -> list[float]:
    """Give the server's clock: its only entry is the time."""
    return [5000.0]


@pytest.fixture
def server(clock: list[float]) -> Iterator[Live]:
    """Serve the page."""
    server = Live("127.0.0.1:0", None, lambda: clock[0])
    server.start()
    yield server
    server.close()


@pytest.fixture
def visit(browser: "Browser", server: Live) -> Iterator[Visit]:
    """Open the page in a window of the given size, its clock ours; a complaint in its console is a failure."""
    complaints = []
    with ExitStack() as stack:

        def load(width: int = 1024, height: int = 768, events: int | None = None) -> "Page":
            size = {"width": width, "height": height}
            context = browser.new_context(viewport=size, timezone_id="Asia/Kolkata")  # type: ignore[arg-type]
            stack.callback(context.close)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            page.clock.install(time=MOMENT)
            if events:
                page.route("**/events", lambda route: route.fulfill(status=events), times=1)
            page.goto(f"http://127.0.0.1:{server.port}/")
            return page

        yield load
    # A lost connection and a 503 are what tests ask for; the other is about how test_graph looks.
    expected = ("ERR_", "status of 503", "getImageData")
    assert [text for text in complaints if not any(words in text for words in expected)] == []


def expect(page: "Page", selector: str, words: str) -> None:
    """Wait until the element reads so."""
    from playwright.sync_api import expect  # noqa: PLC0415 - the same

    expect(page.locator(selector)).to_have_text(words, timeout=20_000)


def hidden(page: "Page", selector: str) -> bool:
    """Tell whether an element cannot be seen."""
    return page.locator(selector).is_hidden()


def colour(page: "Page", selector: str) -> str:
    """Return an element's colour as the browser shows it."""
    return str(page.locator(selector).evaluate("element => getComputedStyle(element).color"))


@pytest.mark.parametrize(
    ("p", "c", "words", "side", "shade"),
    [
        (6540, 4426, ("6540W", "4426W", "\u22122114W"), "to the grid", GREEN),
        (0, 12345, ("0W", "12345W", "12345W"), "from the grid", RED),
        (500, 500, ("500W", "500W", "0W"), "", WHITE),
        (None, 900, ("\u2013W", "900W", "\u2013W"), "", WHITE),
    ],
)
def test_figures(
    visit: Visit, server: Live, p: int | None, c: int, words: tuple[str, str, str], side: str, shade: str
) -> None:
    """Three figures; nett is green while generating and red while consuming, and says so in words as well."""
    page = visit()
    expect(page, "#words", "No readings yet")
    server.show(reading(5000, p, c))
    for name, text in zip(("generating", "consuming", "nett"), words, strict=True):
        expect(page, f"#{name} .value", text)
    expect(page, "#nett .name", f"Nett {side}".strip())
    assert colour(page, "#nett .value") == shade
    assert hidden(page, "#notice")


def test_graph(visit: Visit, server: Live) -> None:
    """The graph is full at once: 15 minutes of both lines, the newest at the right, a gap where nothing was read."""
    for age in range(899, -1, -1):
        if not 300 < age < 500:
            server.show(reading(5000 - age, 4000, 2000 if age > 300 else 6000))
    page = visit()
    expect(page, "#consuming .value", "6000W")
    page.clock.run_for(1000)
    assert page.evaluate(COLUMN, 0.3) == ["amber", "amber area", "blue", "blue area"]
    assert page.evaluate(COLUMN, 0.6) == []
    assert page.evaluate(COLUMN, 0.9) == ["blue", "blue area", "amber", "blue area"]
    assert page.evaluate(COLUMN, 0.02) == []


def test_burst_is_drawn_as_measured(visit: Visit, server: Live) -> None:
    """Readings that a gateway sends at once stand a second apart in the graph."""
    page = visit()
    expect(page, "#words", "No readings yet")
    for age in range(400, -1, -1):
        server.show(reading(5000 - age, 4000, 2000))
    expect(page, "#consuming .value", "2000W")
    page.clock.run_for(1000)
    assert page.evaluate(COLUMN, 0.7) == ["amber", "amber area", "blue", "blue area"]
    assert page.evaluate(COLUMN, 0.4) == []


@pytest.mark.parametrize("wide", [(480, 320), (1024, 768), (1920, 1080)])
def test_sizes(visit: Visit, server: Live, wide: tuple[int, int]) -> None:
    """Phone, tablet and desktop, upright or not: all is in view, nothing overlaps, and turning is followed."""
    server.show(reading(5000, 6540, 26540))
    page = visit(*wide)
    expect(page, "#nett .value", "20000W")
    page.clock.run_for(1000)
    assert page.evaluate(FITS)
    page.set_viewport_size({"width": wide[1], "height": wide[0]})
    page.clock.run_for(1000)
    assert page.evaluate(FITS)
    size = float(str(page.locator("#nett .value").evaluate("e => getComputedStyle(e).fontSize")).removesuffix("px"))
    assert size > wide[1] / 7


def test_stale(visit: Visit, server: Live, clock: list[float]) -> None:
    """When readings stop, since when takes the place of stale figures, until the next reading."""
    page = visit()
    server.show(reading(5000, 6540, 4426))
    expect(page, "#generating .value", "6540W")
    page.clock.run_for(10_000)
    assert hidden(page, "#notice")
    page.clock.run_for(10_000)
    expect(page, "#words", "No readings since 14:32")
    expect(page, "#reason", "The Envoy is silent.")
    assert hidden(page, "#generating")
    assert hidden(page, "#nett")
    clock[0] += 20
    server.show(reading(clock[0], 700, 100))
    expect(page, "#generating .value", "700W")
    assert hidden(page, "#notice")


@pytest.mark.parametrize(("silence", "since"), [(20 * 60, "14:12"), (15 * 3600, "Sun May 31, 23:32")])
def test_stale_from_the_start(visit: Visit, server: Live, clock: list[float], silence: int, since: str) -> None:
    """A page that is opened during the silence knows since when as well."""
    server.show(reading(5000, 6540, 4426))
    before = visit()
    expect(before, "#generating .value", "6540W")
    clock[0] += silence
    page = visit()
    expect(page, "#words", f"No readings since {since}")
    assert hidden(page, "#generating")


def test_restart(visit: Visit, server: Live) -> None:
    """The page outlives the daemon: it says so, comes back by itself, and keeps what it has drawn."""
    for age in range(899, -1, -1):
        server.show(reading(5000 - age, 4000, 2000))
    page = visit()
    expect(page, "#generating .value", "4000W")
    server.close()
    page.clock.run_for(110_000)  # the burst above has earned this gateway patience
    expect(page, "#words", "No readings since 14:32")
    expect(page, "#reason", "No connection to envoy2emon, trying again.")
    again = Live(f"127.0.0.1:{server.port}", None, lambda: 7.0)
    again.start()
    again.show(reading(7, 300, 100))
    deadline = time.monotonic() + 30
    while hidden(page, "#generating") and time.monotonic() < deadline:
        page.clock.run_for(1000)
    expect(page, "#generating .value", "300W")
    assert page.evaluate(COLUMN, 0.5) == ["amber", "amber area", "blue", "blue area"]
    again.close()


def test_watchdog(visit: Visit, server: Live) -> None:
    """A connection on which nothing comes any more, not even a sign of life, is opened anew."""
    server.show(reading(5000, 4000, 2000))
    page = visit()
    expect(page, "#generating .value", "4000W")
    page.clock.run_for(38_000)
    with page.expect_request("**/events"):
        page.clock.run_for(4_000)


def test_full_house(visit: Visit, server: Live) -> None:
    """A page that was turned away with 503 asks again."""
    server.show(reading(5000, 4000, 2000))
    page = visit(events=503)
    expect(page, "#words", "Connecting")
    page.clock.run_for(7_000)
    expect(page, "#generating .value", "4000W")


def test_from_another_origin(browser: "Browser", server: Live) -> None:
    """A dashboard that another server gave out reads /events."""
    server.show(reading(5000, 6540, 4426))
    other = Live("127.0.0.1:0", None)
    other.start()
    context = browser.new_context(bypass_csp=True)  # its policy is the page's own affair, not the other server's
    page = context.new_page()
    page.goto(f"http://localhost:{other.port}/nothing")
    page.evaluate(
        """url => new EventSource(url).addEventListener("solar_data", event => {
          document.body.textContent = JSON.parse(event.data).n + " W";
        })""",
        f"http://127.0.0.1:{server.port}/events",
    )
    expect(page, "body", "-2114 W")
    context.close()
    other.close()


def test_the_readmes_example(browser: "Browser", server: Live) -> None:
    """The README's lines, in a page of one's own, show what it says that they show: `n`."""
    (example,) = re.findall(r"```html\n(.*?)```", section("The live page"), re.DOTALL)
    promised = re.findall(r'\{"p":\d+,"c":\d+,"n":-?\d+\}', example)
    server.show(reading(5000, 6540, 4426))
    context = browser.new_context()
    page = context.new_page()
    page.set_content(example.replace("YOUR-PI:8080", f"127.0.0.1:{server.port}"))
    expect(page, "p", "Nett: -2114 W")
    assert promised == [json.dumps(live.figures(reading(5000, 6540, 4426)), separators=(",", ":"))]
    context.close()


def test_script_is_ecmascript_5() -> None:
    """The script parses as ECMAScript 5 and calls nothing that Safari of iOS 5.1.1 lacks."""
    (script,) = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
    es5(script)
    code = re.sub(r"//.*", "", script)
    later = r"fetch\(|Promise|\.bind\(|requestAnimationFrame|WebSocket|\.closest\(|\.remove\(|\.append\(|localStorage"
    assert not re.search(later, code)


def test_style_is_old() -> None:
    """The style uses nothing that Safari of iOS 5.1.1 lacks, and nothing comes from elsewhere."""
    (style,) = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)
    assert not re.search(r"flex|grid|calc\(|var\(|\d(vw|vh|rem|vmin)\b|@font-face|@import|url\(", style)
    assert not re.search(r"(src|href)=|https?:", HTML)
