"""What a run of `tandem bench serve` found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem_runtime.bench.serve.load import Load
from tandem_runtime.bench.serve.metrics import RequestRecord, Summary, percentile
from tandem_runtime.bench.serve.slo import Slo, goodput
from tandem_runtime.bench.serve.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    """One server, one workload, one load, measured once."""

    target: str
    workload: Workload
    load: Load
    repeat: int
    gpus: int
    summary: Summary
    records: tuple[RequestRecord, ...]
    slo: Slo
    client_busy: float
    """Share of one core that this client used; near 1 the client, not the server, was measured."""

    @property
    def output_tokens_per_s_per_gpu(self) -> float:
        return self.summary.output_tokens_per_s / self.gpus

    @property
    def total_tokens_per_s_per_gpu(self) -> float:
        return self.summary.total_tokens_per_s / self.gpus

    @property
    def goodput(self) -> float:
        """Good requests per second; NaN without an SLO."""
        return goodput(self.records, self.slo, self.summary.duration) if self.slo.bounds else math.nan

    @property
    def slo_met(self) -> bool | None:
        return self.slo.met_by(self.summary) if self.slo.bounds else None

    @property
    def wrong_inputs(self) -> int:
        """Complete requests whose prompt the server counted differently than asked."""
        return sum(r.ok and r.input_tokens != self.workload.input_len for r in self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The highest throughput of one server and workload inside one SLO."""

    target: str
    workload: Workload
    slo: Slo
    best: LevelResult | None
    """None when no level met the SLO."""
    unbounded: bool
    """The SLO still held at the highest concurrency that was allowed."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The first server over a peer, medians over repeats; throughput above 1 and latency below 1 are wins."""

    peer: str
    workload: Workload
    load: Load
    output_tokens_per_s: float
    mean_ttft: float
    mean_tpot: float


@dataclass(frozen=True, slots=True)
class Findings:
    """Grows while the session measures, so that an interrupted one can still be reported."""

    seed: int
    """Of prompts and arrivals."""
    levels: list[LevelResult] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(level.summary.failed for level in self.levels)


def ratios(levels: Sequence[LevelResult]) -> list[Ratio]:
    """One for each peer, workload and load that both servers were measured at."""
    groups: dict[tuple[Workload, Load], dict[str, list[Summary]]] = {}
    for level in levels:
        by_target = groups.setdefault((level.workload, level.load), {})
        by_target.setdefault(level.target, []).append(level.summary)
    found = []
    for (workload, load), by_target in groups.items():
        if not levels or levels[0].target not in by_target:
            continue
        mine = by_target[levels[0].target]
        for peer, theirs in by_target.items():
            if peer == levels[0].target:
                continue
            found.append(
                Ratio(
                    peer,
                    workload,
                    load,
                    _over([s.output_tokens_per_s for s in mine], [s.output_tokens_per_s for s in theirs]),
                    _over([s.ttft.mean for s in mine], [s.ttft.mean for s in theirs]),
                    _over([s.tpot.mean for s in mine], [s.tpot.mean for s in theirs]),
                )
            )
    return found


def _over(mine: list[float], theirs: list[float]) -> float:
    divisor = percentile(sorted(theirs), 50)
    return percentile(sorted(mine), 50) / divisor if divisor > 0 else math.nan
