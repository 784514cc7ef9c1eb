"""Which services to look at next: each key is worked on by one worker at a time, and once for many events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0
REST_S = 0.2
"""After each look: what it set off, and events that come in bursts, are one look more."""


class WorkQueue(Generic[Key]):
    def __init__(self, *, waited: Callable[[float], None] = lambda seconds: None, rest_s: float = REST_S) -> None:
        """`waited` is told how long each key was ready before a worker took it."""
        self._waited = waited
        self._rest_s = rest_s
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: dict[Key, float] = {}
        """Since when, monotonic."""
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        """Added while being worked on, or resting."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._cancel(key)
            self._queued[key] = time.monotonic()
            self._ready.put_nowait(key)

    def add_later(self, key: Key, seconds: float) -> None:
        """Unless it is added before."""
        self._cancel(key)
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._fire, key)

    async def take(self) -> Key:
        """Every key taken must be given back by `done` or `failed`."""
        key = await self._ready.get()
        self._waited(time.monotonic() - self._queued.pop(key))
        self._working.add(key)
        return key

    def done(self, key: Key, *, again: float | None = None) -> None:
        """`again`: seconds after which to look again."""
        self._failures.pop(key, None)
        asyncio.get_running_loop().call_later(self._rest_s, self._release, key, again)

    def failed(self, key: Key) -> float:
        """Seconds until the next attempt, doubled with each failure in a row."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(count - 1, 16))
        # An event does not cut the pause short: the failed attempt may itself have caused it.
        self._again.discard(key)
        self._release(key, pause)
        return pause

    def _release(self, key: Key, again: float | None) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif again is not None:
            self.add_later(key, again)

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()


async def every(seconds: float, action: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        action()
