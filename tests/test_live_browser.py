"""The live page in a headless browser, its script in a strict ECMAScript 5 parser, and both in an old engine."""

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from calmjs.parse import es5  # type: ignore[import-untyped]

from envoy2emon.gateway.readings import MeterReading
from envoy2emon.live import server as live
from envoy2emon.live.server import Live
from tests.conftest import until
from tests.daemons import skip_or_fail
from tests.readme import section

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PAGE = Path(live.__file__).with_name("page.html")
HTML = PAGE.read_text("utf-8")
SIZES = [(320, 480), (390, 844), (844, 390), (768, 1024), (1024, 768), (1280, 800), (1920, 1080), (3840, 2160)]
POWERS = [0, 300, 4200, 10_838, 123_456]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
OLD_ENGINE = "wkhtmltoimage --debug-javascript --javascript-delay 1500 --width 1024 --height 768 -f bmp"
# This script runs before the page's own. It lets the test fire events, set the clock and make it tick, and see errors
# and the words that are drawn into the graph, with their boxes and colours.
BEFORE = """
window.listeners = {}; window.errors = []; window.offset = 0; window.opened = 0;
window.onerror = function (message) { window.errors.push(message); };
window.EventSource = function () { this.readyState = 1; window.source = this; window.opened += 1; };
EventSource.prototype.addEventListener = function (name, call) { window.listeners[name] = call; };
EventSource.prototype.close = function () {};
var getTime = Date.prototype.getTime;
Date.prototype.getTime = function () { return getTime.call(this) + window.offset; };
window.setInterval = function (call) { window.tick = call; };
window.wait = function (seconds) {
  for (var second = 0; second < seconds; second += 1) { window.offset += 1000; window.tick(); }
};
window.fire = function (name, data, id) {
  window.listeners[name]({ data: JSON.stringify(data), lastEventId: String(id || "") });
};
window.written = [];
var pen = CanvasRenderingContext2D.prototype, clear = pen.clearRect, write = pen.fillText;
pen.clearRect = function (x, y, w, h) { window.written = []; clear.call(this, x, y, w, h); };
pen.fillText = function (words, x, y) {
  var width = this.measureText(words).width, size = parseInt(this.font, 10);
  var left = this.textAlign === "right" ? x - width : x - width / 2;
  window.written.push([words, left, y - 0.75 * size, left + width, y, this.fillStyle]);
  write.call(this, words, x, y);
};
"""
# Rectangles of all words on the page, and of the graph.
BOXES = """
var all = document.querySelectorAll(".name, .value, .today, #words, #reason, #graph");
var boxes = [].map.call(all, function (element) {
  var range = document.createRange();
  range.selectNodeContents(element);
  var box = (element.id === "graph" ? element : range).getBoundingClientRect();
  return [element.className || element.id, box.left, box.top, box.right, box.bottom];
}).filter(function (box) { return box[3] > box[1] && box[4] > box[2]; });
"""
TODAY = {"produced": 18.44, "consumed": 9.21, "out": 12.2, "into": 3.0, "since": None}
# The server's clock is at 5000 s.
STATE = {"now": 5000, "last": 4999, "patience": 15, "page": "one", "run": 1, "today": TODAY}
OWN, OUT, IN = (128, 90, 8), (17, 106, 84), (112, 24, 24)


