"""Bytes -> events: whole, byte by byte, in any pieces."""

from collections.abc import Iterable
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.gateway.sse import MAX_EVENT, Decoder, LineTooLong

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


@settings(max_examples=300)
@given(PIECES, st.lists(st.integers(0, 12)))
def test_events_do_not_depend_on_the_cuts(pieces: list[bytes], sizes: list[int]) -> None:
    """Any bytes, cut in any way, give the same events."""
    data = b"".join(pieces) + b"\n\n"
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    assert decode([data]) == decode(bytewise(data)) == decode([*chunks, data[at:]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_comes_with_its_last_byte(end: str) -> None:
    """An event is delivered with its last byte; after a final CR the decoder does not wait for a possible LF."""
    decoder = Decoder()
    for number in ("1", "2"):
        *head, last = bytewise(f"data: {number}{end}{end}"[: -len(end) + 1 or None].encode())
        assert [decoder.feed(byte) for byte in head] == [[]] * len(head)
        assert decoder.feed(last) == [number]


CASES: dict[str, tuple[bytes, list[str]]] = {
    "mixed line ends": (b"data: 1\n\ndata:2\r\n\r\ndata:3\r\rdata:  4\n\r\ndata:5\r\n\n", ["1", "2", "3", " 4", "5"]),
    "several data lines": (b"data: a\r\ndata: b\ndata\rdata:c\n\n", ["a\nb\n\nc"]),
    "other fields": (b": comment\n\n:\n\nevent: x\nid: 7\n\ndatabase: 1\nDATA: 2\n data: 3\n\n", []),
    "without data": (b"data\n\ndata:\n\ndata: \n\n\n\n", []),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n", ["1"]),
    "UTF-8": ("data: é€😀\n\n".encode(), ["é€😀"]),
    "not UTF-8": (b"data: \xff\xe2\x82\n\n", ["\N{REPLACEMENT CHARACTER}" * 2]),
    "Python's line ends": (b"data: 1\x0b2\x1c3\xe2\x80\xa84\n\n", ["1\x0b2\x1c3\N{LINE SEPARATOR}4"]),
    "cut before the empty line": (b"data: cut\n", []),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case_of_the_standard(name: str) -> None:
    """Each case gives these events, whole and byte by byte, with empty chunks in between."""
    data, events = CASES[name]
    assert decode([data]) == events
    assert decode(chunk for byte in bytewise(data) for chunk in (byte, b"")) == events


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_line_over_64_kib_ends_it(size: int) -> None:
    """A line of 64 KiB is accepted and one byte more is not, with or without its end, in one piece or many."""
    longest = b"data: ".ljust(MAX_EVENT, b"x")
    for end in (b"", b"\r\n"):
        for line, fits in ((longest + end, True), (longest + b"x" + end, False)):
            chunks = [line[at : at + size] for at in range(0, len(line), size)]
            if fits:
                assert decode(chunks) == []
            else:
                with pytest.raises(LineTooLong, match="line of more than 65536 bytes"):
                    decode(chunks)


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000 + b"\n", b"data\n"])
def test_an_event_without_end_ends_it(line: bytes) -> None:
    """An event of more than 64 KiB in many lines raises LineTooLong, even if all of them are empty."""
    with pytest.raises(LineTooLong, match="event of more than 65536 bytes"):
        decode(repeat(line, 70_000))
