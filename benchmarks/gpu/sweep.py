"""The edges of bounds on a server's mean TPOT, by the bench client's planner; no level is measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tandem_runtime.bench.serve.planner import SweepPlanner
from tandem_runtime.bench.serve.workload import Workload

RESOLUTION = 0.1
"""Of the concurrency at an edge: a level takes a minute, and the throughput hardly differs between these."""

Row = dict[str, Any]
Measure = Callable[[int], Row]
"""Figures at a concurrency: at least `mean_tpot_ms`, `output_tok_per_s` and `failed`."""


def fitting(workload: Workload, pages: int, page_size: int) -> int:
    """How many of its requests have room for all their tokens at once: beyond these, preemption is measured."""
    return max(1, pages // -(-(workload.input_len + workload.output_len) // page_size))


class Kept:
    """Levels on disk, so that a sweep that was cut off goes on where it stopped."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._levels: dict[str, Row] = json.loads(path.read_text()) if path and path.exists() else {}

    def level(self, key: str, measure: Callable[[], Row]) -> Row:
        """`key`: all that tells the level from others."""
        if key not in self._levels:
            self._levels[key] = measure()
            if self._path:
                written = self._path.with_suffix(".new")
                written.write_text(json.dumps(self._levels, indent=1))
                written.replace(self._path)
        return self._levels[key]


def edges(bounds_ms: Sequence[float], measure: Measure, *, start: int, maximum: int) -> Iterator[Row]:
    """A row for each bound, the loosest first: the level inside it with the most output tokens per second.

    `measure` is asked again for levels that several bounds share.
    """
    for bound in sorted(bounds_ms, reverse=True):
        planner = SweepPlanner(start=start, maximum=maximum, resolution=RESOLUTION)
        inside: list[Row] = []
        while (concurrency := planner.next_level()) is not None:
            row = measure(concurrency)
            met = not row["failed"] and row["mean_tpot_ms"] < bound
            planner.observe(concurrency, met=met)
            inside += [row] if met else []
        edge: Row = {"TPOT below ms": bound}
        if not inside:
            yield edge | {"note": "no level"}
        else:
            note = {"note": "the most that was tried"} if planner.at_maximum else {}
            yield edge | max(inside, key=lambda row: float(row["output_tok_per_s"])) | note
