from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.bench.serve.sse import SseParser

line = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
events = st.lists(st.lists(line, min_size=1, max_size=3), max_size=6)


def parse(stream: bytes, cuts: list[int]) -> list[bytes]:
    parser = SseParser()
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(borders)]
    return [event for chunk in chunks for event in parser.feed(chunk)]


@given(
    events=events, ending=st.sampled_from([b"\n", b"\r\n", b"\r"]), cuts=st.lists(st.integers(0, 10_000), max_size=30)
)
def test_any_split_of_the_bytes_gives_the_same_events(
    events: list[list[bytes]], ending: bytes, cuts: list[int]
) -> None:
    stream = b"".join(
        b": comment" + ending + b"".join(b"data: " + text + ending for text in lines) + b"id: 7" + ending + ending
        for lines in events
    )
    assert parse(stream, cuts) == [b"\n".join(lines) for lines in events]


def test_byte_by_byte() -> None:
    stream = 'data: {"text":"日本"}\r\n\r\ndata: [DONE]\r\n\r\n'.encode()
    assert parse(stream, list(range(len(stream)))) == ['{"text":"日本"}'.encode(), b"[DONE]"]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data:x\n\n", [b"x"]),
        (b"data:  x\n\n", [b" x"]),
        (b"data\n\n", [b""]),
        (b"dataset: x\n\n", []),
        (b"event: e\n\n\n\n", []),
        (b"data: unfinished\n", []),
    ],
)
def test_fields(stream: bytes, expected: list[bytes]) -> None:
    assert parse(stream, []) == expected


def test_an_event_that_ends_in_cr_is_not_held_back() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == [b"a"]
    assert parser.feed(b"\ndata: b\r\n\r\n") == [b"b"]
