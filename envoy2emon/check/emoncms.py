"""The questions to EmonCMS: is it there, may the key write, what has arrived.

The law of this file: no question leaves an input behind.
"""

import math
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from envoy2emon.check.verdict import Verdict, fail, ok, warn
from envoy2emon.emoncms.client import EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES
from envoy2emon.outage import duration
from envoy2emon.gateway.readings import PHASES
from envoy2emon.settings import Config

# EmonCMS passes over rows of less than three items and answers ok (11.16.8); versions of 2016 find fault with the row.
# Either answer takes a key that may write, and neither makes an input.
NO_ROW = "data=[[0]]&sentat=0"
# The stream brings rows every second, late by a slow EmonCMS at most.
STALE_S = 300.0
# What the two daemons post: a node may hold other sensors' inputs too.
_METERS = re.compile(rf"({'|'.join(SECTION_NAMES)})_({'|'.join(PHASES)})_({'|'.join(KEY_NAMES)})")
_INVERTERS = re.compile(r"[0-9A-Za-z]+_(wNow|wMax)")
_VERSION = re.compile(r"(?:low-write )?v?\d+\.[\w.~ -]{1,30}")


def ask(config: Config, clocks: dict[str, float]) -> Iterator[Verdict]:
    """Ask all of it; `clocks` gets the seconds by which EmonCMS's clock is ahead of this computer's."""
    url = config.emoncms_url
    try:
        version = _version(url)
    except Unauthorized:  # EmonCMS itself tells its version to anyone
        yield fail("EmonCMS", f"{url} wants a password of its web server (401): is EMONCMS_URL right?")
        return
    except (Unavailable, Rejected) as trouble:
        answered = trouble.__cause__ is None
        yield fail("EmonCMS", _sentences(str(trouble), _cure(str(trouble), url), _elsewhere(url) if answered else ""))
        return
    if version:
        yield ok("EmonCMS", f"{url} is EmonCMS {version}")
    elif elsewhere := _elsewhere(url):
        yield fail("EmonCMS", _sentences(f"{url} answers, but is not EmonCMS", elsewhere))
        return
    emoncms = EmonCMS(url, config.emoncms_apikey)
    try:
        yield from _key(emoncms, config, version)
        yield _inputs(emoncms, config, clocks)
    except Unauthorized as trouble:
        yield fail("key", f"{trouble}; it is found under Setup, My Account")
    except Unavailable as trouble:
        cure = "" if version else "Is EMONCMS_URL right? There is no EmonCMS that tells its version"
        yield fail("EmonCMS", _sentences(str(trouble), cure, _cure(str(trouble), url)))
    finally:
        emoncms.close()


def _sentences(*parts: str) -> str:
    """Join what is not empty, each a sentence of its own."""
    return " ".join(part if part.endswith("?") else f"{part}." for part in parts if part).removesuffix(".")


def _cure(trouble: str, url: str) -> str:
    """Tell what to do about a trouble whose own words ask no question."""
    if trouble.endswith("?"):
        return ""
    if "cannot be resolved" in trouble:
        avahi = "; names in .local take sudo apt install avahi-daemon libnss-mdns" if ".local" in url else ""
        return f"Put the address of its computer into EMONCMS_URL{avahi}"
    if "SSL" in trouble:
        return "Does its address begin with http:// in the browser, or is its certificate self-made? Then use http://"
    if "answers 403" in trouble:
        return "Its web server, or a proxy in front of it, forbids this: look into its log"
    if "answers" in trouble:
        return "Is its PHP or its database down? Look at it in the browser, and into its web server's log"
    return "Is its computer on and in this network, and EMONCMS_URL its address?"


def _version(url: str) -> str:
    """Return the version, "" if what answers does not tell one as EmonCMS does."""
    emoncms = EmonCMS(url, None)
    try:
        text = emoncms.version()
    finally:
        emoncms.close()
    return text if _VERSION.fullmatch(text) else ""


def _elsewhere(url: str) -> str:
    """Look for EmonCMS at the usual paths and say where it is."""
    parts = urlsplit(url)
    for path in {"/emoncms", ""} - {parts.path}:
        other = f"{parts.scheme}://{parts.netloc}{path}"
        try:
            if _version(other):
                return f"There is one at {other}, so set EMONCMS_URL={other}"
        except (Unavailable, Unauthorized, Rejected):
            pass
    return ""


def _key(emoncms: EmonCMS, config: Config, version: str) -> Iterator[Verdict]:
    """Post a row that is none. Raises Unauthorized, Unavailable."""
    try:
        emoncms.post(NO_ROW)
    except Rejected:
        pass
    except Unavailable as trouble:
        if "answers nothing" not in str(trouble):
            raise
        emoncms.inputs(config.emoncms_node)  # whoever may read all the same has the read key
        cure = "put the write key, found under Setup, My Account, into .env"
        yield fail("key", f"EMONCMS_APIKEY is the read key, which cannot post: {cure}")
        return
    if not version:
        yield ok("EmonCMS", f"{emoncms.url} is EmonCMS; its version it does not say")
    yield ok("key", "EMONCMS_APIKEY may write")


def _inputs(emoncms: EmonCMS, config: Config, clocks: dict[str, float]) -> Verdict:
    """Tell what has arrived in both nodes. Raises Unavailable."""
    told, ages = [], []
    for node, names in ((config.emoncms_node, _METERS), (config.emoncms_inverters_node, _INVERTERS)):
        arrived = emoncms.inputs(node)
        ahead = arrived.date + time.monotonic() - arrived.answered_at - time.time()
        clocks["EmonCMS"] = ahead
        times = [at for name, (at, _) in arrived.inputs.items() if names.fullmatch(name)]
        ages.append(max(0.0, time.time() + ahead - max(times)) if times else math.inf)
        if times:
            told.append(f"{len(times)} in node {node}, the newest {duration(ages[-1])} old")
        else:
            told.append(f"none of envoy2emon's in node {node} yet")
    if ages[0] > STALE_S:
        return warn("inputs", f"{'; '.join(told)}: are the daemons running? sudo systemctl status envoy2emon")
    return ok("inputs", "; ".join(told))
