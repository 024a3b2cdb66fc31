"""The live page in a real browser, headless; its script before a parser of ECMAScript 5; and in an old engine."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from calmjs.parse import es5  # type: ignore[import-untyped]

from envoy2emon.gateway.readings import MeterReading
from envoy2emon.live import server as live
from envoy2emon.live.server import Live
from tests.conftest import until
from tests.daemons import skip_or_fail

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
# What stands before the page: events that the test fires, a clock that it sets, and errors that it sees.
BEFORE = """
window.listeners = {}; window.errors = []; window.offset = 0; window.loads = (window.loads || 0) + 1;
window.onerror = function (message) { window.errors.push(message); };
window.EventSource = function () { this.readyState = 1; window.source = this; };
EventSource.prototype.addEventListener = function (name, call) { window.listeners[name] = call; };
EventSource.prototype.close = function () {};
var getTime = Date.prototype.getTime;
Date.prototype.getTime = function () { return getTime.call(this) + (this.plain ? 0 : window.offset); };
window.fire = function (name, data, id) {
  window.listeners[name]({ data: JSON.stringify(data), lastEventId: String(id || "") });
};
"""
# Rectangles of all words that are shown, and of the graph.
BOXES = """
return [].map.call(document.querySelectorAll(".name, .value, .today, #words, #reason, #graph"), function (element) {
  var range = document.createRange();
  range.selectNodeContents(element);
  var box = (element.id === "graph" ? element : range).getBoundingClientRect();
  return [element.className || element.id, box.left, box.top, box.right, box.bottom];
}).filter(function (box) { return box[3] > box[1] && box[4] > box[2]; });
"""
TODAY = {"produced": 18.44, "consumed": 9.21, "out": 12.2, "into": 3.0, "since": None}


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
    """The page on a wall, told what to show by the test."""

    def __init__(self, chrome: "Chrome") -> None:
        self.chrome = chrome
        chrome.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
        self._script = chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BEFORE})
        self.size(1024, 768)
        chrome.get(PAGE.as_uri())
        self.until(lambda: self("return !!window.listeners.history"))

    def __call__(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the script returns
        """Run a script in the page."""
        return self.chrome.execute_script(script, *arguments)

    def until(self, holds: Any) -> None:  # noqa: ANN401
        """Wait until something holds."""
        until(holds, 10.0)

    def close(self) -> None:
        """Leave no trace, and no error in the page."""
        errors = self("return window.errors")
        self.chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", self._script)
        assert errors == []

    def size(self, width: int, height: int) -> None:
        """Set the size of the window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def history(self, points: list[list[Any]] | None = None, **changes: object) -> None:
        """Send what comes first on connecting; the server's clock is at 5000 s."""
        state = {"now": 5000, "last": 4999, "patience": 15, "page": "one", "today": TODAY, "points": points or []}
        self("fire('history', arguments[0])", state | changes)

    def show(self, p: int | None, c: int | None, at: int = 5000) -> None:
        """Send a reading."""
        n = None if p is None or c is None else c - p
        self("fire('solar_data', arguments[0], arguments[1])", {"p": p, "c": c, "n": n}, at)

    def text(self, selector: str) -> str:
        """Return an element's words as they are shown."""
        return str(self("return document.querySelector(arguments[0]).innerText", selector)).strip()

    def colour(self, selector: str) -> tuple[int, int, int]:
        """Return an element's colour."""
        found = self("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        red, green, blue = map(int, re.findall(r"\d+", found)[:3])
        return red, green, blue

    def column(self, share: float) -> list[str]:
        """Return the fills that are met on the way down a column of the graph, each once."""
        data = self(
            "var g = document.getElementById('graph'), x = Math.round(g.width * arguments[0]);"
            "return [].slice.call(g.getContext('2d').getImageData(x, 0, 1, g.height).data);",
            share,
        )
        known = {(107, 77, 15): "own", (35, 120, 63): "out", (122, 29, 23): "in"}
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


def fits(wall: Wall, width: int, height: int) -> None:
    """Say that all words are on the screen, and none lies on another."""
    boxes = wall(BOXES)
    for name, left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, (name, left, top, right, bottom)  # noqa: PT018
    for number, (name, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[number + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 + 1 or bottom2 <= top + 1
            assert apart, (name, other)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_fits(wall: Wall, width: int, height: int) -> None:
    """At each size, with every power in both directions, after growing without a resize, no text overlaps or leaves."""
    wall.size(width, height)
    wall.until(lambda: wall("return innerWidth") == width)
    wall("window.onresize()")
    wall.history()
    for power in POWERS:
        for p, c in ((power, 0), (0, power), (power, power // 2)):
            wall.show(p, c)
            fits(wall, width, height)
    wall.history(today={**TODAY, "produced": 123.4, "consumed": 234.5, "out": 123.4, "into": 99.9, "since": 1})
    wall.show(123_456, 1)
    fits(wall, width, height)
    wall("window.source.readyState = 2; window.offset = 3600000")
    wall.until(lambda: "No readings since" in wall.text("#words"))
    fits(wall, width, height)


@pytest.mark.parametrize(
    ("p", "c", "label", "figure", "kind"),
    [
        (1867, 841, "Nett → to the grid", "1026W", "box out"),
        (841, 1867, "Nett ← from the grid", "1026W", "box in"),
        (500, 500, "Nett", "0W", "box"),
    ],
)
def test_nett_is_what_the_page_shows(wall: Wall, p: int, c: int, label: str, figure: str, kind: str) -> None:
    """The third figure is the difference of the two that are shown, without a sign, and its label says the way."""
    wall.history()
    wall.show(p, c)
    assert (wall.text("#nett .name"), wall.text("#nett .value").replace("\n", "")) == (label, figure)
    assert wall("return document.getElementById('nett').className") == kind
    assert wall("return document.querySelector('#nett .name').style.opacity") in ("", "1")


def test_today_stands_under_each_figure(wall: Wall) -> None:
    """Energy of today, since when if the day is not whole, and the reason where a figure is missing."""
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
    """Own use lies under both lines, what goes to the grid above it, or what comes from the grid."""
    points: list[list[Any]] = [[second, 4000, 1000] for second in range(4200, 4600)]
    points += [[second, 1000, 4000] for second in range(4600, 5000)]
    wall.history(points)
    wall.show(1000, 4000)
    wall.until(lambda: wall.column(0.35) == ["out", "own"])
    assert wall.column(0.8) == ["in", "own"]


@pytest.mark.parametrize("most", [300, 940, 1300, 4200, 11_000, 83_000, 123_456])
def test_the_scale_is_round_and_wastes_little(wall: Wall, most: int) -> None:
    """Ticks are 1, 2 or 5 of a power of ten, written whole, and the graph uses most of its height."""
    wall(
        "window.written = []; var pen = document.getElementById('graph').getContext('2d'), old = pen.fillText;"
        "pen.fillText = function (t, x, y) {"
        "  window.written.push([t, x - pen.measureText(t).width * (pen.textAlign === 'right'), y]);"
        "  old.call(pen, t, x, y); };"
    )
    wall.history([[second, most, 0] for second in range(4200, 5000)])
    labels = [each for each in wall("return window.written") if each[0] == "0" or "W" in each[0]]
    assert all(left >= 0 for _, left, _ in labels)
    values = sorted({float(word.split()[0]) * (1000 if "kW" in word else 1) for word, _, _ in labels})
    (step,) = {round(later - earlier, 6) for earlier, later in pairwise(values)}
    assert f"{step:e}"[0] in "125"
    assert 2 <= len(values) <= 7
    assert max(most, 500) > 0.72 * (values[-1] if values[-1] > most else most * 1.05)


def test_contrast(wall: Wall) -> None:
    """All words have at least 4.5:1 against the black behind them (WCAG 2, 1.4.3)."""

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    wall.history()
    for p, c in ((100, 2000), (2000, 100)):
        wall.show(p, c)
        for selector in (".name", ".value", ".today", ".unit"):
            for box in ("#generating", "#consuming", "#nett"):
                assert (luminance(wall.colour(f"{box} {selector}")) + 0.05) / 0.05 >= 4.5
    assert (luminance(wall.colour("#reason")) + 0.05) / 0.05 >= 4.5


def test_a_notice_says_what_is_known(wall: Wall) -> None:
    """Silence of the gateway is said when the server says so, and of the connection when nothing was heard."""
    assert (wall.text("#words"), wall.text("#reason")) == ("Connecting", "")
    wall("window.offset += 6000")
    wall.until(lambda: wall.text("#reason") == "No connection to envoy2emon, trying again.")
    wall("window.offset -= 6000")
    wall.history(last=None)
    wall.until(lambda: wall.text("#words") == "No readings yet")
    wall.show(100, 200)
    wall.until(lambda: wall("return notice.style.display") == "none")
    state = {"now": 5020, "last": 5000, "patience": 15, "page": "one", "today": TODAY}
    wall("fire('alive', arguments[0])", state)
    wall.until(lambda: wall.text("#reason") == "The gateway is silent.")
    wall("window.offset += 25000")  # nothing is heard for as long
    wall.until(lambda: wall.text("#reason") == "No connection to envoy2emon, trying again.")


def test_a_clock_that_is_set_makes_no_false_notice(wall: Wall) -> None:
    """A device whose clock is set an hour ahead or back shows figures at the next reading, and no notice."""
    wall.history()
    for second, jump in ((5000, 3_600_000), (5001, -3_600_000)):
        wall.show(100, 200, second)
        wall("window.offset += arguments[0]", jump)
        wall.show(150, 200, second + 1)
        assert wall.text("#generating .value").startswith("150")
        wall("document.getElementById('words').textContent = 'none'")
        wall.until(lambda: wall("return notice.style.display") == "none")


def test_at_night_the_page_is_dark(wall: Wall) -> None:
    """Half an hour without sun dims it to 45 %; the first watt ends that."""
    wall.history([[4200, 0, 300]])
    wall.show(0, 300)
    assert wall("return document.getElementById('all').style.opacity") in ("", "1")
    wall("window.offset += 1900000")
    wall.history(now=6900, last=6899)
    wall.show(0, 300, 6900)
    wall.until(lambda: wall("return document.getElementById('all').style.opacity") == "0.45")
    wall.show(50, 300, 6901)
    wall.until(lambda: wall("return document.getElementById('all').style.opacity") == "1")


def test_it_moves_against_burn_in(wall: Wall) -> None:
    """Once a minute the layout moves by a few pixels."""
    wall.history()
    places = set()
    for _ in range(5):
        places.add((wall("return all.style.left"), wall("return all.style.top")))
        before = wall("return all.style.left + all.style.top")
        wall("window.offset += 60000")
        wall.until(lambda before=before: wall("return all.style.left + all.style.top") != before)
    assert len(places) == 5
    assert all(abs(int(left[:-2]) - 4) <= 4 for left, _ in places)


def test_a_new_page_is_loaded(wall: Wall) -> None:
    """Where the daemon has another page than this one, it is loaded."""
    wall.history()
    wall(
        "window.old = true; fire('alive', arguments[0])",
        {"now": 5001, "last": 5000, "patience": 15, "page": "two", "today": TODAY},
    )
    wall.until(lambda: wall("return !window.old && !!window.listeners.history"))


def test_who_cannot_see_is_told(wall: Wall) -> None:
    """There are a heading, a main landmark, a name for the graph, and a status that is read out."""
    assert wall("return document.querySelectorAll('h1').length") == 1
    for selector in ("[role=main]", "canvas[role=img][aria-label]", "#notice[role=status]"):
        assert wall("return document.querySelectorAll(arguments[0]).length", selector) == 1
    assert "maximum-scale" not in HTML


def test_served_as_it_is(chrome: "Chrome") -> None:
    """From the daemon's own server the page connects, shows figures and complains of nothing, icon included."""
    server = Live("127.0.0.1:0", None)
    server.start()
    try:
        chrome.get(f"http://127.0.0.1:{server.port}/")
        chrome.get_log("browser")  # type: ignore[no-untyped-call]
        chrome.refresh()

        def shown() -> bool:
            sections = {"production": 4200, "total-consumption": 700}
            phases = {name: {"ph-a": {"p": Decimal(watts)}} for name, watts in sections.items()}
            server.show(MeterReading(time.monotonic(), phases))
            return "4200" in str(chrome.execute_script("return document.body.textContent"))

        until(shown)
        assert chrome.get_log("browser") == []  # type: ignore[no-untyped-call]
    finally:
        server.close()


def test_a_browser_without_event_source(chrome: "Chrome") -> None:
    """It is told so, and no words lie on one another."""
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
    """A strict parser of ECMAScript 5 reads the script, and nothing younger than iOS 5.1.1 is called."""
    (script,) = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
    es5(script)
    style = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)[0]
    assert not re.search(r"flex|grid|calc\(|\dv[wh]|transform|transition|animation", style)
    code = re.sub(r"//.*", "", script)
    assert not re.search(r"requestAnimationFrame|\.bind\(|fetch\(|Promise|classList|performance", code)


def test_an_old_engine_runs_it(tmp_path: Path) -> None:
    """QtWebKit, an engine of 2014, runs the page without an error and shows its words."""
    if not shutil.which("wkhtmltoimage"):
        skip_or_fail("Debian's wkhtmltopdf, which brings QtWebKit, is not installed", "REQUIRE_BROWSER")
    shown = tmp_path / "page.html"
    points = json.dumps([[second, 4000, 1000] for second in range(4200, 5000)])
    after = f"""
      window.EventSource = function () {{ this.readyState = 1; }};
      EventSource.prototype.addEventListener = function (name, call) {{
        var data = {{now: 5000, last: 5000, patience: 15, page: "x", today: null, points: {points}, p: 4321, c: 1000}};
        setTimeout(function () {{ call({{data: JSON.stringify(data), lastEventId: "5000"}}); }}, 50);
      }};
      window.onerror = function (message, file, line) {{ console.log("ERROR " + message + line); }};
    """
    shown.write_text(HTML.replace("<script>", f"<script>{after}</script><script>", 1))
    command = [
        "wkhtmltoimage",
        "--javascript-delay",
        "1500",
        "--debug-javascript",
        "--width",
        "1024",
        "--height",
        "768",
    ]
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, str(shown), str(tmp_path / "page.png")], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    assert "Warning: undefined" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 5000
