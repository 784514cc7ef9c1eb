"""A bandwidth limit shared by all workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Limiter:
    """Lets `rate` bytes per second through, on average, with no burst above what one read brings. None: no limit."""

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next_free = clock()
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """Books `count` bytes and sleeps until their time has come."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            begin = max(now, self._next_free)
            self._next_free = begin + count / self._rate
        if begin > now:
            self._sleep(begin - now)
