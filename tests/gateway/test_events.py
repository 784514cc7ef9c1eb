from __future__ import annotations

import itertools

import pytest
from gateway.fake_engine import stream_bytes
from hypothesis import given
from hypothesis import strategies as st
from tandem_gateway.events import MAX_HELD_BYTES, EventRelay


def feed(data: bytes, cuts: list[int]) -> tuple[list[bytes], tuple[bytes, bool]]:
    relay = EventRelay()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    sent = [relay.feed(data[a:b]) for a, b in itertools.pairwise(edges) if a < b]
    return [part for part in sent if part], relay.end()


@given(cuts=st.lists(st.integers(0, 10**6), max_size=20), words=st.integers(0, 5))
def test_however_it_is_cut_the_bytes_are_the_same_and_events_stay_whole(cuts: list[int], words: int) -> None:
    data = stream_bytes(words)
    sent, (rest, complete) = feed(data, cuts)
    assert b"".join(sent) + rest == data
    assert complete
    assert all(part.endswith(b"\n\n") for part in sent)


@given(cut=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 10**6), max_size=5))
def test_a_stream_cut_anywhere_is_incomplete_and_sent_as_whole_events(cut: int, cuts: list[int]) -> None:
    whole = stream_bytes(4)
    data = whole[: cut % (len(whole) - len(b"\n\n"))]
    sent, (rest, complete) = feed(data, cuts)
    assert not complete
    assert rest == b""
    assert data.startswith(b"".join(sent))
    assert b"".join(sent) == data[: data.rfind(b"\n\n") + 2] if b"\n\n" in data else sent == []


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data: x\n\ndata: [DONE]\n", True),
        (b'data: x\n\ndata: {"error":{"message":"oom"}}\n\n', True),
        (b'event: response.completed\ndata: {"type":"response.completed"}\n\n', True),
        (b'event: response.failed\ndata: {"type":"response.failed"}\n\n', True),
        (b'event: response.output_text.delta\ndata: {"delta":"event: response.completed"}\n\n', False),
        (b"data: x\n\n", False),
        (b'data: {"text":"data: [DONE]"}\n\n', False),
        (b"data: [DONE]\n\ndata: more\n\n", False),
        (b"", False),
    ],
)
def test_how_a_stream_says_that_it_is_complete(data: bytes, complete: bool) -> None:
    assert feed(data, [])[1][1] is complete


def test_an_endless_event_is_not_held_for_ever() -> None:
    relay = EventRelay()
    assert relay.feed(b"x" * MAX_HELD_BYTES) == b""
    assert len(relay.feed(b"x")) == MAX_HELD_BYTES + 1
