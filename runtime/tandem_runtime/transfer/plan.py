"""Which heads travel between which ranks when sender and receiver differ in tensor parallelism. Pure.

Every head of every receiver rank is sent exactly once. Where the sender replicates heads (more ranks than KV heads),
the copies share the work; where the receiver does, each replica is fed on its own.
"""

from __future__ import annotations

import hashlib

import msgspec

from tandem_runtime.core.errors import HandoffError
from tandem_runtime.core.kv import KVLayout


def heads_between(sender: KVLayout, sender_rank: int, receiver: KVLayout, receiver_rank: int) -> range:
    """The model's KV heads that `sender_rank` sends to `receiver_rank`; may be empty."""
    held, wanted = sender.heads_of_rank(sender_rank), receiver.heads_of_rank(receiver_rank)
    copies = max(1, sender.tensor_parallel // sender.num_kv_heads)
    if sender_rank % copies != receiver_rank % copies:
        return range(0)
    first, end = max(held.start, wanted.start), min(held.stop, wanted.stop)
    return range(first, end) if first < end else range(0)


def senders_to(sender: KVLayout, receiver: KVLayout, receiver_rank: int) -> dict[int, range]:
    """Sender rank -> heads, for those that feed `receiver_rank`."""
    pairs = ((rank, heads_between(sender, rank, receiver, receiver_rank)) for rank in range(sender.tensor_parallel))
    return {rank: heads for rank, heads in pairs if heads}


def receivers_of(sender: KVLayout, sender_rank: int, receiver: KVLayout) -> dict[int, range]:
    """Receiver rank -> heads, for those that `sender_rank` feeds."""
    pairs = ((rank, heads_between(sender, sender_rank, receiver, rank)) for rank in range(receiver.tensor_parallel))
    return {rank: heads for rank, heads in pairs if heads}


def byte_range(layout: KVLayout, rank: int, heads: range) -> tuple[int, int]:
    """(offset, length) of `heads` inside a page of `rank`."""
    held = layout.heads_of_rank(rank)
    assert held.start <= heads.start <= heads.stop <= held.stop, (held, heads)
    return (heads.start - held.start) * layout.head_bytes, len(heads) * layout.head_bytes


def peer_layout(layout: KVLayout, tensor_parallel: int) -> KVLayout:
    """The peer's view of the same cache. Raises `HandoffError` where its heads cannot be sharded so."""
    heads = layout.num_kv_heads
    if tensor_parallel < 1 or (heads % tensor_parallel and tensor_parallel % heads):
        raise HandoffError(f"{heads} KV heads cannot be sharded over {tensor_parallel} ranks", reason="layout")
    return msgspec.structs.replace(layout, tensor_parallel=tensor_parallel)


def layout_digest(layout: KVLayout) -> str:
    """Hex; equal for layouts whose pages mean the same bytes, whatever their tensor parallelism."""
    return hashlib.blake2b(msgspec.json.encode(peer_layout(layout, 1)), digest_size=16).hexdigest()
