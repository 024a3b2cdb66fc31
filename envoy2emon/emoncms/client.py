"""EmonCMS over HTTP: post rows, ask for the dates that it shows, and learn its clock from every answer.

A row counts as posted only when the text of the answer says so, because EmonCMS answers 200 whatever happens. The key
is sent in a header, never in a URL. Measured against EmonCMS 11.16.8; see its Modules/input/input_methods.php.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import requests

from envoy2emon import web
from envoy2emon.emoncms.clock import ServerClock
from envoy2emon.rows import Row, inputs_json
from envoy2emon.settings import Secret
from envoy2emon.words import clean

# 100 rows with 36 logged inputs take 1.3 s on a PC and ten times that on a Raspberry Pi.
ANSWER_TIMEOUT_S = 60.0
# After more silence a connection is not reused, because Apache closes it after 5 s, perhaps just as a post is sent.
KEEP_ALIVE_S = 3.0
# EmonCMS 11.16.8 skips rows of fewer than three items and answers ok; versions of 2016 reject the row. Either answer
# requires a key that may write, and neither creates an input.
NO_ROW = "[[0]]"
# Characters that need no escape in a form unless it is decoded twice, so a row of plain names is sent as it is.
_PLAIN = '[]{}":,'
_TAG = re.compile(r"<[^>]*>")
# Errors of PHP itself, and what EmonCMS 11 shows when MariaDB or Redis is down.
_BROKEN = re.compile(r"Fatal error|Uncaught|mysqli|Redis(Exception)?\b|Can't connect to database", re.IGNORECASE)


class Unavailable(Exception):
    """EmonCMS is away or out of order, so try again soon. What was sent may have been applied nevertheless."""


class Unauthorized(Exception):
    """EmonCMS does not accept the key; the text says what to do."""


class Rejected(Exception):
    """EmonCMS rejects a row; the text is its own. It may have applied the rows before that one."""


class EmonCMS:
    """One EmonCMS at `url`, such as http://emonpi/emoncms, and one of its nodes.

    apikey: the write key, None for requests that need none. pin: the SHA-256, in hex, of the only certificate to
    accept, None for no such limit.
    """

    def __init__(
        self,
        url: str,
        apikey: Secret | None,
        node: str = "",
        pin: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.clock = ServerClock()
        self._node = node
        self._monotonic = clock
        self._answered_at = float("-inf")
        self._session = web.session(url, pin)
        self._adapter = self._session.get_adapter(url)
        if apikey:
            self._session.headers["Authorization"] = f"Bearer {apikey.value}"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        self._bulk = self._session.prepare_request(requests.Request("POST", f"{url}/input/bulk", headers=form))

    def post(self, rows: Sequence[Row]) -> None:
        """Post rows, in order, with their dates. Raises Unavailable, Unauthorized, Rejected."""
        node = json.dumps(self._node, ensure_ascii=False)
        self._post("[" + ",".join([f"[{row.date},{node},{inputs_json(row.inputs)}]" for row in rows]) + "]")

    def check_key(self) -> None:
        """Check that the key may write, without creating an input. Raises Unavailable, Unauthorized."""
        with suppress(Rejected):  # by a version that rejects the row, not the key
            self._post(NO_ROW)

    def shown(self) -> dict[str, int]:
        """Return the date of each of the node's inputs in epoch seconds, 0 if unknown; empty without such a node.

        Raises Unavailable, Unauthorized.
        """
        text = self._get("/input/get?" + urlencode({"node": self._node}))
        answer = _json(text)
        if answer == "Node does not exist":
            return {}
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise Unavailable(f"{self.url} does not show its inputs: {clean(str(answer.get('message')), 200)}")
        try:
            return {str(name): int(each["time"] or 0) for name, each in answer.items()}
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            raise self._unexpected(text) from None

    def version(self) -> str:
        """Return EmonCMS's version, such as 11.16.8, which needs no key. Raises Unavailable, Unauthorized."""
        text: str = clean(self._get("/version"), 100)
        return text

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _post(self, data: str) -> None:
        self._bulk.prepare_body(f"time=0&data={quote(data, safe=_PLAIN)}".encode(), None)
        text = self._answer(self._bulk)
        if text in ("ok", '"ok"'):
            return
        answer = _json(text)
        if isinstance(answer, Mapping) and "success" in answer:
            if answer["success"] is True:
                return
            raise Rejected(clean(str(answer.get("message", text)), 200))
        if text.startswith("Error:"):  # versions of 2016
            raise Rejected(clean(text, 200))
        raise self._unexpected(text)

    def _get(self, path: str) -> str:
        try:
            return self._answer(self._session.prepare_request(requests.Request("GET", self.url + path)))
        except Rejected as trouble:
            raise Unavailable(f"{self.url} answers {trouble}") from None

    def _answer(self, request: requests.PreparedRequest) -> str:
        """Send a request and return the text of a 200 answer. Raises Unavailable, Unauthorized, Rejected."""
        asked = self._monotonic()
        if asked - self._answered_at > KEEP_ALIVE_S:
            self._session.close()
        try:
            with web.raising_failed(ANSWER_TIMEOUT_S):
                # Session.send would look for cookies, hooks and redirects, which takes as long as parsing an event.
                timeout, verify = (web.CONNECT_S, ANSWER_TIMEOUT_S), bool(self._session.verify)
                response = self._adapter.send(request, stream=True, timeout=timeout, verify=verify)
                text = web.body(response).strip()
        except web.Failed as failed:
            raise Unavailable(f"{self.url} {failed}") from failed
        self._answered_at = self._monotonic()
        self._learn(response.headers.get("Date", ""), asked, self._answered_at)
        if response.status_code != HTTPStatus.OK:
            raise self._refusal(response, text)
        return text

    def _learn(self, date: str, asked: float, answered: float) -> None:
        try:
            second = parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError, OverflowError):
            second = float(int(time.time()))  # every web server sends a Date; without one there is only our own clock
        self.clock.learn(second, asked, answered)

    def _refusal(self, response: requests.Response, text: str) -> Exception:
        status, reason = response.status_code, clean(response.reason or "", 60)
        if status == HTTPStatus.UNAUTHORIZED:
            return Unauthorized(f"{self.url} does not know EMONCMS_APIKEY (401): set the write key")
        if status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_URI_TOO_LONG):
            return Rejected(f"{status} {reason}")
        if status == HTTPStatus.NOT_FOUND:
            return Unavailable(f"there is no EmonCMS at {self.url} (404): is the path in EMONCMS_URL right?")
        if status < HTTPStatus.BAD_REQUEST and (target := response.headers.get("Location")):
            return Unavailable(f"{self.url} redirects to {clean(target, 200)}: is EMONCMS_URL right?")
        if _BROKEN.search(text):
            return self._unexpected(text)
        return Unavailable(f"{self.url} answers {status} {reason}".strip())

    def _unexpected(self, text: str) -> Unavailable:
        """Return an Unavailable that explains an answer which a working EmonCMS would not give."""
        if not text:
            cure = "is EMONCMS_APIKEY the write key, and does a proxy in front of it drop the Authorization header?"
            return Unavailable(f"{self.url} answers nothing: {cure}")
        if text == "false":
            return Unavailable(f"{self.url} does not know this request: is EMONCMS_URL right?")
        words = clean(_TAG.sub(" ", text).strip(), 120)
        if _BROKEN.search(text):
            return Unavailable(f"{self.url} is out of order, perhaps its database (MariaDB or Redis) is down: {words}")
        if text.startswith("<"):
            cure = "is EMONCMS_URL right, and does a proxy in front of it drop the Authorization header?"
            return Unavailable(f"{self.url} answers an HTML page: {cure}")
        return Unavailable(f"{self.url} answers {words!r}")


def _json(text: str) -> Any:  # noqa: ANN401 - whatever a server answers
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
