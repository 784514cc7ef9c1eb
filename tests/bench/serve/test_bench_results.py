from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tandem_runtime.bench.serve.display import RollingRate
from tandem_runtime.bench.serve.load import Load
from tandem_runtime.bench.serve.metrics import RequestRecord, summarize
from tandem_runtime.bench.serve.report import warnings
from tandem_runtime.bench.serve.results import Findings, LevelResult, ratios
from tandem_runtime.bench.serve.slo import Slo, parse_slo
from tandem_runtime.bench.serve.workload import Workload


def level(
    target: str, ttft: float, tpot: float, *, repeat: int = 0, slo: Slo | None = None, busy: float = 0.1
) -> LevelResult:
    times = (ttft, ttft + tpot, ttft + 2 * tpot)
    records = (RequestRecord(index=0, start=0.0, end=times[-1], input_tokens=8, output_tokens=3, chunk_times=times),)
    return LevelResult(
        target=target,
        workload=Workload(8, 3),
        load=Load(1, None),
        repeat=repeat,
        gpus=4,
        summary=summarize(records),
        records=records,
        slo=slo or Slo(()),
        client_busy=busy,
    )


def test_throughput_is_divided_by_all_gpus() -> None:
    result = level("a", 1.0, 0.5)
    assert result.output_tokens_per_s_per_gpu == pytest.approx(3 / 2.0 / 4)
    assert result.total_tokens_per_s_per_gpu == pytest.approx(11 / 2.0 / 4)


def test_goodput_exists_only_with_an_slo() -> None:
    assert math.isnan(level("a", 1.0, 0.5).goodput)
    assert level("a", 1.0, 0.5, slo=parse_slo("tpot=1s")).goodput == 0.5
    assert level("a", 1.0, 0.5, slo=parse_slo("tpot=1ms")).goodput == 0.0


def test_ratios_take_medians_over_repeats() -> None:
    ours = [level("ours", 1.0, tpot, repeat=i) for i, tpot in enumerate((0.5, 0.5, 99.0))]
    peer = [level("peer", 2.0, tpot, repeat=i) for i, tpot in enumerate((1.0, 1.0, 0.001))]
    (ratio,) = ratios([*ours, *peer])
    assert ratio.peer == "peer"
    assert ratio.output_tokens_per_s == pytest.approx(2.0)
    assert ratio.mean_ttft == pytest.approx(0.5)
    assert ratio.mean_tpot == pytest.approx(0.5)


def test_one_server_has_no_ratios() -> None:
    assert ratios([level("ours", 1.0, 0.5)]) == []


def test_a_busy_client_is_warned_of() -> None:
    short = level("a", 1.0, 0.5, busy=0.95)
    text = "\n".join(warnings(Findings(1, [short])))
    assert "95% of a core" in text
    assert "prompts were not" not in text


def test_prompts_that_the_server_counts_differently_are_warned_of() -> None:
    result = replace(level("a", 1.0, 0.5), workload=Workload(7, 3))
    assert "1 prompts were not 7 tokens" in "\n".join(warnings(Findings(1, [result])))


def test_rolling_rate_forgets_what_is_older_than_its_window() -> None:
    rate = RollingRate(window=5.0)
    assert rate.at(0.0, 0) == 0.0
    assert rate.at(2.0, 100) == 50.0
    assert rate.at(7.0, 100) == 0.0
