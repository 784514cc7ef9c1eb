"""Metric names follow Prometheus' conventions, so that dashboards can rely on them."""

import re

from tandem_contract.metrics import ALL


def test_names_are_unique_and_carry_prefix_and_unit() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL) > 0
    for metric in ALL:
        assert re.fullmatch(r"tandem_[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.help


def test_histograms_have_rising_buckets_and_others_none() -> None:
    for metric in ALL:
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
