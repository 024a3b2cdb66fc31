"""Three threads on requests and nothing else, the least that our design can cost: `python -m tests.bare`.

One reads, one names the inputs, and one posts a prepared request over a kept connection, as in the stream daemon.
Settings come from the environment, as in tests/reference.py.
"""

import json
import os
import queue
import threading
import time
from decimal import Decimal
from typing import Any

import requests
from requests.auth import HTTPDigestAuth

from tests.reference import KEYS, SECTIONS

events: queue.SimpleQueue[tuple[float, dict[str, Any]]] = queue.SimpleQueue()
rows: queue.SimpleQueue[str] = queue.SimpleQueue()


def read() -> None:
    """Put each event of the stream, and when it came, into `events`."""
    login = HTTPDigestAuth("installer", os.environ["ENVOY_PASSWORD"])
    stream = requests.get(f"http://{os.environ['ENVOY_HOST']}/stream/meter", auth=login, stream=True, timeout=60)
    decoder, rest = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal), b""
    while data := stream.raw.read1(65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                events.put((time.time(), decoder.decode(line[6:].decode())))


def post() -> None:
    """Post the rows that wait, up to 100 at once."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {os.environ['EMONCMS_APIKEY']}"
    url = f"{os.environ['EMONCMS_URL']}/input/bulk"
    request, adapter = session.prepare_request(requests.Request("POST", url)), session.get_adapter(url)
    while True:
        waiting = [rows.get()]
        while len(waiting) < 100 and not rows.empty():
            waiting.append(rows.get())
        request.prepare_body({"time": "0", "data": f"[{','.join(waiting)}]"}, None)
        answer = adapter.send(request, timeout=60).text
        assert answer == "ok", answer


def main() -> None:
    """Name the inputs of each event."""
    for work in read, post:
        threading.Thread(target=work, daemon=True).start()
    while True:
        at, data = events.get()
        inputs = ",".join(
            f'"{name}_{phase}_{key}":{data[section][phase][short]}'
            for name, section in SECTIONS.items()
            for phase in data[section]
            for key, short in KEYS.items()
        )
        rows.put(f'[{at:.0f},"Envoy-S",{{{inputs}}}]')


if __name__ == "__main__":
    main()
