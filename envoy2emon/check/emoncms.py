"""The questions to EmonCMS: whether it is there, whether the key may write, and whether both daemons' rows arrive.

No question creates an input.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from urllib.parse import urljoin, urlsplit

from envoy2emon import web
from envoy2emon.check.verdict import LOCAL_NAMES, Found, Verdict, fail, ok, sentences, warn
from envoy2emon.emoncms.client import EmonCMS, Unauthorized, Unavailable
from envoy2emon.gateway.readings import PHASES
from envoy2emon.outage import duration
from envoy2emon.rows import KEY_NAMES, SECTION_NAMES
from envoy2emon.settings import Secret, Settings

# Meters give a row a second, and inverters a report in 5 minutes. A daemon whose inputs lag further has stopped.
STALE_S = 300.0
LONGER_THAN_A_NIGHT_S = 86400.0
MOST_NODES = 32  # in an account (input_methods.php)
# The names of the inputs that the two daemons post, because a node may hold other sensors' inputs too.
_METERS = re.compile(rf"({'|'.join(SECTION_NAMES)})_({'|'.join(PHASES)})_({'|'.join(KEY_NAMES)})")
_INVERTERS = re.compile(r"[0-9A-Za-z]+_(wNow|wMax)")
_VERSION = re.compile(r"(?:low-write )?v?\d+\.[\w.~ -]{1,30}")
_TIMEOUT_S = (10.0, 30.0)
_DROPPED = (
    "EMONCMS_APIKEY is accepted in a form, but not in the Authorization header: the web server or a proxy in front of "
    'EmonCMS drops that header. Apache: SetEnvIf Authorization "(.+)" HTTP_AUTHORIZATION=$1, or CGIPassAuth On. nginx: '
    "proxy_set_header Authorization $http_authorization; or, where it calls PHP, fastcgi_param HTTP_AUTHORIZATION "
    "$http_authorization;"
)


def ask(settings: Settings, found: Found) -> Iterator[Verdict]:
    """Ask EmonCMS all questions, without a key only those that need none; set `found.emoncms_ahead`."""
    url, pin = settings.emoncms_url, settings.emoncms_cert_sha256
    try:
        version = _version(url, pin)
    except Unauthorized:  # EmonCMS itself gives its version to anyone
        yield fail("EmonCMS", f"the web server at {url} asks for a password (401): is EMONCMS_URL right?")
        return
    except Unavailable as trouble:
        yield fail("EmonCMS", sentences(str(trouble), _cure(trouble, url, pin)))
        return
    if version:
        yield ok("EmonCMS", f"{url} is EmonCMS {version}")
    elif elsewhere := _elsewhere(url, pin):
        yield fail("EmonCMS", sentences(f"{url} answers, but is not EmonCMS", elsewhere))
        return
    if settings.emoncms_apikey:
        yield from _account(settings, version, found)


def _account(settings: Settings, version: str, found: Found) -> Iterator[Verdict]:
    """Report what the key may do, and what has arrived."""
    url, key, pin = settings.emoncms_url, settings.emoncms_apikey, settings.emoncms_cert_sha256
    with (
        closing(EmonCMS(url, key, settings.emoncms_node, pin)) as emoncms,
        closing(EmonCMS(url, key, settings.emoncms_inverters_node, pin)) as theirs,
    ):
        try:
            verdict = _key(emoncms, key, pin)
            if not version:
                yield ok("EmonCMS", f"{url} is EmonCMS; it does not tell its version")
            yield verdict
            if emoncms.clock.ahead is not None:
                found.emoncms_ahead = emoncms.clock.ahead + time.monotonic() - time.time()
            if verdict.word == "ok":
                yield _arriving(settings, emoncms.shown(), theirs.shown(), found)
                yield from _full(_nodes(url, key, pin), {settings.emoncms_node, settings.emoncms_inverters_node})
        except Unauthorized as trouble:
            yield fail("key", f"{trouble}, found in EmonCMS under Setup, My Account")
        except Unavailable as trouble:
            cure = _cure(trouble, url, pin)
            if not (version or cure or "out of order" in str(trouble)):
                cure = "It does not tell its version as EmonCMS does: is EMONCMS_URL right?"
            yield fail("EmonCMS", sentences(str(trouble), cure))


def _version(url: str, pin: str | None) -> str:
    """Return the version, "" if the answer is not one of EmonCMS's form. Raises Unavailable, Unauthorized."""
    with closing(EmonCMS(url, None, pin=pin)) as emoncms:
        text = emoncms.version()
    return text if _VERSION.fullmatch(text) else ""


def _elsewhere(url: str, pin: str | None) -> str:
    """Look for EmonCMS at the usual paths, and return advice if it is there."""
    parts = urlsplit(url)
    for path in sorted({"/emoncms", ""} - {parts.path}):
        other = f"{parts.scheme}://{parts.netloc}{path}"
        with suppress(Unavailable, Unauthorized):
            if _version(other, pin):
                return f"There is one at {other}, so set EMONCMS_URL={other}"
    return ""


