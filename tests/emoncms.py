"""EmonCMS as the tests see it: what it answers, and what its inputs hold.

Every request goes over HTTP, so that a real EmonCMS can be asked as well.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import requests

from envoy2emon.demo.account import Account
from envoy2emon.demo.emoncms import StandInEmonCMS


@dataclass(frozen=True)
class AnyEmonCMS:
    """What the stand-in and a real EmonCMS have in common, over HTTP.

    url: the base URL; node: one for this test; account: the stand-in's, which counts energy by itself.
    """

    url: str
    key: str
    node: str
    account: Account | None = None

    def ask(
        self, action: str, form: dict[str, Any] | None = None, *, key: str | None = "", **query: str
    ) -> tuple[int, str]:
        """Return (status, body) of one request on its own connection; key: "" is the write key, None is no key."""
        key = self.key if key == "" else key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        method = "GET" if form is None else "POST"
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(
                method, f"{self.url}/{action}", params=query, data=form, headers=headers, timeout=10
            )
            return answer.status_code, answer.text

    def bulk(self, rows: object, **params: object) -> tuple[int, str]:
        """Post rows, given as a list or as JSON text, with times relative to now unless `params` say otherwise."""
        data = rows if isinstance(rows, str) else json.dumps(rows)
        return self.ask("input/bulk.json", {"data": data, **(params or {"sentat": 0})})

    def read_inputs(self, node: str) -> dict[str, tuple[int, float]]:
        """Return each input's last (epoch s, value) by name; empty while the node does not exist."""
        inputs = json.loads(self.ask("input/get.json", node=node)[1])
        return {} if isinstance(inputs, str) else {name: (i["time"], i["value"]) for name, i in inputs.items()}

    def wait_for_inputs(
        self, node: str, predicate: Callable[[dict[str, tuple[int, float]]], bool], timeout: float = 10.0
    ) -> dict[str, tuple[int, float]]:
        """Return the inputs as soon as the predicate holds for them. Raises AssertionError after `timeout` s."""
        end, pause = time.monotonic() + timeout, Event()
        while not predicate(inputs := self.read_inputs(node)):
            assert time.monotonic() < end, f"after {timeout} s: {inputs}"
            pause.wait(0.05)
        return inputs

    @contextmanager
    def counting(self, name: str) -> Iterator[Callable[[], float]]:
        """Count the energy of the node's only input by `power to kWh`; give a function that returns the feed's kWh."""
        if account := self.account:
            yield lambda: account.kwh(self.node, name)
            return
        (put,) = (put for put in json.loads(self.ask("input/list.json")[1]) if put["nodeid"] == self.node)
        made = self.ask("feed/create.json", tag=self.node, name=name, engine="5", options='{"interval":10}')
        feed = json.loads(made[1])["feedid"]
        processes = json.dumps([{"fn": "process__power_to_kwh", "args": [feed]}])
        self.ask("input/process/set.json", {"processlist": processes}, inputid=put["id"])
        yield lambda: float(json.loads(self.ask("feed/value.json", id=str(feed))[1]) or 0)
        self.ask("feed/delete.json", id=str(feed))

    def delete_node(self, node: str) -> None:
        """Delete a test's inputs from a real EmonCMS, where an account can hold only 32 nodes."""
        for put in json.loads(self.ask("input/list.json")[1]):
            if put["nodeid"] == node:
                self.ask("input/delete.json", inputid=str(put["id"]))


def bulk(emoncms: StandInEmonCMS, rows: object) -> None:
    """Post rows to the stand-in with the key that may write."""
    assert AnyEmonCMS(emoncms.url, emoncms.key, "").bulk(rows) == (200, "ok")
