"""What the process tests read from /metrics."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from support.serving import total
from tandem_contract import metrics as names
from tandem_gateway.metrics import GatewayMetrics


def test_all_samples_with_the_labels_are_summed() -> None:
    """Only the first line used to count."""
    metrics = GatewayMetrics()
    metrics.picks.labels("d0", "decode").inc(2)
    metrics.picks.labels("d1", "decode").inc(3)
    metrics.picks.labels("p0", "prefill").inc(7)
    exposition = generate_latest(metrics.registry).decode()
    assert total(exposition, names.GATEWAY_PICKS) == 12
    assert total(exposition, names.GATEWAY_PICKS, role="decode") == 5
    assert total(exposition, names.GATEWAY_PICKS, role="decode", pod="d1") == 3
    assert total(exposition, names.GATEWAY_RETRIES) == 0
    assert total(exposition, names.GATEWAY_IN_FLIGHT) == 0


def test_what_is_not_exported_is_no_zero() -> None:
    """`== 0` used to hold for every misspelt or missing metric."""
    exposition = generate_latest(GatewayMetrics().registry).decode()
    with pytest.raises(AssertionError, match="not exported"):
        total(exposition, names.HANDOFFS)
    with pytest.raises(AssertionError, match="no labels"):
        total(exposition, names.GATEWAY_RETRIES, cause="busy")
    with pytest.raises(AssertionError, match="no single value"):
        total(exposition, names.GATEWAY_TTFB)
