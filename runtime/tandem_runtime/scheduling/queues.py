"""Sequences in order of urgency."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from tandem_runtime.scheduling.sequence import Sequence

_rank = attrgetter("rank")


class RankedQueue:
    """Sorted by `Sequence.rank`; O(log n) comparisons to add or remove, O(1) to see either end."""

    def __init__(self) -> None:
        self._items: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        insort(self._items, seq, key=_rank)

    def remove(self, seq: Sequence) -> None:
        index = bisect_left(self._items, seq.rank, key=_rank)
        assert self._items[index] is seq
        del self._items[index]

    @property
    def head(self) -> Sequence | None:
        return self._items[0] if self._items else None

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def check_integrity(self) -> None:
        ranks = [seq.rank for seq in self._items]
        assert ranks == sorted(set(ranks))