@pytest.fixture(scope="module")
def chrome() -> Iterator["Chrome"]:
    """Start Debian's Chromium; without one the test is skipped, or fails under REQUIRE_BROWSER=1."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        skip_or_fail("Debian's chromium and chromium-driver are not installed", "REQUIRE_BROWSER")
    from selenium import webdriver  # noqa: PLC0415 - only where there is a browser

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


class Wall:
    """The page in the browser, with events and a clock that the test controls."""

    def __init__(self, chrome: "Chrome") -> None:
        self.chrome = chrome
        chrome.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
        self._script = chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BEFORE})
        self.size(1024, 768)
        chrome.get(PAGE.as_uri())
        until(lambda: bool(self("return !!window.tick")))

    def __call__(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the script returns
        """Run a script in the page."""
        return self.chrome.execute_script(script, *arguments)

    def close(self) -> None:
        """Remove the script, and check that the page had no errors."""
        errors = self("return window.errors")
        self.chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", self._script)
        assert errors == []

    def size(self, width: int, height: int) -> None:
        """Set the size of the window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def history(self, points: list[list[Any]] | None = None, **changes: object) -> None:
        """Send the first event of a connection; the server's clock is at 5000 s."""
        self("fire('history', arguments[0])", STATE | {"points": points or []} | changes)
        self("tick()")

    def alive(self, **changes: object) -> None:
        """Send the event that comes every 15 s."""
        self("fire('alive', arguments[0])", STATE | changes)

    def wait(self, seconds: int) -> None:
        """Let so many seconds pass on the browser's clock."""
        self("wait(arguments[0])", seconds)

    def show(self, p: int | None, c: int | None, at: int = 5000) -> None:
        """Send a reading."""
        n = None if p is None or c is None else c - p
        self("fire('solar_data', arguments[0], arguments[1])", {"p": p, "c": c, "n": n}, at)

    def text(self, selector: str) -> str:
        """Return an element's text as it is shown, or nothing if it is hidden."""
        found = self("var e = document.querySelector(arguments[0]); return e.offsetWidth ? e.innerText : ''", selector)
        return str(found).strip()

    def colour(self, selector: str) -> tuple[int, int, int]:
        """Return an element's colour."""
        found = self("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        red, green, blue = map(int, re.findall(r"\d+", found)[:3])
        return red, green, blue

    def column(self, share: float) -> list[str]:
        """Return the fills of a column of the graph from top to bottom, each run of one fill once."""
        data = self(
            "var g = document.getElementById('graph'), x = Math.round(g.width * arguments[0]);"
            "return [].slice.call(g.getContext('2d').getImageData(x, 0, 1, g.height).data);",
            share,
        )
        known = {OWN: "own", OUT: "out", IN: "in"}
        names: list[str] = []
        for place in range(0, len(data), 4):
            name = known.get(tuple(data[place : place + 3]))
            if name and names[-1:] != [name]:
                names.append(name)
        return names


@pytest.fixture
def wall(chrome: "Chrome") -> Iterator[Wall]:
    """Open the page."""
    made = Wall(chrome)
    yield made
    made.close()


def apart(boxes: list[list[Any]], width: float, height: float) -> None:
    """Assert that all words are within this space and do not overlap."""
    for number, (name, left, top, right, bottom, *_) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, (name, left, top, right, bottom)  # noqa: PT018
        for other, left2, top2, right2, bottom2, *_rest in boxes[number + 1 :]:
            assert right <= left2 or right2 <= left or bottom <= top2 + 1 or bottom2 <= top + 1, (name, other)


def fits(wall: Wall, width: int, height: int) -> None:
    """Assert that all words are on the screen, the graph's words are in the graph, and none overlap."""
    boxes, written, graph = wall(BOXES + "return [boxes, window.written, [graph.width, graph.height]]")
    apart(boxes, width, height)
    apart(written, *graph)
    assert len(boxes) >= 2
    assert len(written) >= 5


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_fits(wall: Wall, width: int, height: int) -> None:
    """At each size, as powers in both directions grow without a resize, no text overlaps or leaves the screen."""
    wall.size(width, height)
    until(lambda: bool(wall("return innerWidth === arguments[0]", width)))
    wall.history()
    for power in POWERS:
        for p, c in ((power, 0), (0, power), (power, power // 2)):
            wall.show(p, c)
            fits(wall, width, height)
            wall("tick()")
            fits(wall, width, height)
    wall.history(today={**TODAY, "produced": 123.4, "consumed": 234.5, "out": 123.4, "into": 99.9, "since": 1})
    wall.show(123_456, 1)
    fits(wall, width, height)
    wall.show(None, 10_838)
    fits(wall, width, height)
    wall("window.offset += 90000000")  # yesterday, in words
    wall.wait(9)
    assert "No readings since" in wall.text("#words")
    fits(wall, width, height)
    sizes = wall("return [].map.call(document.querySelectorAll('.value'), e => parseInt(e.style.fontSize))")
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("p", "c", "label", "figure", "kind"),
    [
        (1867, 841, "Nett → to the grid", "1026W", "box out"),
        (841, 1867, "Nett ← from the grid", "1026W", "box in"),
        (500, 500, "Nett", "0W", "box"),
    ],
)
def test_nett_is_what_the_page_shows(wall: Wall, p: int, c: int, label: str, figure: str, kind: str) -> None:
    """The third figure is the difference of the two shown, without a sign, and its label gives the direction."""
    wall.history()
    wall.show(p, c)
    assert (wall.text("#nett .name"), wall.text("#nett .value").replace("\n", "")) == (label, figure)
    assert wall("return document.getElementById('nett').className") == kind
    assert wall("return document.querySelector('#nett .name').style.opacity") in ("", "1")


def test_today_stands_under_each_figure(wall: Wall) -> None:
    """Under each figure is today's energy, with its start if the day is incomplete, or why the figure is missing."""
    wall.history()
    wall.show(4000, 1000)
    shown = [wall.text(f"#{name} .today") for name in ("generating", "consuming", "nett")]
    assert shown == ["18.4 kWh today", "9.2 kWh", "12.2 out, 3.0 in"]
    wall.history(today={**TODAY, "since": 1_780_000_000})
    wall.show(None, 1000)
    assert wall.text("#generating .value") == "\N{EN DASH}"
    assert wall.text("#generating .today") == "no production measured"
    assert wall.text("#consuming .today") == "9.2 kWh since 01:56"
    assert wall.text("#nett .value") == "\N{EN DASH}"


def test_the_graph_shows_where_the_power_goes(wall: Wall) -> None:
    """Own use is filled under both lines, what goes to the grid or comes from it above, and nothing where unknown."""
    points: list[list[Any]] = [[second, 4000, 1000] for second in range(4200, 4400)]
    points += [[second, 4000, None] for second in range(4400, 4600)]
    points += [[second, None, 1000] for second in range(4600, 4700)]
    points += [[second, 1000, 4000] for second in range(4850, 5000)]  # before that, nothing was read
    wall.history(points)
    wall.show(1000, 4000)
    assert wall.column(0.25) == ["out", "own"]
    assert wall.column(0.45) == wall.column(0.65) == wall.column(0.75) == []
    assert wall.column(0.9) == ["in", "own"]


@pytest.mark.parametrize("most", [300, 940, 1300, 2600, 4200, 6600, 11_000, 83_000, 123_456])
def test_the_scale_is_round_and_wastes_little(wall: Wall, most: int) -> None:
    """Ticks are 1, 2 or 5 times a power of ten, written in full, and the graph uses most of its height."""
    wall.history([[second, most, 0] for second in range(4200, 5000)])
    labels = [words for words, *_ in wall("return window.written") if words == "0" or "W" in words]
    values = sorted(float(word.split()[0]) * (1000 if "kW" in word else 1) for word in labels)
    (step,) = {round(later - earlier, 6) for earlier, later in pairwise(values)}
    assert f"{step:e}"[0] in "125"
    assert f"{step:e}"[2:8] == "000000"
    assert 3 <= len(values) <= 8
    pixels = wall(
        "var data = graph.getContext('2d').getImageData(graph.width >> 1, 0, 1, graph.height).data, first = 0;"
        "while (data[4 * first] + data[4 * first + 1] < 100) { first += 1; } return [first, graph.height];"
    )
    if most >= 500:
        assert pixels[0] < 0.25 * pixels[1]


def luminance(colour: Iterable[float]) -> float:
    """Return a colour's relative luminance (WCAG 2)."""
    return float(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)))


