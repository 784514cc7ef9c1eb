"""Pods that were at fault lately, and are not asked for a while."""

from __future__ import annotations

from collections.abc import Callable


class Avoided:
    """Forgets by itself: pods come and go, each at an address of its own."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: dict[str, float] = {}

    def add(self, url: str) -> None:
        now = self._clock()
        self._until = {other: until for other, until in self._until.items() if until > now}
        self._until[url] = now + self._seconds

    def __contains__(self, url: str) -> bool:
        return self._until.get(url, 0.0) > self._clock()

    def __len__(self) -> int:
        return len(self._until)
