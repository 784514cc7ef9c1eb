"""Service level objectives: bounds on a level's latencies, such as `tpot=40ms,p99-tpot=50ms,ttft=2s`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from tandem_runtime.bench.serve.metrics import Distribution, RequestRecord, Summary

Metric = Literal["ttft", "tpot", "e2e"]
Aggregate = Literal["mean", "median", "p90", "p99"]

_METRICS: tuple[str, ...] = get_args(Metric)
_AGGREGATES: tuple[str, ...] = get_args(Aggregate)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BOUND = re.compile(r"(?:(?P<aggregate>\w+)-)?(?P<metric>\w+)=(?P<number>\d+(?:\.\d+)?)(?P<unit>us|ms|s)")


class SloError(ValueError):
    """The text is not an SLO; the message quotes the wrong part."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`aggregate` of `metric` over the requests of a level is at most `seconds`."""

    metric: Metric
    aggregate: Aggregate
    seconds: float

    def met_by(self, summary: Summary) -> bool:
        distribution: Distribution = getattr(summary, self.metric)
        value: float = getattr(distribution, self.aggregate)
        return value <= self.seconds  # NaN, nothing observed, is not met

    def __str__(self) -> str:
        prefix = "" if self.aggregate == "mean" else f"{self.aggregate}-"
        return f"{prefix}{self.metric}={format_seconds(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Slo:
    bounds: tuple[Bound, ...]

    def met_by(self, summary: Summary) -> bool:
        """A level with a failed request never meets an SLO."""
        return summary.failed == 0 and all(bound.met_by(summary) for bound in self.bounds)

    def good(self, record: RequestRecord) -> bool:
        """Goodput's question about one request: within the loosest bound of every metric that is named."""
        return record.ok and all(
            getattr(record, metric) <= max(b.seconds for b in self.bounds if b.metric == metric)
            for metric in {b.metric for b in self.bounds}
        )

    def with_bound(self, bound: Bound) -> Slo:
        """`bound` in place of the one on the same figure, if there is one."""
        others = (b for b in self.bounds if (b.metric, b.aggregate) != (bound.metric, bound.aggregate))
        return Slo((*others, bound))

    def __str__(self) -> str:
        return ",".join(map(str, self.bounds))


def parse_slo(text: str) -> Slo:
    """`[mean-|median-|p90-|p99-](ttft|tpot|e2e)=NUMBER(us|ms|s)`, comma-separated. Raises `SloError`."""
    return Slo(tuple(_parse_bound(part.strip()) for part in text.split(",")))


def parse_slo_table(text: str) -> tuple[Bound, ...]:
    """`50,40,35` (mean TPOT in milliseconds) or `p99-tpot=50,40,35`. Raises `SloError`."""
    name, _, numbers = text.rpartition("=")
    return tuple(
        _parse_bound(f"{name or 'tpot'}={number.strip().removesuffix('ms')}ms") for number in numbers.split(",")
    )


def goodput(records: Iterable[RequestRecord], slo: Slo, duration: float) -> float:
    """Requests per second that were good by themselves."""
    return sum(slo.good(r) for r in records) / duration if duration > 0 else 0.0


def format_seconds(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def _parse_bound(text: str) -> Bound:
    match = _BOUND.fullmatch(text)
    if match is None:
        raise SloError(f"{text!r} is not like tpot=40ms or p99-ttft=2s")
    metric, aggregate = match["metric"], match["aggregate"] or "mean"
    if metric not in _METRICS:
        raise SloError(f"{metric!r} in {text!r} is none of {', '.join(_METRICS)}")
    if aggregate not in _AGGREGATES:
        raise SloError(f"{aggregate!r} in {text!r} is none of {', '.join(_AGGREGATES)}")
    seconds = float(match["number"]) * _SECONDS[match["unit"]]
    if seconds <= 0:
        raise SloError(f"{text!r} must be above 0")
    return Bound(cast("Metric", metric), cast("Aggregate", aggregate), seconds)
