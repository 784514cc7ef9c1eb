from __future__ import annotations

import pytest
from tandem_runtime.bench.serve.metrics import RequestRecord, summarize
from tandem_runtime.bench.serve.slo import Bound, Slo, SloError, goodput, parse_slo, parse_slo_table


def answer(ttft: float, tpot: float, *, error: str | None = None) -> RequestRecord:
    times = (ttft, ttft + tpot, ttft + 2 * tpot)
    return RequestRecord(
        index=0, start=0.0, end=times[-1], input_tokens=8, output_tokens=3, chunk_times=times, error=error
    )


def test_parses_units_aggregates_and_spaces() -> None:
    assert parse_slo("tpot=40ms, ttft=2s,p99-tpot=0.05s,median-e2e=500us").bounds == (
        Bound("tpot", "mean", 0.04),
        Bound("ttft", "mean", 2.0),
        Bound("tpot", "p99", 0.05),
        Bound("e2e", "median", 0.0005),
    )


@pytest.mark.parametrize("text", ["tpot=40ms", "p99-tpot=50ms", "tpot=40ms,ttft=2s"])
def test_text_is_what_was_parsed(text: str) -> None:
    assert str(parse_slo(text)) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("tpot=40", "tpot=40"),
        ("tpot", "tpot"),
        ("", "''"),
        ("speed=1s", "'speed'"),
        ("p42-tpot=1s", "'p42'"),
        ("tpot=0ms", "above 0"),
        ("tpot=-1ms", "tpot=-1ms"),
        ("tpot=40ms,,ttft=1s", "''"),
    ],
)
def test_errors_quote_the_wrong_part(text: str, quoted: str) -> None:
    with pytest.raises(SloError, match=quoted):
        parse_slo(text)


def test_table_of_mean_and_of_p99() -> None:
    assert parse_slo_table("50,40ms") == (Bound("tpot", "mean", 0.05), Bound("tpot", "mean", 0.04))
    assert parse_slo_table("p99-tpot=35") == (Bound("tpot", "p99", 0.035),)
    with pytest.raises(SloError):
        parse_slo_table("50,fast")


def test_met_at_the_bound_and_missed_above_it() -> None:
    summary = summarize([answer(0.5, 0.125), answer(1.5, 0.125)])
    assert parse_slo("ttft=1s,tpot=125ms").met_by(summary)
    assert not parse_slo("ttft=999ms").met_by(summary)
    assert not parse_slo("p99-ttft=1s").met_by(summary)


def test_a_failed_request_misses_every_slo() -> None:
    assert not parse_slo("ttft=9s").met_by(summarize([answer(0.1, 0.1), answer(0.1, 0.1, error="HTTP 500")]))


def test_nothing_observed_meets_nothing() -> None:
    assert not parse_slo("tpot=9s").met_by(summarize([]))


def test_goodput_asks_each_request_by_the_loosest_bound() -> None:
    records = [
        answer(0.1, 0.03),
        answer(0.1, 0.045),
        answer(0.1, 0.06),
        answer(3.0, 0.03),
        answer(0.1, 0.03, error="x"),
    ]
    assert goodput(records, parse_slo("tpot=40ms,p99-tpot=50ms,ttft=2s"), duration=4.0) == 0.5


def test_with_bound_replaces_the_same_figure_only() -> None:
    slo = parse_slo("tpot=40ms,p99-tpot=50ms").with_bound(Bound("tpot", "mean", 0.03))
    assert slo == Slo((Bound("tpot", "p99", 0.05), Bound("tpot", "mean", 0.03)))
