"""The arithmetic of serving benchmarks. All times are seconds, all rates per second.

TTFT  request sent (open loop: request due) to the first chunk that carries text.
E2E   the same start to the last chunk of the answer.
TPOT  (E2E - TTFT) / (output tokens - 1), one figure per request; undefined for one token.
ITL   every gap between two chunks that carry text, divided by the request's mean tokens per chunk,
      so that a server which sends two tokens at a time does not look half as fast.
Throughput counts tokens of complete requests over the time from the first start to the last end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it; `start` and `end` count from the level's beginning."""

    index: int
    start: float
    end: float
    input_tokens: int
    """As the server counted them (`usage.prompt_tokens`)."""
    output_tokens: int
    """As the server counted them (`usage.completion_tokens`)."""
    chunk_times: tuple[float, ...] = ()
    """When each chunk that carries text came, from the level's beginning."""
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def ttft(self) -> float:
        return self.chunk_times[0] - self.start if self.chunk_times else math.nan

    @property
    def e2e(self) -> float:
        return self.end - self.start

    @property
    def tpot(self) -> float:
        if self.output_tokens < 2 or not self.chunk_times:
            return math.nan
        return (self.end - self.chunk_times[0]) / (self.output_tokens - 1)

    @property
    def itl(self) -> tuple[float, ...]:
        if len(self.chunk_times) < 2:
            return ()
        tokens_per_chunk = self.output_tokens / len(self.chunk_times)
        return tuple((later - earlier) / tokens_per_chunk for earlier, later in pairwise(self.chunk_times))


@dataclass(frozen=True, slots=True)
class Distribution:
    """NaN throughout when nothing was observed."""

    mean: float
    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        ordered = sorted(v for v in values if not math.isnan(v))
        if not ordered:
            return cls(math.nan, math.nan, math.nan, math.nan)
        mean = math.fsum(ordered) / len(ordered)
        return cls(mean, percentile(ordered, 50), percentile(ordered, 90), percentile(ordered, 99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One level's figures."""

    completed: int
    failed: int
    duration: float
    input_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2e: Distribution
    errors: tuple[tuple[str, int], ...]
    """Messages with their counts, the most frequent first."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending values, with linear interpolation between neighbours (numpy's default)."""
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(records: Sequence[RequestRecord]) -> Summary:
    """Failed requests are counted and contribute neither tokens nor latencies; their time does count."""
    done = [r for r in records if r.ok]
    duration = max((r.end for r in records), default=0.0) - min((r.start for r in records), default=0.0)
    input_tokens = sum(r.input_tokens for r in done)
    output_tokens = sum(r.output_tokens for r in done)
    return Summary(
        completed=len(done),
        failed=len(records) - len(done),
        duration=duration,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        requests_per_s=_rate(len(done), duration),
        output_tokens_per_s=_rate(output_tokens, duration),
        total_tokens_per_s=_rate(input_tokens + output_tokens, duration),
        ttft=Distribution.of(r.ttft for r in done),
        tpot=Distribution.of(r.tpot for r in done),
        itl=Distribution.of(gap for r in done for gap in r.itl),
        e2e=Distribution.of(r.e2e for r in done),
        errors=tuple(Counter(r.error for r in records if r.error is not None).most_common()),
    )


def _rate(count: int, duration: float) -> float:
    return count / duration if duration > 0 else 0.0
