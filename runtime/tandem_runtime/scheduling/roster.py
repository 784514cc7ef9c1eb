"""Every sequence by id and by state, in order of urgency."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count
from operator import attrgetter

from tandem_runtime.scheduling.sequence import Sequence, State

_rank = attrgetter("rank")
_QUEUED = (State.GATED, State.REMOTE, State.FILLED, State.WAITING)


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

    @property
    def last(self) -> Sequence | None:
        return self._items[-1] if self._items else None

    def at(self, index: int) -> Sequence | None:
        """The one with `index` others before it."""
        return self._items[index] if index < len(self._items) else None

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Roster:
    """A sequence has one state and is in the queue of that state; RUNNING ones have a slot each."""

    def __init__(self, num_slots: int) -> None:
        self._by_id: dict[str, Sequence] = {}
        self._queues: dict[State, RankedQueue] = {state: RankedQueue() for state in State if state is not State.ENDED}
        self.gated = self._queues[State.GATED]
        self.filled = self._queues[State.FILLED]
        self.waiting = self._queues[State.WAITING]
        self.running = self._queues[State.RUNNING]
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots))
        self._arrivals = count()
        self._deadlines: list[tuple[float, str]] = []

    def add(self, seq: Sequence, state: State) -> None:
        assert seq.request_id not in self._by_id, f"request {seq.request_id} was added twice"
        self._by_id[seq.request_id] = seq
        seq.rank = (seq.rank[0], next(self._arrivals))
        seq.state = state
        self._queues[state].add(seq)
        if seq.deadline is not None:
            heapq.heappush(self._deadlines, (seq.deadline, seq.request_id))

    def get(self, request_id: str) -> Sequence | None:
        return self._by_id.get(request_id)

    def expect(self, request_id: str, state: State) -> Sequence:
        seq = self._by_id[request_id]
        assert seq.state is state, f"request {request_id} is {seq.state.value}, not {state.value}"
        return seq

    def move(self, seq: Sequence, state: State) -> None:
        self._queues[seq.state].remove(seq)
        if seq.state is State.RUNNING:
            heapq.heappush(self._free_slots, seq.slot)
        seq.state = state
        if state is State.ENDED:
            del self._by_id[seq.request_id]
            return
        if state is State.RUNNING:
            seq.slot = heapq.heappop(self._free_slots)
        self._queues[state].add(seq)

    def pop_overdue(self, now: float) -> Iterator[Sequence]:
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            seq = self._by_id.get(request_id)
            if seq is not None and seq.deadline == deadline:
                yield seq

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def num_waiting(self) -> int:
        return sum(len(self._queues[state]) for state in _QUEUED)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_id.values())

    def check_integrity(self) -> None:
        for state, queue in self._queues.items():
            ranks = [seq.rank for seq in queue]
            assert ranks == sorted(set(ranks))
            assert {seq.request_id for seq in queue} == {seq.request_id for seq in self if seq.state is state}
        slots = [seq.slot for seq in self.running]
        assert sorted(slots + self._free_slots) == list(range(self._num_slots)), "a slot is lost or shared"
