"""The retry budget: retries are a share of the requests, so that a failing fleet is not buried under them."""

from __future__ import annotations

SHARE = 0.2
FLOOR_PER_S = 2.0
CAP = 50.0


class RetryBudget:
    """A token bucket: each request earns `SHARE` of a retry, each second `FLOOR_PER_S` (Finagle's RetryBudget)."""

    def __init__(self, now: float) -> None:
        self._balance = CAP / 2
        self._at = now

    def deposit(self) -> None:
        self._balance = min(CAP, self._balance + SHARE)

    def withdraw(self, now: float) -> bool:
        """Whether a retry may be made; `now` in seconds, monotonic."""
        self._balance = min(CAP, self._balance + (now - self._at) * FLOOR_PER_S)
        self._at = now
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
