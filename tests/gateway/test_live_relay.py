"""What the gateway shows of a live stream, and what it keeps: pure."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_contract.live_stream import END, MAX_RECORD_BYTES, comment
from tandem_gateway.events import MAX_HELD_BYTES, EventRelay, LiveRelay
from tandem_gateway.journal import Journal

events = st.text("ab:\n", max_size=6).map(lambda text: b"data: " + json.dumps(text).encode() + b"\n\n")
groups = st.lists(st.tuples(st.lists(events, max_size=3).map(b"".join), st.integers(0, 99)), max_size=6)


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(groups=groups, ending=events, cuts=st.lists(st.integers(0, 10_000), max_size=12), lost_at=st.integers(0, 10_000))
def test_events_and_their_records_go_together(
    groups: list[tuple[bytes, int]], ending: bytes, cuts: list[int], lost_at: int
) -> None:
    """Whatever the chunks, and wherever the pod is lost."""
    stream = b"".join(data + comment(str(number).encode()) for data, number in groups) + ending + END
    lost_at %= len(stream) + 1
    journal = Journal()
    relay = LiveRelay(journal)
    shown = b""
    for chunk in cut_up(stream[:lost_at], cuts):
        if ready := relay.feed(chunk):
            relay.commit()
            shown += ready
    rest, complete = relay.end()
    shown += rest
    relay.commit()
    envelope = json.loads(journal.envelope(b"{}", elapsed_s=0.0))
    kept = len(envelope["records"])
    assert envelope["records"] == [number for _, number in groups][:kept]
    assert complete == journal.ended == (lost_at == len(stream))
    assert shown == b"".join(data for data, _ in groups[:kept]) + (ending if complete else b"")


def test_a_group_that_is_too_large_to_hold_ends_the_net_and_not_the_stream() -> None:
    journal = Journal()
    relay = LiveRelay(journal)
    big = b"data: " + b"x" * MAX_HELD_BYTES + b"\n\n"
    shown = relay.feed(b"data: 1\n\n" + comment(b"1")) + relay.feed(big) + relay.feed(comment(b"2") + b"data: 2\n\n")
    relay.commit()
    assert shown == b"data: 1\n\n" + big + b"data: 2\n\n"
    assert journal.lost
    assert relay.feed(END) == b""
    assert relay.end() == (b"", True)


@pytest.mark.parametrize("cut", [1, 2])
def test_an_endless_event_is_not_held_for_ever(cut: int) -> None:
    """`cut`: bytes of what ends it that come later, when its beginning has gone on."""
    relay = LiveRelay(Journal())
    event = b"data: " + b"x" * MAX_HELD_BYTES + b"\n\n"
    shown = relay.feed(event[:-cut])
    assert len(shown) > MAX_HELD_BYTES
    shown += relay.feed(event[-cut:] + comment(b"1") + b"data: 2\n\n" + comment(b"2"))
    assert shown == event + b"data: 2\n\n"
    assert relay.feed(END) == b""
    assert relay.end() == (b"", True)


@pytest.mark.parametrize("relay", [LiveRelay(Journal()), EventRelay()], ids=["live", "plain"])
def test_an_event_in_many_pieces_is_looked_through_once(relay: LiveRelay | EventRelay) -> None:
    """Symptom: a pod that sent 4 MiB in small pieces, without the end of an event, kept the gateway busy for seconds.
    Cause: every piece was appended to a copy of all before it, and that searched from its beginning."""
    began = time.process_time()
    for _ in range(MAX_HELD_BYTES // 1024):
        assert relay.feed(b"x" * 1024) == b""
    assert time.process_time() - began < 0.5


def test_records_are_bounded() -> None:
    journal = Journal()
    record = b"7" * (MAX_RECORD_BYTES // 4)
    for _ in range(3):
        journal.add(record)
    assert not journal.lost
    for _ in range(3):
        journal.add(record)
    assert journal.lost