def _cure(trouble: Unavailable, url: str, pin: str | None) -> str:
    """Return what to do about a trouble, "" if there is nothing to add to its own words."""
    cause, words = trouble.__cause__, str(trouble)
    if isinstance(cause, web.NoName):
        avahi = f"; {LOCAL_NAMES}" if ".local" in url else ""
        return f"Use the address of its computer in EMONCMS_URL{avahi}"
    if isinstance(cause, web.Untrusted):
        return _certificate(url, pin)
    if cause:
        return "Is its computer on and in this network, its web server running, and EMONCMS_URL its address?"
    cure = _redirected(url, pin) or _elsewhere(url, pin)
    if not cure and "answers 403" in words:
        cure = "Its web server, or a proxy in front of it, forbids this: look in its log"
    elif not cure and re.search(r"answers [45]\d\d", words):
        cure = "Is its PHP in trouble? Look at EmonCMS in the browser, and in its web server's log"
    return cure


def _certificate(url: str, pin: str | None) -> str:
    """Return advice on the certificate that an https URL presents."""
    try:
        found = web.fingerprint(url)
    except web.Failed:
        return "Does its address begin with http:// in the browser? Then set EMONCMS_URL to that"
    which = "If it was renewed" if pin else "If it is self-signed, and you trust the network in between"
    return f"{which}, set EMONCMS_CERT_SHA256={found}"


def _redirected(url: str, pin: str | None) -> str:
    """Return what to set if the server redirects to https, else ""."""
    with suppress(web.Failed), web.session(url, pin) as session, web.raising_failed():
        with session.get(f"{url}/version", timeout=_TIMEOUT_S, stream=True) as response:
            target = response.headers.get("Location", "") if response.is_redirect else ""
        base = urljoin(f"{url}/version", target).removesuffix("/version")
        if base.startswith("https://") and base != url:
            try:
                _version(base, pin)
            except Unavailable as trouble:
                certificate = _certificate(base, pin) if isinstance(trouble.__cause__, web.Untrusted) else str(trouble)
                return sentences(f"Set EMONCMS_URL={base}", certificate)
            return f"Set EMONCMS_URL={base}"
    return ""


def _key(emoncms: EmonCMS, key: Secret, pin: str | None) -> Verdict:
    """Report whether the key may write. Raises Unauthorized, Unavailable."""
    try:
        emoncms.check_key()
    except Unavailable as trouble:
        if "answers nothing" not in str(trouble):
            raise
    else:
        return ok("key", "EMONCMS_APIKEY may write")
    try:
        emoncms.shown()
    except Unavailable:
        if _nodes(emoncms.url, key, pin) is None:
            raise
        return fail("key", _DROPPED)
    cure = "in .env set the write key, found in EmonCMS under Setup, My Account"
    return fail("key", f"EMONCMS_APIKEY is the read key, which cannot post: {cure}")


def _nodes(url: str, key: Secret, pin: str | None) -> set[str] | None:
    """Return the names of all nodes, None without a valid answer. The key is sent in a form, which no proxy drops."""
    with suppress(web.Failed), web.session(url, pin) as session, web.raising_failed():
        response = session.post(f"{url}/input/get", {"apikey": key.value}, timeout=_TIMEOUT_S, stream=True)
        answer = json.loads(web.body(response))
        if response.ok and isinstance(answer, dict | list):  # PHP writes an empty object as []
            return set(answer) if isinstance(answer, dict) else set()
    return None


def _full(nodes: set[str] | None, ours: set[str]) -> Iterator[Verdict]:
    """Report if the account takes no new node and lacks one of ours."""
    if nodes and len(nodes) >= MOST_NODES and (lacking := sorted(ours - nodes)):
        missing = " and ".join(lacking)
        cure = "delete the inputs of one that you no longer use, on EmonCMS's Inputs page"
        yield fail(
            "inputs", f"EmonCMS holds {len(nodes)} nodes, which is its limit, and none of them is {missing}: {cure}"
        )


def _arriving(settings: Settings, meters: Mapping[str, int], inverters: Mapping[str, int], found: Found) -> Verdict:
    """Report what has arrived in both nodes, and warn of a daemon whose rows are overdue."""
    now = time.time() + (found.emoncms_ahead or 0.0)
    parts, idle = [], []
    if found.meters is not False:
        count, newest = _ours(_METERS, meters)
        parts.append(_count_and_age(count, settings.emoncms_node, now - newest if newest else None))
        if now - newest > STALE_S + float(settings.emoncms_interval_s):
            idle.append("envoy2emon")
    if found.newest_report != 0:
        count, newest = _ours(_INVERTERS, inverters)
        parts.append(_count_and_age(count, settings.emoncms_inverters_node, now - newest if newest else None))
        # The gateway dates the reports, so the gateway's newest report must have arrived.
        due = now - LONGER_THAN_A_NIGHT_S if found.newest_report is None else found.newest_report
        if newest < due - STALE_S - float(settings.inverters_interval_s):
            idle.append("envoy2emon_inv")
    text = "; ".join(parts) or "none are expected, because this gateway has neither meters nor inverters"
    return (
        warn("inputs", f"{text}. Is it running? sudo systemctl status {' '.join(idle)}") if idle else ok("inputs", text)
    )


def _ours(names: re.Pattern[str], shown: Mapping[str, int]) -> tuple[int, int]:
    """Count a daemon's inputs, and return the newest date among them, 0 for none."""
    dates = [date for name, date in shown.items() if names.fullmatch(name)]
    return len(dates), max(dates, default=0)


def _count_and_age(count: int, node: str, age: float | None) -> str:
    if not count:
        return f"none from envoy2emon in node {node} yet"
    return f"{count} in node {node}, " + (
        "without a date" if age is None else f"the newest {duration(max(0.0, age))} old"
    )
