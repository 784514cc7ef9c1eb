"""Retries with exponential backoff and full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter")."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tandem_fetch.errors import FetchError, SourceChanged

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    attempts: int
    """Failures in a row, without progress between them, after which the error stands."""
    base_s: float = 0.5
    cap_s: float = 20.0

    def delay_s(self, failures: int, fraction: float) -> float:
        """Pause after the `failures`-th failure in a row; `fraction` in [0, 1) is the jitter."""
        return float(min(self.cap_s, self.base_s * 2 ** (failures - 1)) * fraction)


class Retrier:
    """Applies a `Retry` until `stop` is set. Thread-safe; `on_retry` may be called from any thread."""

    def __init__(self, retry: Retry, on_retry: Callable[[FetchError, float], None], stop: threading.Event) -> None:
        self._retry = retry
        self._on_retry = on_retry
        self.stop = stop

    def call(self, action: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return action()
            except FetchError as error:
                failures += 1
                self.pause(error, failures)

    def pause(self, error: FetchError, failures: int) -> None:
        """Waits before the next attempt, or raises `error` when there shall be none."""
        hopeless = not error.retryable or isinstance(error, SourceChanged)  # the source must be listed again
        if hopeless or failures >= self._retry.attempts or self.stop.is_set():
            raise error
        delay = self._retry.delay_s(failures, random.random())
        self._on_retry(error, delay)
        self.stop.wait(delay)
