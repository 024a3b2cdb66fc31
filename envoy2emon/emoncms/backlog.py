"""The rows that wait for EmonCMS, oldest first, in blocks. A block is posted, saved and removed as a whole.

While EmonCMS answers, a block is delivered before it is old enough to be saved, so nothing is written to disk.
"""

import json
import logging
import threading
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal

from envoy2emon.emoncms.disk import Disk, Saved
from envoy2emon.rows import Row, Undated, inputs_json

BLOCK_ROWS = 100  # with 36 inputs each they keep EmonCMS on a Raspberry Pi busy for 13 s
# A kill or a power cut may cost 60 s of readings at most. Half of that, checked every 5 s, leaves time for a slow disk.
SAVE_AFTER_S = 30.0
# Limits packed rows in memory; on disk they take a tenth more. A day of 36 inputs with a gateway's digits is 13 MB.
MOST_BYTES = 28 * 1024 * 1024
LOSSES_SAID_EVERY_S = 3600.0

_log = logging.getLogger(__name__)


class Block:
    """Rows that stay together; a row takes 5 kB unpacked, 0.15 kB packed.

    times: each row's date if `dated`, else its moment. since: when the first row came, in monotonic seconds. number:
    its place in the order of blocks.
    """

    def __init__(self, rows: Sequence[Row | Undated], since: float, number: int) -> None:
        self.times = array("d", [row.date if isinstance(row, Row) else row.moment for row in rows])
        self.dated = isinstance(rows[0], Row)
        self.since = since
        self.number = number
        self.saved = False
        self.guessed = False  # its dates on disk are by this computer's clock, because EmonCMS had not answered
        self.packed = b""
        self._inputs: Sequence[Mapping[str, Decimal]] | None = [row.inputs for row in rows]

    @classmethod
    def from_disk(cls, saved: Saved, since: float) -> "Block":
        """Return a block that an earlier run saved; its dates are final, because its moments are not saved."""
        block = cls([Row(date, {}) for date in saved.dates], since, saved.number)
        block.saved, block.packed, block._inputs = True, saved.packed, None
        return block

    def rows(self) -> list[Row]:
        """Return the rows of a block that has dates."""
        inputs = self._inputs
        if inputs is None:
            inputs = json.loads(zlib.decompress(self.packed), parse_float=Decimal, parse_int=Decimal)
        return [Row(int(date), each) for date, each in zip(self.times, inputs, strict=True)]

    def dates(self, ahead: float) -> list[int]:
        """Return each row's date; for a row that has none yet, its moment plus `ahead`."""
        return [int(at) if self.dated else int(at + ahead) for at in self.times]

    def pack(self) -> None:
        """Compress the inputs, because they have to wait."""
        if self._inputs is not None:
            self.packed = zlib.compress(f"[{','.join(map(inputs_json, self._inputs))}]".encode())
            self._inputs = None


