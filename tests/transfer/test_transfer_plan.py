from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.core.errors import HandoffError
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.plan import byte_range, layout_digest, peer_layout, receivers_of, senders_to
from transfer.rig import layout

HEADS = [1, 2, 3, 4, 6, 8]


@st.composite
def sharded(draw: st.DrawFn) -> tuple[KVLayout, KVLayout]:
    heads = draw(st.sampled_from(HEADS))
    degrees = st.sampled_from([tp for tp in range(1, 33) if heads % tp == 0 or tp % heads == 0])
    return layout(heads, draw(degrees)), layout(heads, draw(degrees))


@given(sharded())
def test_every_head_of_every_receiver_rank_is_sent_once_by_a_rank_that_holds_it(
    layouts: tuple[KVLayout, KVLayout],
) -> None:
    sender, receiver = layouts
    for rank in range(receiver.tensor_parallel):
        sent: Counter[int] = Counter()
        for sender_rank, heads in senders_to(sender, receiver, rank).items():
            assert set(heads) <= set(sender.heads_of_rank(sender_rank))
            assert receivers_of(sender, sender_rank, receiver)[rank] == heads
            sent.update(heads)
        assert sent == Counter(receiver.heads_of_rank(rank))


@given(sharded())
def test_both_ends_plan_the_same_pairs(layouts: tuple[KVLayout, KVLayout]) -> None:
    sender, receiver = layouts
    seen_by_receivers = {(s, r) for r in range(receiver.tensor_parallel) for s in senders_to(sender, receiver, r)}
    seen_by_senders = {(s, r) for s in range(sender.tensor_parallel) for r in receivers_of(sender, s, receiver)}
    assert seen_by_receivers == seen_by_senders


def test_replicas_of_equal_degree_pair_off() -> None:
    replicated = layout(heads=2, tp=8)
    assert all(list(senders_to(replicated, replicated, rank)) == [rank] for rank in range(8))


def test_byte_range_is_relative_to_the_rank() -> None:
    shard = layout(heads=8, tp=2)
    assert byte_range(shard, 1, range(5, 7)) == (shard.head_bytes, 2 * shard.head_bytes)


def test_digest_ignores_tensor_parallelism_only() -> None:
    assert layout_digest(layout(tp=1)) == layout_digest(layout(tp=4))
    assert layout_digest(layout(head_dim=8)) != layout_digest(layout(head_dim=16))


@pytest.mark.parametrize("tp", [-1, 0, 3, 6])
def test_degree_that_does_not_shard_the_heads_is_refused(tp: int) -> None:
    with pytest.raises(HandoffError) as refused:
        peer_layout(layout(heads=4), tp)
    assert refused.value.reason == "layout"
