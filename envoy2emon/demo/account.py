"""An EmonCMS account in memory, for the stand-in: it applies the rows in requests, and returns inputs and energy.

It behaves as EmonCMS 11.16.8 did when measured, faults included: a batch can be applied in part, and a row's inputs
are set before their processes run.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qsl

MAX_NODES = 32
KWH_GAP = 7200  # s; `power to kWh` adds nothing over a gap of this or longer (process_processlist.php)
_DELETED = re.compile(r"[^\w\s.-]")  # from names; EmonCMS: /[^\p{N}\p{L}_\s\-.]/u
_NOT_JSON = "Format error, json string supplied is not valid"


class _BadFormat(Exception):
    pass


@dataclass(frozen=True, slots=True)
class AppliedRow:
    """One row as EmonCMS applied it.

    time: its date, epoch s. inputs: numbers with the digits that were sent. arrived: monotonic s.
    """

    time: int
    node: str
    inputs: Mapping[str, Decimal]
    arrived: float


@dataclass(slots=True)
class Input:
    """An input's last value, the value's date in epoch s (None if Redis has forgotten both), and its energy feed.

    watt_seconds: what the process `power to kWh` has added up from values in W. counted: the date of the last of them.
    """

    time: int | None = None
    value: Decimal = Decimal(0)
    watt_seconds: Decimal = Decimal(0)
    counted: int | None = None

    def count(self, date: int, watts: Decimal) -> None:
        """Run `power to kWh`: add this value times the time since the feed's last date.

        Nothing is added for zero or negative time, or over a gap. The feed always takes the row's date, so after a date
        that goes back, the same time is counted again.
        """
        if self.counted is not None and 0 < date - self.counted < KWH_GAP:
            self.watt_seconds += (date - self.counted) * watts
        self.counted = date


class Account:
    """One account.

    nodes: its inputs, `nodes[node][name]`. rows: the newest `keep` rows (None: all), in the order in which they were
    applied. reject: called with each row's node and inputs; if it returns true, the row is a format error.
    plain_errors: errors are plain text, as in 2016.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.nodes: dict[str, dict[str, Input]] = {}
        self.rows: list[AppliedRow] = []
        self.applied = 0
        self.reject: Callable[[str, Mapping[str, Decimal]], bool] = lambda _node, _inputs: False
        self.plain_errors = False
        self._keep = keep

    def apply(
        self, action: str, params: Mapping[str, str], now: int, most: int | None = None, *, halfway: bool = False
    ) -> str:
        """Apply the rows of `input/bulk` or `input/post` up to the first bad one, and return EmonCMS's answer.

        now: the server's clock, epoch s, which dates rows that have an age or no date. most: PHP dies after this many
        rows. halfway: it dies in the row after those, when it has set the inputs but not run their processes.
        """
        try:
            for number, (date, node, sent) in enumerate((_bulk if action == "input/bulk" else _post)(params, now)):
                if number == most and not halfway:
                    break
                row = self._set(date, node, sent)
                if number == most:
                    break
                self._process(row)
        except _BadFormat as error:
            return self._error(str(error))
        except (ValueError, InvalidOperation, RecursionError):
            return self._error(_NOT_JSON)
        return '{"success": true}' if "fulljson" in params else "ok"

    def show(self, action: str, params: Mapping[str, str]) -> object:
        """Return the answer to `input/get`, for all nodes or one; False for any other action."""
        nodes = {node: {name: _view(put) for name, put in inputs.items()} for node, inputs in self.nodes.items()}
        if action != "input/get":
            return False
        inputs = nodes.get(_DELETED.sub("", params.get("node", "")))
        if "node" in params and inputs is None:
            return "Node does not exist"
        return nodes if inputs is None else inputs

    def kwh(self, node: str, name: str) -> float:
        """Return the kWh in the feed of an input's process `power to kWh`."""
        return float(self.nodes[node][name].watt_seconds / 3_600_000)

    def restart_redis(self) -> None:
        """Forget the inputs' values and dates, as a Redis that saves nothing does; feeds are on disk, so they stay."""
        for put in [put for inputs in self.nodes.values() for put in inputs.values()]:
            put.time = None

    def _set(self, date: int, node: str, sent: Mapping[str, object]) -> AppliedRow:
        # PHP's (float) makes null and text 0.
        inputs = {_DELETED.sub("", name): v if isinstance(v, Decimal) else Decimal(0) for name, v in sent.items()}
        node = _DELETED.sub("", node)
        if self.reject(node, inputs):
            raise _BadFormat("Format error, this row is rejected")
        if node not in self.nodes and len(self.nodes) >= MAX_NODES:
            limit = f"limit is {MAX_NODES}. Node '{node}' was ignored."
            raise _BadFormat(f"Error: Reached the maximal allowed number of different NodeIds, {limit}")
        stored = self.nodes.setdefault(node, {})
        for name, value in inputs.items():
            put = stored.setdefault(name, Input())
            put.time, put.value = date, value
        return AppliedRow(date, node, inputs, time.monotonic())

    def _process(self, row: AppliedRow) -> None:
        for name, value in row.inputs.items():
            self.nodes[row.node][name].count(row.time, value)
        self.rows.append(row)
        self.applied += 1
        if self._keep is not None:
            del self.rows[: -self._keep]

    def _error(self, words: str) -> str:
        return words if self.plain_errors else json.dumps({"success": False, "message": words})


