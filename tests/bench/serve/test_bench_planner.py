"""The sweep against synthetic servers whose edge is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.bench.serve.planner import SweepPlanner


def climb(planner: SweepPlanner, edge: int) -> list[int]:
    """Runs the planner on a server that meets the SLO up to `edge`; the levels it measured."""
    levels = []
    while (level := planner.next_level()) is not None:
        levels.append(level)
        planner.observe(level, met=level <= edge)
    return levels


def test_doubles_then_bisects() -> None:
    planner = SweepPlanner(maximum=256)
    assert climb(planner, 11) == [1, 2, 4, 8, 16, 12, 10, 11]
    assert planner.best == 11


def test_latency_curve() -> None:
    """TPOT of 10 ms + 0.6 ms a stream is 40 ms at 50 streams."""
    planner = SweepPlanner(maximum=1024, resolution=0.0)
    while (level := planner.next_level()) is not None:
        planner.observe(level, met=0.010 + 0.0006 * level <= 0.0400001)
    assert planner.best == 50


def test_nothing_meets_the_slo() -> None:
    planner = SweepPlanner(maximum=64)
    assert climb(planner, 0) == [1]
    assert planner.best is None


def test_bisects_below_a_start_that_fails() -> None:
    planner = SweepPlanner(start=16, maximum=64)
    climb(planner, 3)
    assert planner.best == 3


@pytest.mark.parametrize("maximum", [1, 5, 64])
def test_stops_at_the_maximum_and_says_so(maximum: int) -> None:
    planner = SweepPlanner(maximum=maximum)
    assert climb(planner, 10_000)[-1] == maximum
    assert planner.at_maximum


@given(edge=st.integers(0, 2000), start=st.integers(1, 64), extra=st.integers(0, 2000))
def test_any_edge_is_found_within_the_resolution(edge: int, start: int, extra: int) -> None:
    maximum = start + extra
    planner = SweepPlanner(start=start, maximum=maximum)
    levels = climb(planner, edge)
    assert len(levels) == len(set(levels)) <= 2 * 11 + 2
    assert all(1 <= level <= maximum for level in levels)
    truth = min(edge, maximum)
    best = planner.best or 0
    assert best <= truth <= best + max(1, 0.05 * best)
    assert planner.at_maximum == (best == maximum)
