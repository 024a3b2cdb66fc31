"""EmonCMS as the tests see it: what it answers, what its inputs hold, and how it is away.

The law of this file: whatever is asked is asked over HTTP, so that it can be asked of a real EmonCMS as well.
"""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests

from envoy2emon.demo.emoncms import Fault, StandInEmonCMS

FATAL_ERROR = "<br />\n<b>Fatal error</b>:  Uncaught RedisException: Connection refused"

# EmonCMS away, as a post may find it.
FAULTS = {
    "500": Fault((500, "")),
    "502": Fault((502, "<html><h1>502 Bad Gateway</h1></html>")),
    "fatal error": Fault((200, FATAL_ERROR)),
    "fatal error after two rows": Fault((200, FATAL_ERROR), applied=2),
    "empty": Fault((200, "")),
    "unauthorized": Fault((401, "Invalid API key")),
    "hang": Fault("hang"),
    "hang after applying": Fault("hang", applied=None),
    "cut": Fault("cut"),
    "cut after applying": Fault("cut", applied=None),
}


def connect(emoncms: StandInEmonCMS) -> http.client.HTTPConnection:
    """Return a connection that opens with its first request."""
    return http.client.HTTPConnection(urlsplit(emoncms.url).netloc, timeout=10)


def ask(emoncms: StandInEmonCMS, path: str, form: dict[str, Any] | None = None, key: str | None = "writekey") -> Any:  # noqa: ANN401
    """Return (status, body) of one request on its own connection."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection = connect(emoncms)
    connection.request("POST" if form else "GET", path, urlencode(form) if form else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def bulk(emoncms: StandInEmonCMS, rows: object, **params: object) -> Any:  # noqa: ANN401
    """Post rows with a key that may write."""
    data = rows if isinstance(rows, str) else json.dumps(rows)
    return ask(emoncms, "/emoncms/input/bulk.json", {"data": data, **(params or {"sentat": 0})})


@dataclass(frozen=True)
class AnyEmonCMS:
    """What the stand-in and a real EmonCMS have in common, over HTTP. url: the base path; node: one for this test."""

    url: str
    key: str
    node: str

    def read_inputs(self, node: str) -> dict[str, tuple[int, float]]:
        """Return each input's last (epoch s, value) by name; empty while the node does not exist."""
        inputs = self._ask("input/get.json", node=node)
        return {} if isinstance(inputs, str) else {name: (i["time"], i["value"]) for name, i in inputs.items()}

    def wait_for_inputs(
        self, node: str, predicate: Callable[[dict[str, tuple[int, float]]], bool], timeout: float = 10.0
    ) -> dict[str, tuple[int, float]]:
        """Return the inputs as soon as the predicate holds for them; AssertionError after `timeout` s."""
        end, pause = time.monotonic() + timeout, Event()
        while not predicate(inputs := self.read_inputs(node)):
            assert time.monotonic() < end, f"after {timeout} s: {inputs}"
            pause.wait(0.05)
        return inputs

    def delete_node(self, node: str) -> None:
        """Take a test's inputs out of a real EmonCMS, where an account holds 32 nodes."""
        for put in self._ask("input/list.json"):
            if put["nodeid"] == node:
                self._ask("input/delete.json", inputid=str(put["id"]))

    def _ask(self, action: str, **params: str) -> Any:  # noqa: ANN401
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self.key}"
            return session.get(f"{self.url}/{action}", params=params, timeout=10).json()
