"""When a prefill job is announced to its decode pod: as late as possible, but before it would wait for the answer."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge

from tandem_runtime.scheduling.sequence import Sequence, State


def near_head(gated: Iterable[Sequence], waiting: Iterable[Sequence], *, backlog: int, horizon: int) -> list[Sequence]:
    """Gated sequences that start within `horizon` tokens of work; `backlog` tokens precede both queues.

    Both queues are sorted by rank. Cached prefixes are not looked up: a sequence counts with its whole prompt.
    """
    near: list[Sequence] = []
    before = backlog
    for seq in merge(gated, waiting, key=lambda item: item.rank):
        if before >= horizon:
            break
        if seq.state is State.GATED:
            near.append(seq)
        before += seq.tokens_to_compute
    return near