def linear(colour: Iterable[float]) -> list[float]:
    """Return red, green and blue, each 0 to 255 in sRGB, as linear light from 0 to 1."""
    parts = [part / 255 for part in colour]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: Iterable[float], other: Iterable[float]) -> float:
    """Return the contrast of two colours (WCAG 2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast(wall: Wall) -> None:
    """All words have a contrast of at least 4.5:1 against the black behind them, lines 3:1 against fills (WCAG 2)."""
    wall.history()
    for p, c in ((100, 2000), (2000, 100), (None, 100)):
        wall.show(p, c)
        for box in ("#generating", "#consuming", "#nett"):
            for selector in (".name", ".value", ".today"):
                assert contrast(wall.colour(f"{box} {selector}"), (0, 0, 0)) >= 4.5
    for selector in ("#words", "#reason", "#nett .name"):
        assert contrast(wall.colour(selector), (0, 0, 0)) >= 4.5
        assert wall("return getComputedStyle(document.querySelector(arguments[0])).opacity", selector) == "1"
    for *_, colour in wall("return window.written"):
        assert contrast(bytes.fromhex(colour[1:]), (0, 0, 0)) >= 4.5
    for line in ("#generating", "#consuming"):
        assert all(contrast(wall.colour(line), fill) >= 3 for fill in (OWN, OUT, IN))


def test_a_deuteranope_tells_the_fills_apart() -> None:
    """The three fills differ for an eye that does not see green, too (Machado et al. 2009; CIE 1976)."""

    def seen(colour: tuple[int, int, int]) -> list[float]:
        red, green, blue = linear(colour)
        light = (
            0.367322 * red + 0.860646 * green - 0.227968 * blue,
            0.280085 * red + 0.672501 * green + 0.047413 * blue,
            -0.011820 * red + 0.042940 * green + 0.968881 * blue,
        )
        red, green, blue = (max(part, 0) for part in light)
        x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
        y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
        x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
        return [116 * y - 16, 500 * (x - y), 200 * (y - z)]

    for one, other in combinations((OWN, OUT, IN), 2):
        assert math.dist(seen(one), seen(other)) > 20


def test_a_notice_says_what_is_known(wall: Wall) -> None:
    """The page says that no readings come when the server reports it, and that it is not connected after a silence."""
    assert (wall.text("#words"), wall.text("#reason")) == ("Connecting", "")
    wall.wait(6)
    assert wall.text("#reason") == "No connection to envoy2emon, trying again."
    wall.history(last=None)
    assert (wall.text("#words"), wall.text("#reason")) == (
        "No readings yet",
        "envoy2emon gets no readings from the gateway.",
    )
    wall.show(100, 200)
    assert wall.text("#words") == ""
    wall.wait(14)
    assert wall.text("#words") == ""
    wall.wait(3)
    assert wall.text("#words").startswith("No readings since ")
    assert wall.text("#reason") == ""  # the cause is not known yet
    assert wall.text("#generating") == ""
    wall.alive(now=5017, last=5000)
    wall("tick()")
    assert wall.text("#reason") == "envoy2emon gets no readings from the gateway."
    wall.wait(25)
    assert wall.text("#reason") == "No connection to envoy2emon, trying again."


def test_a_clock_that_is_set_makes_no_false_notice(wall: Wall) -> None:
    """If the device's clock is set an hour ahead or back, the page shows figures, the whole graph and no notice."""
    points: list[list[Any]] = [[second, 4000, 1000] for second in range(4200, 5000)]
    wall.history(points)
    for second, jump in ((5000, 3_600_000), (5003, -3_600_000)):
        wall.show(100, 200, second)
        wall("window.offset += arguments[0]; tick()", jump)
        assert wall.text("#words") == ""
        wall.wait(2)
        assert wall.text("#words") == ""
        wall.show(150, 200, second + 3)
        assert wall.text("#generating .value").startswith("150")
        wall.wait(1)
        assert wall.column(0.5) == ["out", "own"]


