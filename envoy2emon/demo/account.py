"""An EmonCMS account in memory, for the stand-in: requests' parameters in, rows applied, inputs out.

The law of this file: it does what EmonCMS 11.16.8 did when measured, its lack of atomicity included.
"""

import json
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

MAX_BODY = 8 * 1024 * 1024  # PHP's post_max_size: a larger form is as good as empty
MAX_NODES = 32
KWH_GAP = 7200  # s; `power to kWh` adds nothing over a longer gap (process_processlist.php)
_DELETED = re.compile(r"[^\w\s.-]")  # from names; EmonCMS: /[^\p{N}\p{L}_\s\-.]/u
_NOT_JSON = "Format error, json string supplied is not valid"


class _BadFormat(Exception):
    pass


@dataclass(frozen=True, slots=True)
class AppliedRow:
    """One row as EmonCMS applied it: `time` its date, epoch s; `arrived` monotonic s; numbers in the digits sent."""

    time: int
    node: str
    inputs: Mapping[str, Decimal]
    arrived: float


@dataclass(slots=True)
class Input:
    """The last applied value, its date in epoch s, and what the process `power to kWh` has made of the values in W."""

    time: int
    value: Decimal
    kwh: float = 0.0


class Account:
    """One account: `nodes[node][name]`; `rows` in the order of their application, the newest `keep` of them.

    `reject` is asked of each row (node, inputs); where it holds, the row is a format error.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.nodes: dict[str, dict[str, Input]] = {}
        self.rows: list[AppliedRow] = []
        self.applied = 0
        self.reject: Callable[[str, Mapping[str, Decimal]], bool] = lambda _node, _inputs: False
        self._keep = keep

    def apply(self, action: str, params: Mapping[str, str], now: int, limit: int | None = None) -> str:
        """Apply the rows of `input/bulk` or `input/post` up to a bad one, at most `limit`; return EmonCMS's words.

        now: the server's clock, epoch s.
        """
        try:
            for date, node, sent in islice((_bulk if action == "input/bulk" else _post)(params, now), limit):
                self._apply(date, node, sent)
        except _BadFormat as error:
            return json.dumps({"success": False, "message": str(error)})
        except (ValueError, InvalidOperation, RecursionError):
            return json.dumps({"success": False, "message": _NOT_JSON})
        return '{"success": true}' if "fulljson" in params else "ok"

    def show(self, action: str, params: Mapping[str, str]) -> object:
        """Answer `input/get` (all nodes, one node, one input) and `input/list`; False to any other action."""
        nodes = {node: {name: _view(put) for name, put in inputs.items()} for node, inputs in self.nodes.items()}
        if action == "input/list":
            named = [(node, name, put) for node, inputs in nodes.items() for name, put in inputs.items()]
            return [{"id": i, "nodeid": node, "name": name, **put} for i, (node, name, put) in enumerate(named, 1)]
        if action != "input/get":
            return False
        inputs = nodes.get(_DELETED.sub("", params.get("node", "")))
        if "node" in params and inputs is None:
            return "Node does not exist"
        if inputs is None or "name" not in params:
            return inputs or nodes
        return inputs.get(_DELETED.sub("", params["name"]), "Node variable does not exist")

    def _apply(self, date: int, node: str, sent: Mapping[str, object]) -> None:
        # PHP's (float) makes null and text 0.
        inputs = {_DELETED.sub("", name): v if isinstance(v, Decimal) else Decimal(0) for name, v in sent.items()}
        node = _DELETED.sub("", node)
        if self.reject(node, inputs):
            raise _BadFormat("Format error, this row is rejected")
        if node not in self.nodes and len(self.nodes) >= MAX_NODES:
            raise _BadFormat(f"Error: Reached the maximal allowed number of diferent NodeIds, limit is {MAX_NODES}")
        stored = self.nodes.setdefault(node, {})
        for name, value in inputs.items():
            put = stored.setdefault(name, Input(date, value))
            if 0 < (elapsed := date - put.time) < KWH_GAP:
                put.kwh += elapsed * float(value) / 3_600_000
            put.time, put.value = date, value  # also backwards, so `power to kWh` counts a repeated batch again
        self.rows.append(AppliedRow(date, node, inputs, time.monotonic()))
        self.applied += 1
        if self._keep is not None:
            del self.rows[: -self._keep]


def parameters(query_text: str, body: bytes, content_type: str, authorization: str) -> tuple[dict[str, str], str]:
    """Return a request's parameters and its key, empty for none: from the query, then the form, then the header."""
    query = dict(parse_qsl(query_text, keep_blank_values=True))
    is_form = content_type.startswith("application/x-www-form-urlencoded") and len(body) <= MAX_BODY
    form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True)) if is_form else {}
    # Each value goes through stripslashes: JSON's escape \u00e9 arrives as u00e9.
    params = {name: re.sub(r"\\(.?)", r"\1", value) for name, value in (query | form).items()}
    if "cb" in query:
        try:
            params["data"] = zlib.decompress(body).decode(errors="replace")
        except zlib.error:
            params["data"] = ""
    return params, query.get("apikey", form.get("apikey", authorization.replace("Bearer ", "")))


def _view(put: Input) -> dict[str, object]:
    return {"time": put.time, "value": float(put.value), "processList": ""}


def _load(text: str) -> Any:  # noqa: ANN401
    # PHP knows neither NaN nor Infinity, and int raises ValueError for both.
    return json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=int)


def _post(params: Mapping[str, str], now: int) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    inputs = _load(params.get("fulljson", ""))
    if not isinstance(inputs, dict):
        raise _BadFormat("Input must be a JSON object")
    date = inputs.pop("time", params.get("time", now))
    yield int(date), params.get("node", "0"), inputs


def _bulk(params: Mapping[str, str], now: int) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    rows = _load(params.get("data", ""))
    if not isinstance(rows, list) or not rows:
        raise _BadFormat(_NOT_JSON)
    if not isinstance(rows[-1], list) or not rows[-1]:
        raise _BadFormat("Format error, last item in bulk data does not contain any data")
    if sent := params.get("sentat", params.get("offset")):
        reference = now - int(sent)
    else:
        reference = int(params["time"]) if "time" in params else now - int(rows[-1][0])
    for row in rows:
        if isinstance(row, list) and len(row) > 2:  # noqa: PLR2004 - EmonCMS passes over shorter ones
            if isinstance(row[1], dict):
                raise _BadFormat("Format error, node must not be an object")
            plain = [value for value in row[2:] if not isinstance(value, dict)]
            inputs = {str(number): value for number, value in enumerate(plain, 1)}
            for value in row[2:]:
                inputs |= value if isinstance(value, dict) else {}
            yield reference + int(row[0]), str(row[1]), inputs
