"""Rows in a bundle, as the backlog keeps what has waited for a while, in memory and on disk.

The law of this file: rows come out as they went in, digit by digit.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from envoy2emon.rows import Row


@dataclass(frozen=True, slots=True)
class Group:
    """Rows in a bundle: `count` rows from sequence number `first`; `shift` s make their times this boot's."""

    first: int
    count: int
    packed: bytes
    shift: float = 0.0

    @classmethod
    def pack(cls, first: int, rows: Sequence[Row]) -> "Group":
        """Compress rows: names cost nothing in a bundle, digits little."""
        lines = [f"[{row.at!r},{json.dumps(row.node)},{row.text()}]" for row in rows]
        return cls(first, len(rows), zlib.compress(f"[{','.join(lines)}]".encode()))

    def rows(self) -> list[Row]:
        """Return the rows as they went in, digit by digit."""
        entries = json.loads(zlib.decompress(self.packed), parse_float=Decimal, parse_int=Decimal)
        return [Row(float(at) + self.shift, node, inputs) for at, node, inputs in entries]