def test_a_restarted_computer_leaves_the_graph(wall: Wall) -> None:
    """If the server's clock starts from zero again, what is drawn stays where it is."""
    points: list[list[Any]] = [[second, 4000, 1000] for second in range(4200, 5000)]
    wall.history(points)
    wall.history([[7, 4000, 1000]], now=7, last=7, run=2)
    wall.show(4000, 1000, 8)
    wall("tick()")
    assert wall.column(0.5) == ["out", "own"]


def test_at_night_the_page_is_dark(wall: Wall) -> None:
    """Half an hour without production dims the page to 45 %, the first watt ends that, and no meter means no night."""
    opacity = "return document.getElementById('all').style.opacity"
    wall.history([[4200, 0, 300]])
    wall.show(0, 300)
    wall.wait(10)
    assert wall(opacity) == "1"
    for at, p, expected in ((6100, 0, "0.45"), (6101, 50, "1"), (7200, 0, "1")):
        wall("window.offset = 1000 * (arguments[0] - 5000); tick()", at)
        wall.history(now=at, last=at - 1)
        wall.show(p, 300, at)
        wall("tick()")
        assert wall(opacity) == expected
    wall("window.offset += 3600000")
    wall.show(None, 300, 7200 + 3600)
    wall("tick()")
    assert wall(opacity) == "1"


def test_it_moves_against_burn_in(wall: Wall) -> None:
    """Once a minute the layout moves by a few pixels, and stays on the screen."""
    wall.history()
    places = set()
    for _ in range(5):
        wall("window.offset += 60000; tick()")
        places.add((wall("return all.offsetLeft"), wall("return all.offsetTop")))
    assert len(places) == 5
    assert all(0 <= left <= 8 and 0 <= top <= 8 for left, top in places)


def test_a_new_page_is_loaded(wall: Wall) -> None:
    """When the daemon has another version of the page, it is loaded; the same version is not."""
    wall.history()
    wall("window.old = true")
    wall.alive()
    wall.history()
    assert wall("return window.old")
    wall.alive(page="two")
    until(lambda: bool(wall("return !window.old && !!window.tick")))


def test_it_connects_again(wall: Wall) -> None:
    """A page whose connection is closed connects again, as does one that hears nothing any more."""
    assert wall("return window.opened") == 1
    wall("window.source.readyState = 2")
    wall.wait(7)
    assert wall("return window.opened") == 2
    wall.history()
    wall.show(100, 200)
    wall.wait(39)
    assert wall("return window.opened") == 2
    wall.wait(3)
    assert wall("return window.opened") == 3


