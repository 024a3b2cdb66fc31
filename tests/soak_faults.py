"""The faults of a soak: what EmonCMS and the Envoy do wrong, one thing after the other, and for how long.

The law of this file: `random` alone decides what is drawn, and when a fault has ended all passes as before.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from envoy2emon.demo.gateway import Answer, SimulatedEnvoy
from envoy2emon.demo.logins import INVERTERS, STREAM
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.emoncms import FATAL_ERROR, FAULTS
from tests.faultproxy import FaultProxy

_SHORT = [1.0, 3.0, 8.0]
# In 8 s there is time for seven attempts if waits do not grow, in 40 s for all six that a minute may have.
_LONG = [8.0, 8.0, 8.0, 8.0, 8.0, 40.0]
_ANSWERS: list[tuple[int, str] | Literal["cut"]] = [(500, ""), (502, "<h1>"), (200, FATAL_ERROR), (200, ""), "cut"]
_GARBAGE = b'data: {"production":\n\n: a comment\n\ndata: []\n\nx'
_CANNED = {
    "401": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 301 Moved\r\nLocation: https://localhost/stream/meter\r\nContent-Length: 0\r\n\r\n",
}
_ENVOY = ["cut", "end", "garbage", "refuse", "reset", "stall", "drip", "flood", "wrong password", *_CANNED]


class EmonCMSFaults:
    """What EmonCMS and the way to it do wrong."""

    def __init__(self, emoncms: StandInEmonCMS, proxy: FaultProxy, random: Random) -> None:
        self.random = random
        self._emoncms = emoncms
        self._proxy = proxy
        self._what = ""

    @property
    def refusing(self) -> bool:
        """Tell whether the key is refused."""
        return self._what == "unauthorized"

    def begin(self) -> float:
        """Let something go wrong, and return for how many seconds it should."""
        random, lasts = self.random, self.random.choice([0.2, 2.0, 4.0, 8.0, 45.0])
        self._what = random.choice(["answer"] * 6 + ["refuse", "reset", "stall", "silence"] * 2 + ["unauthorized"])
        if self._what == "answer":
            self._emoncms.fault = Fault(random.choice(_ANSWERS), random.choice([0, 0, 1, 3, 20, None]))
        elif self._what == "silence":
            self._emoncms.fault = Fault("hang", applied=None)
        elif self._what == "unauthorized":
            self._emoncms.fault = FAULTS["unauthorized"]
        else:
            getattr(self._proxy, self._what)()
        if self._what == "reset":
            self._proxy.cut()
        return lasts

    def end(self) -> None:
        """Let all go well, but perhaps for the posts that come next."""
        self._emoncms.fault = None
        # What waited goes out as one post, or several: that is when an answer that gets lost matters most.
        for _ in range(self.random.choice([0, 1, 2])):
            applied = self.random.choice([1, 3, 10, None])
            self._emoncms.fail_next(Fault(self.random.choice(_ANSWERS), applied))
        if self._what in {"stall", "silence"}:
            self._proxy.cut()
        self._proxy.pass_through()
        self._emoncms.release()


class EnvoyFaults:
    """What the Envoy and the ways to it, one for each daemon, do wrong."""

    def __init__(self, envoy: SimulatedEnvoy, proxies: Sequence[FaultProxy], random: Random) -> None:
        self.random = random
        self._envoy = envoy
        self._proxies = proxies
        self._what = ""

    @property
    def refusing(self) -> bool:
        """Tell whether whoever asks for more than /info is refused."""
        return self._what == "wrong password"

    @property
    def failing(self) -> bool:
        """Tell whether no request that begins now can succeed, while each is seen."""
        return self._what == "reset" or self._what in _CANNED

    @property
    def losing(self) -> bool:
        """Tell whether it ends the connections that are open."""
        return self._what not in {"garbage", "reset", "wrong password"}

    def begin(self) -> float:
        """Let something go wrong, and return for how many seconds it should."""
        self._what, after = self.random.choice(_ENVOY), self.random.randrange(900)
        if self._what == "garbage":
            self._envoy.emit_raw(_GARBAGE)
        elif self._what == "end":
            self._envoy.end_streams()
        elif self._what == "wrong password":
            self._envoy.answers |= dict.fromkeys([STREAM, INVERTERS], Answer(401))
            self._envoy.end_streams()
        for proxy in self._proxies:
            if self._what == "cut":
                proxy.cut(after)
            elif self._what in _CANNED:
                proxy.canned(_CANNED[self._what])
                proxy.cut()
            elif self._what in {"refuse", "reset", "stall", "drip", "flood"}:
                getattr(proxy, self._what)()
        return self.random.choice(_LONG if self.failing or self.refusing else _SHORT)

    def end(self) -> None:
        """Let all go well."""
        self._envoy.answers.clear()
        for proxy in self._proxies:
            if self._what in {"stall", "drip", "flood"}:
                proxy.cut()
            proxy.pass_through()