class Backlog:
    """The rows of one daemon. Its main thread appends and saves, its delivery thread takes the oldest block.

    keep_s: how long a row may wait, in seconds. _saving guards the disk and what was saved, _changed guards rows and
    blocks. Code that needs both takes _saving first. append() and oldest() take only _changed, so they never wait for
    the disk.
    """

    def __init__(
        self,
        disk: Disk,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._disk = disk
        self._keep_s = keep_s
        self._clock, self._wall = clock, wall
        self._saving = threading.Lock()
        self._changed = threading.Condition()
        now = clock()
        self._blocks = deque(Block.from_disk(saved, now) for saved in disk.load())
        self._to_delete: list[int] = []  # numbers of blocks delivered or dropped, but still on disk
        self._loose: list[Row | Undated] = []
        self._since = now  # when the first loose row came
        self._number = max((block.number for block in self._blocks), default=0)
        self._stopping = False
        self._lost, self._lost_said_at = 0, float("-inf")

    def __len__(self) -> int:
        """Return the number of rows that wait."""
        with self._changed:
            return sum(len(block.times) for block in self._blocks) + len(self._loose)

    def append(self, rows: Sequence[Row | Undated]) -> None:
        """Add new rows, all of them Row or all Undated."""
        with self._changed:
            for row in rows:
                self._since = self._since if self._loose else self._clock()
                self._loose.append(row)
                if len(self._loose) == BLOCK_ROWS:
                    self._close_block().pack()
            self._changed.notify()

    def put_back(self, rows: Sequence[Row]) -> None:
        """Put rows back, in front of all others."""
        with self._saving:
            with self._changed:
                if self._blocks and self._blocks[0].dated:
                    oldest = self._blocks.popleft()
                    joined = Block([*rows, *oldest.rows()], oldest.since, oldest.number)
                    joined.saved = oldest.saved
                else:
                    joined = Block(rows, self._clock(), self._next_number())
                self._blocks.appendleft(joined)
            self._save([joined], None)

    def oldest(self, patience: float) -> Block | None:
        """Return the oldest block; None if no row comes within `patience` s, or before stop_waiting()."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._loose or self._stopping, patience)
            if self._loose and not self._blocks:
                self._close_block()
            return self._blocks[0] if self._blocks else None

    def stop_waiting(self) -> None:
        """Make oldest() return at once, now and from now on."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def fix_dates(self, block: Block, date: Callable[[float], int]) -> None:
        """Give the rows of a block their final dates, on disk too if it was saved."""
        with self._saving:
            if not block.dated:
                block.times = array("d", map(date, block.times))
                block.dated = True
                if block.saved:
                    self._save([block], None)

    def done(self, block: Block) -> None:
        """Remove a block, on disk too, because EmonCMS has applied or rejected its rows."""
        with self._saving:
            with self._changed:
                if self._blocks and self._blocks[0] is block:
                    self._blocks.popleft()
            self._forget_on_disk([block])

    def save(self, ahead: float | None, *, now: bool = False) -> None:
        """Save rows that have waited for SAVE_AFTER_S, or all if `now`; drop the oldest beyond keep_s or MOST_BYTES.

        ahead: EmonCMS's clock minus the monotonic one, None if EmonCMS has not answered yet.
        """
        due = float("inf") if now else self._clock() - SAVE_AFTER_S
        with self._saving:
            with self._changed:
                if self._disk.renewed:  # the file was set aside, so all blocks are saved again
                    self._disk.renewed = False
                    for block in self._blocks:
                        block.saved = False
                if self._loose and self._since <= due:
                    self._close_block()
                lost = list(self._beyond_bounds())
                new = [block for block in self._blocks if not block.saved and block.since <= due]
                redated = [block for block in self._blocks if block.guessed and ahead is not None]
            self._forget_on_disk(lost)
            self._save(new + redated, ahead)
        self._say_losses(sum(len(block.times) for block in lost))

    def _save(self, blocks: list[Block], ahead: float | None) -> None:
        """Save blocks, or save them again with other dates or rows; the caller holds only _saving."""
        for block in blocks:
            block.pack()  # a day of them would take 400 MB unpacked
        by = self._wall() - self._clock() if ahead is None else ahead
        if blocks and self._disk.save([Saved(block.number, block.dates(by), block.packed) for block in blocks]):
            for block in blocks:
                block.saved, block.guessed = True, ahead is None and not block.dated

    def _close_block(self) -> Block:
        # A post is in order of date, but an inverter's report may be older than one that came before it.
        rows = sorted(self._loose, key=lambda row: row.date if isinstance(row, Row) else row.moment)
        block = Block(rows, self._since, self._next_number())
        self._blocks.append(block)
        self._loose = []
        return block

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _beyond_bounds(self) -> Iterator[Block]:
        """Remove and yield the oldest blocks beyond keep_s or MOST_BYTES; the caller holds _changed."""
        oldest = self._clock() - self._keep_s
        size = sum(len(block.packed) for block in self._blocks)
        while self._blocks and (self._blocks[0].since < oldest or size > MOST_BYTES):
            block = self._blocks.popleft()
            size -= len(block.packed)
            yield block

    def _forget_on_disk(self, blocks: list[Block]) -> None:
        """Delete blocks from the disk, and those that it failed to delete before; the caller holds only _saving."""
        self._to_delete += [block.number for block in blocks if block.saved]
        if self._to_delete:
            with self._changed:
                last = not any(block.saved for block in self._blocks)
            if self._disk.delete(self._to_delete, last=last):
                self._to_delete = []

    def _say_losses(self, count: int) -> None:
        """Log how many rows were dropped: the first at once, then once an hour at most."""
        self._lost += count
        if self._lost and self._clock() - self._lost_said_at >= LOSSES_SAID_EVERY_S:
            _log.warning(
                "the backlog is full (BACKLOG_HOURS, or its size): its oldest rows are lost (%d). Is EmonCMS down?",
                self._lost,
            )
            self._lost, self._lost_said_at = 0, self._clock()