def test_accessibility(wall: Wall) -> None:
    """For screen readers there are a heading, a main landmark, a name for the graph, and a status; zoom is allowed."""
    assert wall("return document.querySelectorAll('h1').length") == 1
    for selector in ("[role=main]", "canvas[role=img][aria-label]", "#notice[role=status]"):
        assert wall("return document.querySelectorAll(arguments[0]).length", selector) == 1
    assert "maximum-scale" not in HTML


@pytest.fixture
def server() -> Iterator[Live]:
    """Serve the page."""
    server = Live("127.0.0.1:0", None)
    server.start()
    yield server
    server.close()


def reading(p: int, c: int, age: int = 0) -> MeterReading:
    """Build a reading that was taken `age` seconds ago."""
    sections = {"production": p, "total-consumption": c}
    return MeterReading(time.monotonic() - age, {name: {"ph-a": {"p": Decimal(w)}} for name, w in sections.items()})


def shows(chrome: "Chrome", words: str) -> None:
    """Wait until the page has these words."""
    until(lambda: words in str(chrome.execute_script("return document.body.innerText")))


def test_served_as_it_is(chrome: "Chrome", server: Live) -> None:
    """Served by the daemon, the page shows figures, survives a restart of it, and obeys its own policy."""
    chrome.get_log("browser")  # type: ignore[no-untyped-call] # those of other tests
    chrome.get(f"http://127.0.0.1:{server.port}/")
    server.show(reading(4200, 700))
    shows(chrome, "4200")
    assert chrome.get_log("browser") == []  # type: ignore[no-untyped-call]
    icon = "return fetch(document.querySelector(arguments[0]).href).then(r => r.headers.get('content-type'))"
    for link in ("link[rel=icon]", "link[rel=apple-touch-icon]"):
        assert chrome.execute_script(icon, link) == "image/png"
    server.close()
    again = Live(f"127.0.0.1:{server.port}", None)
    again.start()
    again.show(reading(333, 700))
    shows(chrome, "333")  # the browser itself reconnects after 3 s
    again.close()


def test_the_readmes_example(chrome: "Chrome", server: Live, tmp_path: Path) -> None:
    """The README's example, in a page of another origin, shows n as the README says."""
    (example,) = re.findall(r"```html\n(.*?)```", section("The live page"), re.DOTALL)
    promised = re.findall(r'\{"p":\d+,"c":\d+,"n":-?\d+\}', example)
    assert promised == [json.dumps(live.figures(reading(6540, 4426)), separators=(",", ":"))]
    server.show(reading(6540, 4426))
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"http://[^/]*/events", f"http://127.0.0.1:{server.port}/events", example))
    chrome.get(page.as_uri())
    shows(chrome, "Nett: -2114 W")


def test_a_browser_without_event_source(chrome: "Chrome") -> None:
    """A browser without EventSource shows a sentence that says so, and no figures."""
    script = chrome.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "delete window.EventSource; window.EventSource = undefined;"},
    )
    try:
        chrome.get(PAGE.as_uri())
        words = chrome.execute_script("return document.body.innerText")
        assert "This browser cannot receive live readings" in words
        assert "Generating" not in words
    finally:
        chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_ecmascript_5() -> None:
    """A strict parser of ECMAScript 5 reads the script, and neither it nor the style uses what iOS 5.1.1 lacks."""
    (script,) = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
    es5(script)
    style = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)[0]
    assert not re.search(r"flex|grid|calc\(|\dv[wh]|transform|transition|animation", style)
    code = re.sub(r"//.*", "", script)
    assert not re.search(r"requestAnimationFrame|\.bind\(|fetch\(|Promise|classList|performance", code)


def test_an_old_engine_runs_it(server: Live, tmp_path: Path) -> None:
    """QtWebKit, an engine as old as iOS 9, connects and draws figures and graph without a script error."""
    if not shutil.which("wkhtmltoimage"):
        pytest.skip("wkhtmltopdf, which brings QtWebKit, is not installed: Debian 12 has it, 13 has not")
    for age in range(300, -1, -1):
        server.show(reading(4000, 1000, age))
    picture = tmp_path / "page.bmp"
    done = subprocess.run(
        [*OLD_ENGINE.split(), f"http://127.0.0.1:{server.port}/", picture],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert "Warning" not in done.stderr
    pixels = picture.read_bytes()
    for red, green, blue in ((255, 194, 51), (116, 194, 255), (63, 224, 160), OWN, OUT):
        assert pixels.count(bytes((blue, green, red))) > 500
