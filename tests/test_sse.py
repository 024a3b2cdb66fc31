"""Bytes -> events: whole, byte by byte, in any pieces."""

import re
import tracemalloc
from collections.abc import Iterable
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.gateway.sse import MAX_EVENT, Decoder, LineTooLong
from tests import fixtures

METERED = [firmware for firmware in fixtures.FIRMWARES if firmware != "R3.9.36"]
LINE_ENDS = pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])

# What matters to a decoder, including bytes that are not UTF-8, so that random data reaches the edge cases.
PIECES = st.lists(
    st.sampled_from([b"data", b"data:", b"data: ", b":", b" ", b"\n", b"\r", b"\r\n", b"event: x", b"{}"])
    | st.sampled_from(["ü€😀".encode(), "\N{BYTE ORDER MARK}".encode(), "\N{LINE SEPARATOR}".encode()])
    | st.binary(max_size=3),
    max_size=40,
)


def decode(chunks: Iterable[bytes]) -> list[str]:
    """Return the events of one connection that delivers these chunks."""
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def bytewise(data: bytes) -> list[bytes]:
    """Cut after every byte."""
    return [data[at : at + 1] for at in range(len(data))]


def decode_in_every_way(data: bytes) -> list[str]:
    """Decode the whole, and check that single bytes, empty chunks and any two pieces give the same events."""
    events = decode([data])
    assert decode(bytewise(data)) == events
    assert decode(chunk for byte in bytewise(data) for chunk in (byte, b"")) == events
    assert all(decode([data[:at], data[at:]]) == events for at in range(len(data)))
    return events


def by_the_standard(data: bytes) -> list[str]:
    """Decode complete data step by step as the WHATWG standard says, and drop events without data."""
    events, buffer = [], ""
    for line in re.split("\r\n|\n|\r", data.decode(errors="replace").removeprefix("\N{BYTE ORDER MARK}"))[:-1]:
        name, _, value = line.partition(":")
        if not line:
            events.append(buffer.removesuffix("\n"))
            buffer = ""
        elif name == "data":
            buffer += value.removeprefix(" ") + "\n"
    return [event for event in events if event]


@settings(deadline=None, max_examples=300)
@given(PIECES, st.lists(st.integers(0, 12)))
def test_events_do_not_depend_on_the_cuts(pieces: list[bytes], sizes: list[int]) -> None:
    """Any bytes, cut in any way, give the events that the standard makes of them."""
    data = b"".join(pieces) + b"\n\n"
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    expected = by_the_standard(data)
    assert decode([data]) == decode(bytewise(data)) == decode([*chunks, data[at:]]) == expected


@LINE_ENDS
@pytest.mark.parametrize("firmware", METERED)
def test_what_a_gateway_sends(firmware: str, end: str) -> None:
    """A recorded stream gives its events, with each of the three line ends, whole and byte by byte."""
    data = fixtures.text(firmware, "stream_meter.txt").replace("\n", end).encode()
    assert decode([data]) == decode(bytewise(data)) == fixtures.events(firmware)


@LINE_ENDS
def test_an_event_comes_with_its_last_byte(end: str) -> None:
    """An event is delivered with its last byte; after a final CR the decoder does not wait for a possible LF."""
    decoder = Decoder()
    for number in ("1", "2"):
        *head, last = bytewise(f"data: {number}{end}{end}"[: -len(end) + 1 or None].encode())
        assert [decoder.feed(byte) for byte in head] == [[]] * len(head)
        assert decoder.feed(last) == [number]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: 1\n\ndata:2\r\n\r\ndata:3\r\rdata:  4\n\r\ndata:5\r\n\ndata:6\n\n", ["1", "2", "3", " 4", "5", "6"]),
        (b"data: a\r\ndata: b\ndata\rdata:c\n\n", ["a\nb\n\nc"]),
        (b": comment\n\n:\n\nevent: x\nid: 7\nretry: 5\n\n", []),
        (b"data\n\ndata:\n\ndata: \n\n\n\n", []),
        (b"database: 1\nDATA: 2\n data: 3\n\n", []),
        (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n", ["1"]),
        ("data: é€😀\n\n".encode(), ["é€😀"]),
        (b"data: \xff\xe2\x82\n\n", ["\N{REPLACEMENT CHARACTER}" * 2]),
        (b"data: 1\x0b2\x1c3\x00\xe2\x80\xa84\n\n", ["1\x0b2\x1c3\x00\N{LINE SEPARATOR}4"]),
        (b"data: cut", []),
        (b"data: cut\n", []),
    ],
    ids=[
        "mixed line ends",
        "several data lines",
        "comments and other fields",
        "without data",
        "fields of almost that name",
        "byte order mark at the start alone",
        "UTF-8",
        "not UTF-8",
        "what Python takes for line ends",
        "cut in a line",
        "cut before the empty line",
    ],
)
def test_each_case_of_the_standard(data: bytes, events: list[str]) -> None:
    """Each case gives these events, whole, byte by byte, and cut in two anywhere."""
    assert decode_in_every_way(data) == events


@pytest.mark.parametrize("size", [1000, 65536, 200_000])
@pytest.mark.parametrize("start", [b"data: ", b": ", b""])
def test_a_line_over_64_kib_ends_it(start: bytes, size: int) -> None:
    """A line of 64 KiB is accepted and one byte more is not, wherever it is cut and with or without its end."""
    longest = start.ljust(MAX_EVENT, b"x")
    for end in (b"", b"\n", b"\r\n"):
        for line, fits in ((longest + end, True), (longest + b"x" + end, False)):
            decoder, chunks = Decoder(), [line[at : at + size] for at in range(0, len(line), size)]
            if fits:
                assert [decoder.feed(chunk) for chunk in chunks] == [[]] * len(chunks)
            else:
                with pytest.raises(LineTooLong, match="line of more than 65536 bytes"):
                    [decoder.feed(chunk) for chunk in chunks]


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000 + b"\n", b"data\n", b"data:\r\n"])
def test_an_event_without_end_ends_it(line: bytes) -> None:
    """An event of more than 64 KiB in many lines raises LineTooLong, even if all of them are empty."""
    with pytest.raises(LineTooLong, match="event of more than 65536 bytes"):
        decode(repeat(line, 70_000))


@pytest.mark.parametrize("line", [b": comment\n", b"\n", b"data: 1\n\n", b"noise\r"])
def test_what_is_done_with_is_not_kept(line: bytes) -> None:
    """After 320 KiB of short lines the decoder holds less than 10 kB."""
    decoder, chunk = Decoder(), line * (16384 // len(line))
    tracemalloc.start()
    try:
        for _ in range(20):
            decoder.feed(chunk)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()
