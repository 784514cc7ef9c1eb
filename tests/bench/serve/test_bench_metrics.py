"""Figures against values computed by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from tandem_runtime.bench.serve.metrics import Distribution, RequestRecord, percentile, summarize


def answer(
    index: int, start: float, times: tuple[float, ...], tokens: int, *, end: float | None = None
) -> RequestRecord:
    return RequestRecord(
        index=index,
        start=start,
        end=times[-1] if end is None else end,
        input_tokens=100,
        output_tokens=tokens,
        chunk_times=times,
    )


def test_one_token_a_chunk() -> None:
    record = answer(0, 1.0, (1.5, 1.6, 1.8, 2.1), 4)
    assert record.ttft == pytest.approx(0.5)
    assert record.e2e == pytest.approx(1.1)
    assert record.tpot == pytest.approx(0.6 / 3)
    assert record.itl == pytest.approx((0.1, 0.2, 0.3))


def test_itl_of_a_server_that_sends_two_tokens_at_a_time_is_per_token() -> None:
    record = answer(0, 0.0, (1.0, 1.2, 1.4), 6)
    assert record.itl == pytest.approx((0.1, 0.1))
    assert record.tpot == pytest.approx(0.4 / 5)


def test_tpot_runs_to_the_end_of_the_answer_not_to_its_last_text() -> None:
    record = answer(0, 0.0, (1.0, 1.1), 3, end=1.3)
    assert record.tpot == pytest.approx(0.15)


def test_one_token_has_a_ttft_but_no_tpot() -> None:
    record = answer(0, 0.0, (0.25,), 1)
    assert record.ttft == 0.25
    assert math.isnan(record.tpot)
    assert record.itl == ()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("percent", [0, 50, 90, 99, 100])
def test_percentile_is_numpys(count: int, percent: float) -> None:
    rng = random.Random(count)
    ordered = sorted(rng.random() for _ in range(count))
    assert percentile(ordered, percent) == pytest.approx(float(np.percentile(ordered, percent)))


def test_distribution_by_hand() -> None:
    d = Distribution.of([4.0, 1.0, math.nan, 3.0, 2.0])
    assert (d.mean, d.median) == (2.5, 2.5)
    assert d.p99 == pytest.approx(3.97)
    assert math.isnan(Distribution.of([]).mean)


def test_summary_by_hand() -> None:
    done = [answer(0, 0.0, (0.5, 1.0, 1.5), 3), answer(1, 1.5, (2.5, 3.0, 3.5, 4.0), 4)]
    failed = RequestRecord(index=2, start=0.0, end=0.1, input_tokens=9, output_tokens=9, error="HTTP 503: busy")
    s = summarize([*done, failed])
    assert (s.completed, s.failed, s.duration) == (2, 1, 4.0)
    assert (s.input_tokens, s.output_tokens) == (200, 7)
    assert s.requests_per_s == 0.5
    assert s.output_tokens_per_s == 1.75
    assert s.total_tokens_per_s == 51.75
    assert s.ttft.mean == pytest.approx(0.75)
    assert s.tpot.mean == pytest.approx(0.5)
    assert s.e2e.median == pytest.approx(2.0)
    assert s.errors == (("HTTP 503: busy", 1),)


def test_the_time_of_failed_requests_counts_against_throughput() -> None:
    stuck = RequestRecord(index=1, start=0.0, end=10.0, input_tokens=0, output_tokens=0, error="timed out")
    assert summarize([answer(0, 0.0, (0.5, 1.0), 2), stuck]).output_tokens_per_s == pytest.approx(0.2)


def test_nothing_measured_is_zero_not_a_crash() -> None:
    s = summarize([])
    assert (s.completed, s.failed, s.requests_per_s) == (0, 0, 0.0)
