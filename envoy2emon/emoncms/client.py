"""What EmonCMS is asked, and what its answers mean: post rows, ask what arrived.

The law of this file: a row counts as posted only when EmonCMS says so in words; HTTP 200 alone says nothing. The key
travels in a header only.
"""

import http
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from envoy2emon import __version__
from envoy2emon.emoncms.arrived import Arrived
from envoy2emon.emoncms.exchange import Dropped, Exchange, Reply, Unavailable
from envoy2emon.settings import Secret

__all__ = ["Dropped", "EmonCMS", "Rejected", "Unauthorized", "Unavailable"]
_OK = ("ok", '"ok"')


class Unauthorized(Exception):
    """EmonCMS does not know the key; the text says what to do."""


class Rejected(Exception):
    """EmonCMS refuses what is in the rows; the text is what it says. Rows before the bad one are applied."""


class EmonCMS:
    """One EmonCMS, by the URL of its base, such as http://emonpi/emoncms, and the write key, or none."""

    def __init__(self, url: str, apikey: Secret | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._clock = clock
        self._key = apikey.value if apikey else None
        fields = f"User-Agent: envoy2emon/{__version__}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        if self._key:
            fields += f"Authorization: Bearer {self._key}\r\n"
        self._exchange = Exchange(url, fields, clock)

    def ready(self) -> bool:
        """Tell, without waiting, whether there is a connection in use, which will not be closed for idleness."""
        return self._exchange.ready()

    def connect(self) -> None:
        """Make sure of a connection, which may take seconds. Raises Unavailable."""
        self._exchange.connect()

    def post(self, form: str) -> None:
        """Post rows to `input/bulk`. Raises Unavailable, Unauthorized, Rejected."""
        self.connect()
        self.send(form)
        self.finish()

    def send(self, form: str) -> None:
        """Begin a post, over the connection: finish() ends it, and raises whatever goes wrong."""
        self._exchange.send("POST", "/input/bulk", form)

    def applied(self, seconds: float = 0.0) -> bool:
        """End the post if its answer comes within so many seconds and is good; if it is not, finish() has to."""
        reply = self._exchange.reply(seconds)
        if reply is None or reply.head.status != http.HTTPStatus.OK or reply.text not in _OK:
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Wait for the answer to what was sent. Raises Unavailable, Unauthorized, Rejected."""
        text = self._checked(self._exchange.wait()).text
        answer = _json(text)
        if text in _OK or (isinstance(answer, dict) and answer.get("success") is True):
            return
        if isinstance(answer, dict) and "success" in answer:
            raise Rejected(self._words(str(answer.get("message", text)), 200))
        raise self._not_emoncms(text)

    def inputs(self, node: str) -> Arrived:
        """Ask for the time and value of the node's inputs; none if there is no such node. Raises as post()."""
        asked_at = self._clock()
        reply = self._ask(f"/input/get?node={quote(node)}")
        answer = _json(reply.text)
        if isinstance(answer, dict) and answer.get("success") is False:
            words = self._words(str(answer.get("message")), 200)
            raise Unavailable(f"{self.url} does not tell which inputs it has: {words}")
        if answer == "Node does not exist":
            answer = {}
        try:
            inputs = {name: (int(each["time"] or 0), float(each["value"] or 0)) for name, each in answer.items()}
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            raise self._not_emoncms(reply.text) from None
        try:
            date = parsedate_to_datetime(reply.head.headers["Date"]).timestamp()
        except (TypeError, ValueError, OverflowError):
            date = time.time()  # every web server sends a Date
        return Arrived(inputs, date, asked_at, self._clock())

    def version(self) -> str:
        """Ask what it is: a text such as 11.16.8, for which EmonCMS wants no key. Raises as post()."""
        return self._ask("/version").text

    def close(self) -> None:
        """Close the connection."""
        self._exchange.close()

    def _ask(self, path: str) -> Reply:
        self.connect()
        self._exchange.send("GET", path)
        return self._checked(self._exchange.wait())

    def _checked(self, reply: Reply) -> Reply:
        """Return it if its status is 200. Raises Unavailable, Unauthorized, Rejected."""
        status, reason = reply.head.status, self._words(reply.head.reason, 60)
        if status == http.HTTPStatus.OK:
            return reply
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise Unauthorized(f"{self.url} does not know EMONCMS_APIKEY (401): put the write key into .env")
        if status in (http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, http.HTTPStatus.REQUEST_URI_TOO_LONG):
            raise Rejected(f"{status} {reason}")
        if status == http.HTTPStatus.NOT_FOUND:
            raise Unavailable(f"there is no EmonCMS at {self.url} (404): is the path in EMONCMS_URL right?")
        if status < 400 and (target := reply.head.headers["Location"]):  # noqa: PLR2004
            raise Unavailable(f"{self.url} redirects to {self._words(target, 200)}: is EMONCMS_URL right?")
        raise Unavailable(f"{self.url} answers {status} {reason} {self._words(reply.text, 60)}".strip(), unclear=True)

    def _not_emoncms(self, text: str) -> Unavailable:
        if not text:
            reason = "answers nothing, as it does to a read key: is EMONCMS_APIKEY the write key?"
            return Unavailable(f"{self.url} {reason}", unclear=True)  # or its answer was cut
        if text == "false":
            return Unavailable(f"{self.url} knows no input/bulk: is EMONCMS_URL right?")
        return Unavailable(f"{self.url} answers {self._words(text, 120)!r}", unclear=True)

    def _words(self, text: str, most: int) -> str:
        """Return what the server said, without the key: whole, before it is cut."""
        return (text.replace(self._key, "***") if self._key else text)[:most]


def _json(text: str) -> Any:  # noqa: ANN401 - whatever a server answers
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
