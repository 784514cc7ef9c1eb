"""Decides which concurrency to measure next on the way to the edge of an SLO. No I/O."""

from __future__ import annotations


class SweepPlanner:
    """Doubles the concurrency until the SLO breaks, then bisects down to `resolution` of the edge.

    Latency is taken to grow with concurrency: nothing above a failed level is tried.
    """

    def __init__(self, *, start: int = 1, maximum: int, resolution: float = 0.05) -> None:
        assert 1 <= start <= maximum
        self._start = start
        self._maximum = maximum
        self._resolution = resolution
        self._passed = 0
        self._failed: int | None = None

    @property
    def best(self) -> int | None:
        """The highest concurrency known to meet the SLO."""
        return self._passed or None

    @property
    def at_maximum(self) -> bool:
        """The SLO held up to the highest concurrency allowed, so its edge was not seen."""
        return self._passed == self._maximum

    def next_level(self) -> int | None:
        """The concurrency to measure, or None when the edge is known well enough."""
        if self._failed is None:
            if self._passed == 0:
                return self._start
            return min(self._passed * 2, self._maximum) if self._passed < self._maximum else None
        if self._failed - self._passed <= max(1, int(self._resolution * self._passed)):
            return None
        return (self._passed + self._failed) // 2

    def observe(self, concurrency: int, *, met: bool) -> None:
        if met:
            self._passed = max(self._passed, concurrency)
        else:
            self._failed = min(concurrency, self._failed or concurrency)
