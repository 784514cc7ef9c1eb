"""Timed events: leases, probes and retries, kept in a min-heap on a thread of their own.

The thread only posts events into the engine's inbox, so expiry does not depend on steps being computed and the engine
itself needs no locks.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

Event = Callable[[], None]


class Timers(Protocol):
    def after(self, seconds: float, event: Event) -> int:
        """Returns an id for `cancel`."""
        ...

    def cancel(self, timer: int | None) -> None:
        """The event will not be posted; one already posted is not taken back."""
        ...


class TimerThread:
    """`Timers` that call `post(event)` when an event's time has come; `event` then runs wherever `post` takes it."""

    def __init__(self, post: Callable[[Event], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._post = post
        self._clock = clock
        self._heap: list[tuple[float, int]] = []
        self._events: dict[int, Event] = {}
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self._thread.start()

    def after(self, seconds: float, event: Event) -> int:
        with self._changed:
            timer = next(self._ids)
            self._events[timer] = event
            heapq.heappush(self._heap, (self._clock() + seconds, timer))
            self._changed.notify()
        return timer

    def cancel(self, timer: int | None) -> None:
        with self._changed:
            self._events.pop(timer or 0, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                due = self._heap[0][0] - self._clock() if self._heap else None
                if due is None or due > 0:
                    # A peer's deadline may lie further off than a lock can wait.
                    self._changed.wait(None if due is None else min(due, threading.TIMEOUT_MAX))
                    continue
                _, timer = heapq.heappop(self._heap)
                event = self._events.pop(timer, None)
                if event is not None:
                    self._post(event)