def parameters(query_text: str, body: bytes, content_type: str, authorization: str) -> tuple[dict[str, str], str]:
    """Return a request's parameters, where the form overrides the query, and its key, "" for none.

    The key is taken from the query, else from the form, else from the header.
    """
    query = dict(parse_qsl(query_text, keep_blank_values=True))
    is_form = content_type.startswith("application/x-www-form-urlencoded")
    form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True)) if is_form else {}
    # EmonCMS passes each value through stripslashes, so JSON's escape \u00e9 arrives as u00e9.
    params = {name: re.sub(r"\\(.?)", r"\1", value) for name, value in (query | form).items()}
    return params, query.get("apikey", form.get("apikey", authorization.replace("Bearer ", "")))


def _view(put: Input) -> dict[str, object]:
    value = None if put.time is None else float(put.value)
    return {"time": put.time, "value": value, "processList": ""}


def _load(text: str) -> Any:  # noqa: ANN401
    # PHP's JSON has neither NaN nor Infinity; int() raises ValueError for both.
    return json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=int)


def _post(params: Mapping[str, str], now: int) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    with suppress(ValueError, RecursionError):
        inputs = _load(params.get("fulljson", ""))
        if isinstance(inputs, dict):
            date = inputs.pop("time", params.get("time", now))
            yield int(date), params.get("node", "0"), inputs
            return
    raise _BadFormat("Input in not a valid JSON object")


def _bulk(params: Mapping[str, str], now: int) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    rows = _load(params.get("data", ""))
    if not isinstance(rows, list) or not rows:
        raise _BadFormat(_NOT_JSON)
    if not isinstance(rows[-1], list) or not rows[-1]:
        raise _BadFormat("Format error, last item in bulk data does not contain any data")
    if sent := params.get("sentat"):
        reference = now - int(sent)
    else:
        reference = int(params["time"]) if "time" in params else now - int(rows[-1][0])
    for row in rows:
        if isinstance(row, list) and len(row) > 2:  # noqa: PLR2004 - EmonCMS skips shorter ones
            if isinstance(row[1], dict):
                raise _BadFormat("Format error, node must not be an object")
            plain = [value for value in row[2:] if not isinstance(value, dict)]
            inputs = {str(number): value for number, value in enumerate(plain, 1)}
            for value in row[2:]:
                inputs |= value if isinstance(value, dict) else {}
            yield reference + int(row[0]), str(row[1]), inputs
