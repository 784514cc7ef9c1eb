"""Writer and reader without sockets: however the stream is cut, the same bytes land."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ledger import FragmentHeader, Hello, IncomingJob
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.plan import layout_digest
from tandem_runtime.transfer.protocol import ReceiveJob, TransferFault
from tandem_runtime.transfer.tcp import wire
from tandem_runtime.transfer.tcp.reader import FrameReader
from tandem_runtime.transfer.tcp.writer import FrameWriter
from transfer.rig import TOKEN, WatchedMemory, layout

BIG = layout(heads=1, head_dim=20_000)
"""A page is larger than a slice."""
SMALL = layout(heads=1)


@settings(deadline=None, max_examples=30)
@given(
    shape_and_cuts=st.one_of(
        st.tuples(st.just(SMALL), st.lists(st.integers(1, 2000), min_size=1)),
        st.tuples(st.just(BIG), st.lists(st.integers(10_000, 400_000), min_size=1)),
    ),
    beats=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_any_cut_of_the_stream_lands_the_same_pages(
    shape_and_cuts: tuple[KVLayout, list[int]], beats: list[bool]
) -> None:
    shape, cuts = shape_and_cuts
    pages = 4
    source = np.random.default_rng(1).integers(0, 256, (pages, shape.page_bytes), dtype=np.uint8)
    queue: list[tuple[int, int]] = []
    slots = [(3, 1), (0, 2), (2, 3), (1, 4)]
    writer = FrameWriter(PageMemory(memoryview(source), shape, 0), range(1), 0, slots, queue, b"")  # type: ignore[arg-type]
    stream = bytearray()
    for index, beat in enumerate(beats):
        if beat and index:
            writer.heartbeat()
        queue.append((index, index))
        taken = 0
        while buffers := writer.buffers():
            count = min(cuts[taken % len(cuts)], sum(map(len, buffers)))
            stream += b"".join(buffers)[:count]
            writer.advance(count)
            taken += 1
    assert writer.done
    assert writer.payload_bytes == source.nbytes

    zone = np.zeros_like(source)
    sink = WatchedMemory(PageMemory(memoryview(zone), shape, 0), memoryview(zone))  # type: ignore[arg-type]
    job = IncomingJob(ReceiveJob(job_id="j", data_token=TOKEN, sender_tp=1, slots=slots), shape, 0)
    reader = FrameReader(job.claim(hello(shape)), sink)
    rest, turn = memoryview(stream), 0
    while rest:
        room = cuts[turn % len(cuts)]
        turn += 1
        filled = 0
        for buffer in reader.buffers():
            part = min(len(buffer), room - filled, len(rest))
            buffer[:part] = rest[:part]
            rest = rest[part:]
            filled += part
        reader.advance(filled)
    assert job.complete
    assert sink.open_views == 0
    np.testing.assert_array_equal(zone[[page for page, _ in slots]], source)


def hello(shape: KVLayout = SMALL) -> Hello:
    return Hello(
        job_id="j",
        data_token=TOKEN,
        sender_rank=0,
        sender_tp=1,
        receiver_rank=0,
        layout=layout_digest(shape),
    )


def test_a_dropped_reader_gives_its_view_back() -> None:
    page = memoryview(bytearray(SMALL.page_bytes))
    sink = WatchedMemory(PageMemory(page, SMALL, 0), page)
    job = IncomingJob(ReceiveJob(job_id="j", data_token=TOKEN, sender_tp=1, slots=[(0, 1)]), SMALL, 0)
    reader = FrameReader(job.claim(hello()), sink)
    header = wire.pack_header(FragmentHeader(0, 1, 0, SMALL.page_bytes))
    reader.buffers()[0][:] = header
    reader.advance(len(header))
    assert sink.open_views == 1
    reader.drop()
    assert sink.open_views == 0


def test_text_that_is_no_utf8_is_a_bad_message_not_a_bug() -> None:
    """msgspec says so with an error that is no `DecodeError`; a stranger's bytes must not look like a fault of ours."""
    hello = Hello(job_id="job", data_token="t", sender_rank=0, sender_tp=1, receiver_rank=0, layout="l")
    with pytest.raises(TransferFault, match="bad hello"):
        wire.unpack_hello(msgspec.msgpack.encode(hello).replace(b"\xa3job", b"\xa3\xff\xfe\xfd"))
    verdict = wire.pack_verdict(wire.Verdict(detail="why"))
    assert wire.unpack_verdict(verdict.replace(b"\xa3why", b"\xa3\xff\xfe\xfd")) is None
