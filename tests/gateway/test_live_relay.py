"""What the gateway shows of a live stream, and what it keeps: pure."""

from __future__ import annotations

import itertools
import json
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_contract.live_stream import END, MAX_RECORD_BYTES, comment
from tandem_gateway.events import MAX_HELD_BYTES, EventRelay, LiveRelay
from tandem_gateway.journal import Journal, Journals

events = st.text("ab:\n", max_size=6).map(lambda text: b"data: " + json.dumps(text).encode() + b"\n\n")
groups = st.lists(st.tuples(st.lists(events, max_size=3).map(b"".join), st.integers(0, 99)), max_size=6)


def new_journal() -> Journal:
    return Journal(Journals(4 * MAX_RECORD_BYTES, lambda reason: None))


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(
    groups=groups,
    ending=events,
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    committed=st.lists(st.booleans(), min_size=13, max_size=13),
)
def test_what_was_not_on_its_way_is_returned_again(
    groups: list[tuple[bytes, int]], ending: bytes, cuts: list[int], committed: list[bool]
) -> None:
    """A relay that is interrupted between taking a chunk and sending it goes on later, at the same pod."""
    stream = b"".join(data + comment(str(number).encode()) for data, number in groups) + ending + END
    journal = new_journal()
    relay = LiveRelay(journal)
    shown = b""
    for chunk, commits in zip([*cut_up(stream, cuts), b""], [*committed[: len(cuts) + 1], True], strict=False):
        ready = relay.feed(chunk)
        if ready and commits:
            relay.commit()
            shown += ready
    if ready := relay.feed(b""):
        relay.commit()
        shown += ready
    assert relay.end() == (b"", True)
    assert shown == b"".join(data for data, _ in groups) + ending
    assert (journal.length, journal.ended, journal.size) == (len(groups), True, 0)


@given(groups=groups, ending=events, cuts=st.lists(st.integers(0, 10_000), max_size=12), lost_at=st.integers(0, 10_000))
def test_events_and_their_records_go_together(
    groups: list[tuple[bytes, int]], ending: bytes, cuts: list[int], lost_at: int
) -> None:
    """Whatever the chunks, and wherever the pod is lost."""
    stream = b"".join(data + comment(str(number).encode()) for data, number in groups) + ending + END
    lost_at %= len(stream) + 1
    journal = new_journal()
    relay = LiveRelay(journal)
    shown = b""
    for chunk in cut_up(stream[:lost_at], cuts):
        if ready := relay.feed(chunk):
            relay.commit()
            shown += ready
    rest, complete = relay.end()
    shown += rest
    relay.commit()
    kept = journal.length
    if not complete:
        envelope = json.loads(journal.envelope(b"{}", elapsed_s=0.0))
        assert envelope["records"] == [number for _, number in groups][:kept]
    assert complete == journal.ended == (lost_at == len(stream))
    assert shown == b"".join(data for data, _ in groups[:kept]) + (ending if complete else b"")


def test_a_group_that_is_too_large_to_hold_ends_the_net_and_not_the_stream() -> None:
    journal = new_journal()
    relay = LiveRelay(journal)
    big = b"data: " + b"x" * MAX_HELD_BYTES + b"\n\n"
    shown = b""
    for chunk in (b"data: 1\n\n" + comment(b"1"), big, comment(b"2") + b"data: 2\n\n"):
        shown += relay.feed(chunk)
        relay.commit()
    assert shown == b"data: 1\n\n" + big + b"data: 2\n\n"
    assert journal.lost
    assert relay.feed(END) == b""
    assert relay.end() == (b"", True)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_an_endless_event_is_not_held_for_ever(cut: int) -> None:
    """`cut`: its last bytes, which come when its beginning has gone on; no record, whatever they begin with."""
    relay = LiveRelay(new_journal())
    event = b"data: " + b"x" * MAX_HELD_BYTES + b"::y\n\n"
    shown = relay.feed(event[:-cut])
    assert len(shown) > MAX_HELD_BYTES
    relay.commit()
    shown += relay.feed(event[-cut:] + comment(b"1") + b"data: 2\n\n" + comment(b"2"))
    assert shown == event + b"data: 2\n\n"
    relay.commit()
    assert relay.feed(END) == b""
    assert relay.end() == (b"", True)


@pytest.mark.parametrize("relay", [LiveRelay(new_journal()), EventRelay()], ids=["live", "plain"])
def test_an_event_in_many_pieces_is_looked_through_once(relay: LiveRelay | EventRelay) -> None:
    """Symptom: a pod that sent 4 MiB in small pieces, without the end of an event, kept the gateway busy for seconds.
    Cause: every piece was appended to a copy of all before it, and that searched from its beginning."""
    began = time.process_time()
    for _ in range(MAX_HELD_BYTES // 1024):
        assert relay.feed(b"x" * 1024) == b""
    assert time.process_time() - began < 0.5


def test_records_are_bounded() -> None:
    journal = new_journal()
    record = b"7" * (MAX_RECORD_BYTES // 4)
    for _ in range(3):
        journal.add(record)
    assert not journal.lost
    for _ in range(3):
        journal.add(record)
    assert journal.lost


def test_records_are_given_up_once() -> None:
    """For the first reason: a relay of an event that is too large says so with each piece."""
    given_up: list[str] = []
    with Journals(100, given_up.append).open() as journal:
        journal.give_up("event")
        journal.give_up("length")
    assert given_up == ["event"]


def test_beyond_the_limit_the_largest_journal_is_given_up() -> None:
    given_up: list[str] = []
    journals = Journals(100, given_up.append)
    with journals.open() as small, journals.open() as large, journals.open() as later:
        small.add(b"1" * 20)
        large.add(b"2" * 40)
        large.add(b"3" * 19)
        later.add(b"4" * 20)
        assert (journals.size, given_up) == (100, [])
        later.add(b"5" * 5)
        assert [journal.lost for journal in (small, large, later)] == [False, True, False]
        assert (journals.size, given_up) == (46, ["memory"])
        large.add(b"6" * 90)
        assert (journals.size, given_up) == (46, ["memory"])
        assert json.loads(later.envelope(b"{}", elapsed_s=0.0))["records"] == [int("4" * 20), 55555]
        later.add(b"7" * 90)
        assert [journal.lost for journal in (small, later)] == [False, True]
        assert (journals.size, given_up) == (20, ["memory", "memory"])
        small.end()
        assert journals.size == 0
    with journals.open() as last:
        last.add(b"8" * 50)
    assert journals.size == 0


def test_a_journal_is_forgotten_with_its_stream() -> None:
    journals = Journals(100, lambda reason: None)
    with journals.open() as journal:
        kept = weakref.ref(journal)
    del journal
    assert kept() is None


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "end", "give up"]), st.integers(1, 60))))
def test_the_sum_is_right_and_within_bounds(steps: list[tuple[int, str, int]]) -> None:
    journals = Journals(100, lambda reason: None)
    with journals.open() as a, journals.open() as b, journals.open() as c, journals.open() as d:
        opened = (a, b, c, d)
        for index, action, size in steps:
            journal = opened[index]
            match action:
                case "add" if not journal.ended:
                    journal.add(b"9" * size)
                case "end":
                    journal.end()
                case "give up":
                    journal.give_up("event")
            assert journals.size == sum(journal.size for journal in opened) <= 100
    assert journals.size == 0
